"""Long-lived outside programs that outlive us: etcd, tgtd, QEMU.

A `Process` is named by pid and start time, so that a pid used again is not mistaken for it, and watched by a
pidfd, so that its end is proven and not guessed. `Service` keeps one of them running."""

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
from veery.host.files import write_atomic
from veery.host.owner import Owner

log = logging.getLogger(__name__)

LOG_MAX = 1 << 20  # bytes
LOG_KEEP = 256 << 10  # bytes of it that stay to be read
TRIM_EVERY_S = 5.0
LOOK_AGAIN_S = 0.5  # before a process that could not be seen is looked for again
_SHORT_HINT = "ls /proc/$(pidof -x veeryd)/fd | wc -l; see LimitNOFILE"


def start_ticks(pid: int) -> int:
    """When process `pid` began, in clock ticks since boot (proc(5), field 22); 0 if it is gone or a zombie. Raises
    Failed where that cannot be seen for now."""
    state, ticks = _stat(pid)
    return 0 if state in "ZX" else ticks


def _stat(pid: int) -> tuple[str, int]:
    """State and start time of `pid`, also of a zombie; ("X", 0) if it is gone. Raises Failed where /proc cannot be read
    for now: nothing is known of the process then."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    except OSError as error:  # too many open files, too little memory
        raise Failed(f"/proc/{pid}/stat: {error.strerror}", hint=_SHORT_HINT) from error
    return fields[0], int(fields[19])


@dataclass(frozen=True, slots=True)
class Process:
    """One running program: `pid`, and `ticks`, its start time."""

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
        """Start `argv` in a session of its own, its output appended to `log_file`. It is not ended when we are. It runs
        as `owner`, without further groups, where one is given; `cwd` and what is passed may be closed to that user.

        Raises Refused when the program is not installed."""
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
                    f"{words[0]} is not installed", hint=f"install the package that has {words[0]}"
                ) from error
            except PermissionError as error:
                whom = f" by user {owner.uid}" if owner else ""
                raise Refused(
                    f"{words[0]} cannot be started{whom}: {error.strerror}", hint=f"see ls -l $(command -v {words[0]})"
                ) from error
        child.returncode = 0  # ours to reap below, not Popen's
        return cls(child.pid, start_ticks(child.pid))

    @classmethod
    def load(cls, path: Path) -> Process | None:
        """The process that `save` wrote to `path`, if it still runs."""
        try:
            pid, ticks = (int(word) for word in path.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        process = cls(pid, ticks)
        return process if process.alive() else None

    @staticmethod
    def written(path: Path) -> bool:
        """Whether `path` holds what `save` writes, of a process that may have ended."""
        with contextlib.suppress(OSError, ValueError):
            return len([int(word) for word in path.read_text().split()]) == 2
        return False

    def save(self, path: Path) -> None:
        """Write pid and start time to `path`."""
        write_atomic(path, f"{self.pid} {self.ticks}\n")

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return self.ticks != 0 and start_ticks(self.pid) == self.ticks

    def send(self, number: signal.Signals) -> None:
        """Send a signal, to it and to no other; nothing happens if it is gone. Raises Failed where we are short of
        descriptors or memory: nothing is sent then."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        except OSError as error:
            raise Failed(f"process {self.pid} cannot be reached: {error.strerror}", hint=_SHORT_HINT) from error
        try:
            if self.alive():
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    async def gone(self) -> None:
        """Return once it has ended (reaping it if it is our child). Where that cannot be seen for now, for want of
        descriptors or memory, it is not taken for ended: we look again."""
        said = False
        while True:
            try:
                await self._gone()
                return
            except (Failed, OSError, MemoryError) as error:
                if not said:
                    log.error("the end of process %d cannot be waited for yet: %s", self.pid, error)
                said = True
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _gone(self) -> None:
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        try:
            # A process whose first thread has ended shows as a zombie while others still run, and write: ask the
            # pidfd, which tells of the last one's end.
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
        """SIGTERM, then SIGKILL after `grace` seconds (0: at once). Raises Failed if it is still there
        `deadline` seconds after that."""
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
                f"process {self.pid} does not end", hint="it hangs in the kernel: look at its /proc/PID/stack"
            ) from error


def open_log(path: Path) -> BinaryIO:
    """`path`, to append to; only root reads it."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)  # one of an older version
    return os.fdopen(handle, "ab")


def trim_log(path: Path) -> None:
    """Keep what a program of ours writes to `path` bounded: beyond LOG_MAX bytes the end of it goes to NAME.old and
    the file is emptied. The program appends, so it goes on at the beginning. What it writes in between is lost.
    Raises OSError."""
    try:
        with path.open("rb+") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= LOG_MAX:
                return
            file.seek(size - LOG_KEEP)
            write_atomic(path.with_name(f"{path.name}.old"), file.read(LOG_KEEP))
            file.truncate(0)
    except FileNotFoundError:
        return


def _mark(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


class Service:
    """Keeps one outside program running: adopts it after a restart of ours, starts it again when it ends. Keeps its
    log bounded, for that is in memory (/run)."""

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
        """`command` gives the argv at each start; `run` holds NAME.pid and NAME.log; `started` is awaited
        after each start or adoption; `pause` seconds pass before a restart (doubled while it keeps
        failing, up to 10)."""
        self.name, self._command, self._env, self._started = name, command, env, started
        self._pid_file, self._log_file, self._pause = run / f"{name}.pid", run / f"{name}.log", pause
        self.process: Process | None = None
        self._ends: deque[float] = deque(maxlen=100)

    def ends(self, within: float) -> int:
        """How often the program ended, or did not start, in the last `within` seconds."""
        now = asyncio.get_running_loop().time()
        return sum(1 for each in self._ends if now - each <= within)

    async def run(self) -> None:
        """For ever: adopt or start, wait for its end, again. Cancel to stop watching; the program runs on."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._trim(), name=f"trim {self._log_file.name}")
            await self._keep_running()

    async def _trim(self) -> None:
        said = ""
        while True:
            try:
                trim_log(self._log_file)
                said = ""
            except OSError as error:
                if str(error) != said:
                    log.warning("%s is not trimmed: %s", self._log_file, error)
                said = str(error)
            await asyncio.sleep(TRIM_EVERY_S)

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
        """End the program (only when this node stops for good). Call after cancelling `run`."""
        process = self.process or Process.load(self._pid_file)
        if process is not None:
            await process.stop(grace=5)
        self._pid_file.unlink(missing_ok=True)
