"""Long-running programs that outlive veeryd: etcd, tgtd, QEMU.

A `Process` is identified by pid and start time, so that a reused pid is not taken for it. It is watched by a pidfd, so
that its end is proven. `Service` keeps a program running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from veery.errors import Failed, Refused
from veery.host import priority
from veery.host.files import write_atomic
from veery.host.owner import Owner

log = logging.getLogger(__name__)

LOG_MAX_BYTES = 1 << 20
LOG_KEEP_BYTES = 256 << 10  # the part that stays readable
TRIM_INTERVAL_S = 5.0
LOOK_PAUSE_S = 0.5  # before the next check of a process that could not be checked
_SHORT_HINT = "ls /proc/$(pidof -x veeryd)/fd | wc -l; see LimitNOFILE"


def start_ticks(pid: int) -> int:
    """Return the start time of process `pid`, in clock ticks since boot (proc(5), field 22); 0 if it is gone or a
    zombie. Raises Failed if that cannot be read for now."""
    state, ticks = _stat(pid)
    return 0 if state in "ZX" else ticks


def _stat(pid: int) -> tuple[str, int]:
    """Return state and start time of `pid`, also of a zombie; ("X", 0) if it is gone. Raises Failed if /proc cannot be
    read for now: the state of the process is then unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    except OSError as error:  # too many open files, too little memory
        raise Failed(f"/proc/{pid}/stat: {error.strerror}", hint=_SHORT_HINT) from error
    return fields[0], int(fields[19])


