"""One domain's QEMU process and its folder.

    RUN/domains/DOMID/
        record.json     the domain's record (with its secrets: mode 0600)
        pid             pid and start time
        qmp0 qmp1       the monitors' sockets; each serves one client at a time: qmp1 is for moves and emergencies
        port            the console's socket
        agent           the socket of the guest's agent (from layout 2 on)
        console.log     what the guest printed
        qemu.log        QEMU's own errors and warnings
    own/            its working directory, where QEMU does not run as root. QEMU can write only to own/tmp, and reaches
                    nothing else here: the folders above are closed to it

The folder's name is the domid, which is short: a socket's path may have 107 bytes. veeryd makes the sockets and listens
on them, and QEMU inherits them. So the first connect need not wait for a file to appear."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from veery.errors import Failed, Refused
from veery.host.files import write_atomic
from veery.host.owner import Owner
from veery.host.priority import ordinary
from veery.host.process import Process, start_ticks
from veery.hypervisor.diskrecord import WrittenDisk, disks_read, disks_written
from veery.hypervisor.qemu import devices, handover
from veery.hypervisor.qemu.argv import KERNEL, RAMDISK, Command, Handed, Wiring, carries
from veery.hypervisor.qemu.build import Build
from veery.hypervisor.qemu.choice import Choice
from veery.hypervisor.qemu.confine import confined
from veery.model import codec
from veery.model.domain import DomainEnd, DomainSpec
from veery.model.volume import AttachedVif, Attachments

WARNINGS_MAX = 8
WARNINGS_READ = 64 << 10  # bytes of a log that are searched
OOM_SCORE = 300  # proc(5), oom_score_adj, -1000 to 1000: a high score ends first when memory runs out
SOCKET_PATH_MAX = 107  # sun_path less its final zero, unix(7)


class Stage(StrEnum):
    """What a domain's process is for, now."""

    STARTING = "starting"  # its start was not reported yet: a restart of veeryd removes it
    RUNNING = "running"  # the domain itself
    INCOMING = "incoming"  # a half domain: only `finish` lets it run
    ARRIVING = "arriving"  # the domain itself, while the rest of its memory still arrives (post-copy)
    SENDING = "sending"  # being copied away, or copied: only `resume` lets it run
    SWITCHING = "having a disk moved"  # it runs while a disk is copied to another LUN: the caller settles it
    SAVING = "saving"  # being written to a file: a restart of veeryd lets it run on


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One domain as written to disk. `held`: paused by a user. `ended`: why it stopped by itself."""

    domid: int
    spec: DomainSpec
    attachments: Attachments
    build: Build
    stage: Stage
    held: bool = False
    ended: DomainEnd | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    domid: int
    spec: DomainSpec
    disks: tuple[WrittenDisk, ...]
    vifs: tuple[AttachedVif, ...]
    build: Build
    stage: Stage
    held: bool
    ended: DomainEnd | None


class Home:
    """The folder of one domain."""

    def __init__(self, path: Path) -> None:
        """`path` need not exist yet."""
        self.path = path
        self.monitors = (path / "qmp0", path / "qmp1")
        self.port = path / "port"
        self.agent = path / "agent"
        self.console_log = path / "console.log"
        self.qemu_log = path / "qemu.log"
        self.own = path / "own"
        self.tmp = self.own / "tmp"
        self._pid, self._record = path / "pid", path / "record.json"

    @property
    def apart(self) -> bool:
        """True if its QEMU runs as a user of its own."""
        return self.own.is_dir()

    def uid(self) -> int:
        """Return the user that runs its QEMU."""
        try:
            return self.tmp.stat().st_uid
        except FileNotFoundError:
            return 0

    def make(self, record: Record, backlog: bytes = b"", owner: Owner | None = None) -> None:
        """Make the folder. `backlog` is the console's earlier output; `owner` will run QEMU (None: root)."""
        if len(os.fsencode(self.monitors[0])) > SOCKET_PATH_MAX:
            raise Refused(f"{self.path}: too long for a socket's path", hint="give veeryd a shorter `run` folder")
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700, parents=True)
        self.console_log.write_bytes(backlog)
        if owner is not None:
            self._make_own(owner)
        self.write(record)

    def _make_own(self, owner: Owner) -> None:
        self.own.mkdir()
        os.chown(self.own, 0, owner.gid)
        self.own.chmod(0o750)
        self.tmp.mkdir(mode=0o700)
        os.chown(self.tmp, owner.uid, owner.gid)

    def copy_boot_files(self, spec: DomainSpec, owner: Owner) -> None:
        """Copy kernel and ramdisk to where QEMU reads them, because it may not be able to read the originals. It reads
        them once, at its start. Raises Failed."""
        for name, path in ((KERNEL, spec.kernel), (RAMDISK, spec.ramdisk)):
            copy = self.own / name
            try:
                if path:
                    shutil.copyfile(path, copy)
                    os.chown(copy, 0, owner.gid)
                    copy.chmod(0o640)
            except OSError as error:
                raise Failed(
                    f"{spec.name}: {path} to {copy}: {error.strerror}", hint="is there room in /run?"
                ) from error

    def drop_boot_files(self) -> None:
        """Remove these copies."""
        for name in (KERNEL, RAMDISK):
            (self.own / name).unlink(missing_ok=True)

    def write(self, record: Record) -> None:
        """Replace the record; nothing happens once the folder is gone."""
        if not self.path.is_dir():
            return
        written = _Written(
            domid=record.domid,
            spec=record.spec,
            disks=disks_written(record.attachments.disks),
            vifs=record.attachments.vifs,
            build=record.build,
            stage=record.stage,
            held=record.held,
            ended=record.ended,
        )
        write_atomic(self._record, codec.encode(written))

    def read(self) -> Record | None:
        """Return the record, None if there is none. Raises Failed where it cannot be decoded."""
        try:
            written = codec.decode(self._record.read_bytes(), _Written)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failed(f"{self._record}: {error.strerror}") from error
        return Record(
            domid=written.domid,
            spec=written.spec,
            attachments=Attachments(domid=written.domid, disks=disks_read(written.disks), vifs=written.vifs),
            build=written.build,
            stage=written.stage,
            held=written.held,
            ended=written.ended,
        )

    def spawn(
        self, argv: Command, attachments: Attachments, build: Build, *, choice: Choice, owner: Owner | None = None
    ) -> Process:
        """Start QEMU. `argv` makes its command line once the descriptors are known; `choice` is the node's. QEMU runs
        as `owner` (None: root), who gets by descriptor what only root may open.

        Raises Failed where something cannot be opened."""
        with contextlib.ExitStack() as ours:
            monitors = tuple(ours.enter_context(listening(path)).fileno() for path in self.monitors)
            port = ours.enter_context(listening(self.port)).fileno()
            agents = (ours.enter_context(listening(self.agent)).fileno(),) if build.layout > 1 else ()
            secrets = {
                devices.secret_id(disk): ours.enter_context(_in_memory(devices.secret(disk)))
                for disk in attachments.disks
                if devices.secret(disk)
            }
            handed = Handed()
            if owner:
                handed = handover.opened(ours, attachments, self.console_log, kvm=build.accel == "kvm")
            vhosts = {
                devices.tap_id(vif): ours.enter_context(handover.vhost_opened())
                for vif in attachments.vifs
                if carries(build, vif, choice)
            }
            wiring = Wiring(
                monitors=monitors,
                console=port,
                console_log=self.console_log,
                secrets=secrets,
                agent=agents[0] if agents else None,
                handed=handed,
                vhosts=vhosts,
                choice=choice,
            )
            passed = (*monitors, port, *agents, *secrets.values(), *handed.all(), *vhosts.values())
            cwd = self.own if owner else Path("/")
            command = ordinary(confined(argv(wiring)))
            process = Process.spawn(command, log_file=self.qemu_log, pass_fds=passed, cwd=cwd, owner=owner)
        process.save(self._pid)
        with contextlib.suppress(OSError):  # its later threads inherit the processors
            if processors := choice.processors():
                os.sched_setaffinity(process.pid, processors)
        with contextlib.suppress(OSError):  # veeryd, etcd and tgtd must outlive any one domain
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(OOM_SCORE))
        return process

    def process(self) -> Process | None:
        """Return the QEMU of this folder, if it runs; also one whose pid was not written in time, or cannot be read."""
        if Process.written(self._pid):
            return Process.load(self._pid)
        mark = os.fsencode(self.console_log)
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if mark in entry.read_bytes():
                    pid = int(entry.parent.name)
                    return Process(pid, start_ticks(pid))
        return None

    def words(self) -> str:
        """Return QEMU's last errors, "" if there are none: at most two lines, without its name and options."""
        try:
            lines = self.qemu_log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        said, other = [], ""
        for line in lines:  # advice without the program's name may follow an error: skip it
            match = re.match(r"(?:\S+Z )?qemu-system-\w+: (?:-\S+ \{.*?\}: |-\S+ \S+: )?(.*)", line)
            if match is None:
                other = line
            elif not re.match(r"warning: |terminating on signal", match.group(1)):
                said.append(match.group(1))
        return "; ".join(said[-2:]) or other

    def warnings(self) -> tuple[str, ...]:
        """Return QEMU's warnings, each once, `WARNINGS_MAX` at most: a feature left out, a clock that it cannot
        scale."""
        try:
            with self.qemu_log.open("rb") as log:
                text = log.read(WARNINGS_READ).decode(errors="replace")
        except FileNotFoundError:
            return ()
        found = re.findall(r"^(?:\S+Z )?qemu-system-\w+: .*?(warning: .{1,200})", text, re.MULTILINE)
        return tuple(dict.fromkeys(one for one in found if not _expected(one)))[:WARNINGS_MAX]

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def _expected(warning: str) -> bool:
    """Return whether QEMU only warns that the guest's addresses are narrower than the processor's, which veery asked
    for."""
    match = re.search(r"Host physical bits \((\d+)\) does not match phys-bits property \((\d+)\)", warning)
    return match is not None and int(match.group(1)) > int(match.group(2))


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Yield a unix socket for QEMU to listen on."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(4)
        yield listener


@contextlib.contextmanager
def _in_memory(text: str) -> Iterator[int]:
    """Yield a descriptor of a file that exists only in memory (memfd_create(2)), holding `text`."""
    handle = os.memfd_create("secret")
    try:
        os.write(handle, text.encode())
        yield handle
    finally:
        os.close(handle)