@dataclass(frozen=True, slots=True)
class Process:
    """One running program: its `pid`, and its start time `ticks`."""

    pid: int
    ticks: int

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str | Path],
        *,
        log_file: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
        owner: Owner | None = None,
    ) -> Process:
        """Start `argv` in its own session, with its output appended to `log_file`. It outlives this process. It runs as
        `owner`, if given, without further groups; `cwd` and the passed descriptors may be inaccessible to that user.

        Raises Refused if the program is not installed or cannot be started."""
        words = [str(word) for word in argv]
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with open_log(log_file) as output:
            try:
                child = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **env} if env else None,
                    pass_fds=pass_fds,
                    cwd=cwd,
                    start_new_session=True,
                    user=owner.uid if owner else None,
                    group=owner.gid if owner else None,
                    extra_groups=() if owner else None,
                )
            except FileNotFoundError as error:
                raise Refused(
                    f"{words[0]} is not installed", hint=f"install the package that contains {words[0]}"
                ) from error
            except PermissionError as error:
                user = f" by user {owner.uid}" if owner else ""
                raise Refused(
                    f"{words[0]} cannot be started{user}: {error.strerror}", hint=f"see ls -l $(command -v {words[0]})"
                ) from error
        child.returncode = 0  # `_gone` reaps it, not Popen
        return cls(child.pid, start_ticks(child.pid))

    @classmethod
    def load(cls, path: Path) -> Process | None:
        """Return the process that `save` wrote to `path`, if it still runs."""
        try:
            pid, ticks = (int(word) for word in path.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        process = cls(pid, ticks)
        return process if process.alive() else None

    @staticmethod
    def written(path: Path) -> bool:
        """Return whether `path` has the format of `save`; its process may have ended."""
        with contextlib.suppress(OSError, ValueError):
            return len([int(word) for word in path.read_text().split()]) == 2
        return False

    def save(self, path: Path) -> None:
        """Write pid and start time to `path`."""
        write_atomic(path, f"{self.pid} {self.ticks}\n")

    def alive(self) -> bool:
        """Return whether the process still runs; a zombie does not."""
        return self.ticks != 0 and start_ticks(self.pid) == self.ticks

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process and to no other; do nothing if it is gone. Raises Failed on a shortage of
        descriptors or memory: nothing is sent then."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        except OSError as error:
            raise Failed(f"cannot signal process {self.pid}: {error.strerror}", hint=_SHORT_HINT) from error
        try:
            if self.alive():
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    async def gone(self) -> None:
        """Return once the process has ended; reap it if it is a child. On a shortage of descriptors or memory it does
        not count as ended: the check is repeated."""
        logged = False
        while True:
            try:
                await self._gone()
                return
            except (Failed, OSError, MemoryError) as error:
                if not logged:
                    log.error("cannot wait for the end of process %d yet: %s", self.pid, error)
                logged = True
            await asyncio.sleep(LOOK_PAUSE_S)

    async def _gone(self) -> None:
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        try:
            # A process whose first thread has ended is shown as a zombie while other threads still run and write. The
            # pidfd reports the end of the last thread.
            if _stat(self.pid)[1] == self.ticks:
                loop.add_reader(handle, _mark, ended)
                try:
                    await ended
                finally:
                    loop.remove_reader(handle)
        finally:
            os.close(handle)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)  # noqa: ASYNC222 (WNOHANG does not wait)

    async def stop(self, *, grace: float, deadline: float = 10.0) -> None:
        """Send SIGTERM, then SIGKILL after `grace` seconds (0: at once). Raises Failed if it has not ended `deadline`
        seconds after that."""
        if grace > 0:
            self.send(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self.gone()
                    return
        self.send(signal.SIGKILL)
        try:
            async with asyncio.timeout(deadline):
                await self.gone()
        except TimeoutError as error:
            raise Failed(
                f"process {self.pid} does not end", hint=f"it hangs in the kernel: cat /proc/{self.pid}/stack"
            ) from error


def open_log(path: Path) -> BinaryIO:
    """Open `path` for appending; only its owner, root, can read it."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)  # an older version made it with another mode
    return os.fdopen(handle, "ab")


def trim_log(path: Path) -> None:
    """Limit the log that a program writes to `path`: above LOG_MAX_BYTES its end is copied to NAME.old, and the file is
    emptied. The program appends, so it continues at the beginning. Lines that it writes in between are lost. Raises
    OSError."""
    try:
        with path.open("rb+") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= LOG_MAX_BYTES:
                return
            file.seek(size - LOG_KEEP_BYTES)
            write_atomic(path.with_name(f"{path.name}.old"), file.read(LOG_KEEP_BYTES))
            file.truncate(0)
    except FileNotFoundError:
        return


def _mark(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


class Service:
    """A program that is kept running: adopted after a restart of veeryd, and started again when it ends. Its log is
    limited, since it is in memory (/run)."""

    def __init__(
        self,
        name: str,
        command: Callable[[], Sequence[str | Path]],
        *,
        run: Path,
        env: Mapping[str, str] | None = None,
        started: Callable[[], Awaitable[None]] | None = None,
        pause: float = 0.5,
    ) -> None:
        """`command` returns the argv at each start. `run` is the folder of NAME.pid and NAME.log. `started` is awaited
        after each start or adoption. A restart waits `pause` seconds (doubled at each failure, up to 10)."""
        self.name, self._command, self._env, self._started = name, command, env, started
        self._pid_file, self._log_file, self._pause = run / f"{name}.pid", run / f"{name}.log", pause
        self.process: Process | None = None
        self._ends: deque[float] = deque(maxlen=100)

    def ends(self, within: float) -> int:
        """Return how often the program ended, or did not start, in the last `within` seconds."""
        now = asyncio.get_running_loop().time()
        return sum(1 for each in self._ends if now - each <= within)

    async def run(self) -> None:
        """Adopt or start the program, wait for its end, and repeat, until cancelled; the program then keeps running."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._trim(), name=f"trim {self._log_file.name}")
            await self._keep_running()

    async def _trim(self) -> None:
        logged = ""
        while True:
            try:
                trim_log(self._log_file)
                logged = ""
            except OSError as error:
                if str(error) != logged:
                    log.warning("cannot trim %s: %s", self._log_file, error)
                logged = str(error)
            await asyncio.sleep(TRIM_INTERVAL_S)

    async def _keep_running(self) -> None:
        wait = self._pause
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                self.process = Process.load(self._pid_file)
                if self.process is None:
                    self.process = Process.spawn(self._command(), log_file=self._log_file, env=self._env)
                    self.process.save(self._pid_file)
                    priority.share(self.process.pid)
                    log.info("%s started, pid %d", self.name, self.process.pid)
                else:
                    log.info("%s found running, pid %d", self.name, self.process.pid)
                if self._started:
                    await self._started()
            except (Refused, Failed, OSError) as error:
                log.error("%s does not start: %s", self.name, error)
            if self.process is not None:
                await self.process.gone()
                self.process = None
                log.error("%s ended; see %s", self.name, self._log_file)
            self._ends.append(loop.time())
            wait = self._pause if loop.time() - begun > 10 else min(wait * 2, 10.0)
            await asyncio.sleep(wait)

    async def stop(self) -> None:
        """End the program (only when this node stops permanently). Call it after cancelling `run`."""
        process = self.process or Process.load(self._pid_file)
        if process is not None:
            await process.stop(grace=5)
        self._pid_file.unlink(missing_ok=True)
