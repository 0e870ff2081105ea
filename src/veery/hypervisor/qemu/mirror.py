"""Local disks that go along on a move: the target's QEMU serves its empty files by NBD, the source's mirrors into them.

This is QEMU's own way for storage that is not shared (docs/interop/live-block-operations.rst; QAPI's block-core.json
and block-export.json). A mirror in copy mode write-blocking holds each write of the guest until the target has it too,
so it converges whatever the guest does. The memory copy then pauses before its switch-over (pause-before-switchover):
the processors are stopped, the mirrors are ended there, and both disks are the same when the target is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.host import tasks
from veery.host.clock import Clock
from veery.hypervisor.base import DiskFull, Report
from veery.hypervisor.qemu import lending
from veery.hypervisor.qemu.build import disk_id
from veery.hypervisor.qemu.domain import Domain
from veery.hypervisor.qemu.monitor import CommandError
from veery.hypervisor.qemu.process import Stage, listening
from veery.model.move import CopyResult, MoveProgress, MoveSettings, Phase
from veery.model.volume import CarriedDisk, LocalDisk

log = logging.getLogger(__name__)

PREFIX = "mirror-"
"""The prefix of the names of mirror jobs and of their targets."""
TLS_OBJECT, AUTHZ_OBJECT, LISTENER = "disk-tls", "disk-peer", "disk-listener"
OPEN_DEADLINE_S = 20.0
END_DEADLINE_S = 30.0
POLL_INTERVAL_S = 0.2
NO_SPACE = os.strerror(errno.ENOSPC)
BURST = 16 << 20
"""Bytes that a job with a speed limit has under way before it rests (block/mirror.c: 16 requests of 1 MiB)."""


# ---- the disks


async def local_disks(domain: Domain) -> tuple[CarriedDisk, ...]:
    """See DiskMover.local_disks. Raises Failed, OutcomeUnknown."""
    mine = [
        (disk.spec.vdev, disk_id(disk.spec), disk.source)
        for disk in domain.record.attachments.disks
        if isinstance(disk.source, LocalDisk) and disk.spec.readwrite and not disk.spec.cdrom
    ]
    if not mine:
        return ()
    nodes = await domain.monitor.execute("query-named-block-nodes", {"flat": True})
    sizes = {node["node-name"]: node["image"]["virtual-size"] for node in nodes}
    found = []
    for vdev, name, source in mine:
        stat = Path(source.path).stat()
        found.append(
            CarriedDisk(
                vdev=vdev,
                path=source.path,
                format=source.format,
                block=source.block,
                size=sizes[name],
                allocated=sizes[name] if source.block else stat.st_blocks * 512,
                inode=0 if source.block else stat.st_ino,
            )
        )
    return tuple(found)


# ---- a move's target


def socket_of(domain: Domain) -> Path:
    """Return the path of the socket that serves a half domain's disks."""
    return domain.home.path / "nbd"


async def export(domain: Domain, vdevs: Sequence[str], *, tls: Path | None, peer: str) -> Path:
    """See DiskMover.export_disks. `tls` is the folder of the node's certificates, None for a plain stream."""
    if domain.record.stage is not Stage.INCOMING:
        raise Refused(f"{domain.record.spec.name} is not an arriving domain: its disks cannot be exported")
    path = socket_of(domain)
    server: dict[str, Any] = {"addr": {"type": "unix", "data": {"path": str(path)}}}
    if tls is not None:
        await _certify(domain, tls, "server")
        await _object(domain, AUTHZ_OBJECT, **{"qom-type": "authz-simple", "identity": f"CN={peer}"})
        server |= {"tls-creds": TLS_OBJECT, "tls-authz": AUTHZ_OBJECT}
    if domain.home.apart:  # QEMU cannot make the socket itself
        with listening(path) as listener:
            await domain.monitor.pass_fd(LISTENER, listener.fileno())
        server["addr"] = {"type": "fd", "data": {"str": LISTENER}}
    await domain.monitor.execute("nbd-server-start", server)
    for vdev in vdevs:
        options = {"type": "nbd", "id": f"export-{vdev}", "node-name": f"disk-{vdev}", "name": vdev, "writable": True}
        await domain.monitor.execute("block-export-add", options)
    return path


async def unexport(domain: Domain) -> None:
    """Stop serving the disks. Do this before the processors start: until then the device does not claim its disk, and
    afterwards it does not share it. Idempotent. Raises Failed, OutcomeUnknown."""
    path = socket_of(domain)
    if not path.exists():
        return
    with contextlib.suppress(CommandError):  # "NBD server not running"
        await domain.monitor.execute("nbd-server-stop", deadline=OPEN_DEADLINE_S)
    path.unlink(missing_ok=True)
    for name in (TLS_OBJECT, AUTHZ_OBJECT):
        with contextlib.suppress(CommandError):
            await domain.monitor.execute("object-del", {"id": name})


# ---- a move's source


class Mirrors:
    """The open mirrors of one domain. `switch_over` ends them in order, `drop` at any time."""

    def __init__(self, domain: Domain, vdevs: Sequence[str], clock: Clock) -> None:
        """Prepare the mirrors of `vdevs`; nothing happens before `copy`."""
        self.domain, self._clock = domain, clock
        self.jobs = {f"{PREFIX}{vdev}": vdev for vdev in vdevs}
        self._bandwidth = 0
        self._tuned = 0.0  # when that was changed last
        self._news = asyncio.Event()
        self._ended: dict[str, str] = {}  # job: its error, "" for none
        self._migration = ""
        self.switched = False

    async def copy(self, through: str, settings: MoveSettings, report: Report, *, tls: Path | None, peer: str) -> None:
        """Start all mirrors and wait until each is complete. Raises Failed; nothing is then left of them."""
        domain, self._bandwidth = self.domain, settings.bandwidth
        domain.update(stage=Stage.SENDING)
        domain.listeners.add(self._hear)
        domain.mirroring = self
        try:
            extra: dict[str, Any] = {}
            if tls is not None:
                await _certify(domain, tls, "client")
                extra = {"tls-creds": TLS_OBJECT, "tls-hostname": peer}
            for job, vdev in self.jobs.items():
                await self._start(job, vdev, through, extra)
            await self._await_synced(settings.stall, report)
            domain.mirrors = self
        except BaseException:
            await tasks.to_the_end(self.give_up())
            raise
        finally:
            domain.mirroring = None

    async def tune(self, bandwidth: int) -> None:
        """See DiskMover.tune_disks. A mirror that starts later gets the new speed, and one that has ended needs
        none."""
        self._bandwidth, self._tuned = bandwidth, self._clock.now()
        for job in self.jobs:
            with contextlib.suppress(CommandError):
                await self.domain.monitor.execute("block-job-set-speed", {"device": job, "speed": self._speed()})

    async def switch_over(self) -> None:
        """Wait for the memory copy's pause, end the mirrors, let the copy continue. Raises Failed when a mirror
        breaks."""
        execute = self.domain.monitor.execute
        while self._migration != "pre-switchover":
            self._check()
            if not await self._change(1.0):  # an event may have been missed while the monitor was away
                with contextlib.suppress(VeeryError):
                    self._migration = str((await execute("query-migrate", deadline=2)).get("status", ""))
        begun = self._clock.now()
        for job in self.jobs:
            await execute("block-job-cancel", {"device": job})  # a complete mirror ends in order here
        async with _within(f"{self.domain.record.spec.name}: its disks were not flushed"):
            while len(self._ended) < len(self.jobs):
                await self._change(POLL_INTERVAL_S)
                self._check()
        for job in self.jobs:
            await execute("blockdev-del", {"node-name": job})
        self.switched = True
        took = (self._clock.now() - begun) * 1000
        log.info("domain=%s its %d mirrors ended in %.0f ms", self.domain.record.spec.name, len(self.jobs), took)
        await execute("migrate-continue", {"state": "pre-switchover"})

    async def drop(self) -> None:
        """End the remaining mirrors at once; the domain's own disks are as they were. Never raises. Where QEMU does not
        obey, the domain still has mirrors, and `end` tries again."""
        self.domain.listeners.discard(self._hear)
        self.domain.mirrors = self
        try:
            await sweep(self.domain, self._clock)
            self.domain.mirrors = None
        except VeeryError as error:
            log.error("domain=%s its mirrors could not be ended: %s", self.domain.record.spec.name, error.message)

    async def give_up(self) -> None:
        """Do what `drop` does, and mark the domain, which has run all the time, as a normal one again. Never raises."""
        await self.drop()
        if not self.domain.gone.is_set() and self.domain.mirrors is None:
            self.domain.update(stage=Stage.RUNNING)

    # ---- inside

    def _speed(self) -> int:
        """Return the speed of one mirror. 0 is unlimited for QEMU, so a limit that is smaller than the number of
        mirrors is 1."""
        return max(self._bandwidth // len(self.jobs), 1) if self._bandwidth else 0

    async def _start(self, job: str, vdev: str, through: str, extra: dict[str, Any]) -> None:
        node = {
            "driver": "nbd",
            "node-name": job,
            "server": {"type": "unix", "path": through, "abstract": True},
            "export": vdev,
            "discard": "unmap",  # so that zeros here take no space there
            **extra,
        }
        await self.domain.monitor.execute("blockdev-add", node, deadline=OPEN_DEADLINE_S)
        mirror = {
            "job-id": job,
            "device": f"disk-{vdev}",
            "target": job,
            "sync": "full",
            "copy-mode": "write-blocking",
            "speed": (speed := self._speed()),
        }
        await self.domain.monitor.execute("blockdev-mirror", mirror, deadline=OPEN_DEADLINE_S)
        if self._speed() != speed:  # it was changed while the job was starting
            await self.tune(self._bandwidth)

    async def _await_synced(self, stall: float, report: Report) -> None:
        name, now = self.domain.record.spec.name, self._clock.now()
        moved, before, rate = now, (now, 0), 0.0
        while True:
            self._check()
            rows: list[dict[str, Any]] = []
            with contextlib.suppress(OutcomeUnknown):
                rows = await self.domain.monitor.execute("query-block-jobs", deadline=2)
            mine = [row for row in rows if row["device"] in self.jobs]
            now, done = self._clock.now(), sum(row["offset"] for row in mine)
            if mine and done != before[1]:
                fresh = (done - before[1]) / max(now - before[0], 0.001)
                rate = fresh if not rate else 0.7 * rate + 0.3 * fresh
                moved, before = now, (now, done)
            if len(mine) == len(self.jobs):
                total = sum(row["len"] for row in mine)
                left = total - done
                report(MoveProgress(phase=Phase.COPY, step="disks", rate=rate, disk_total=total, disk_remaining=left))
                if all(row["ready"] for row in mine):
                    return
            pause = BURST * len(self.jobs) / self._bandwidth if self._bandwidth else 0.0
            if now - max(moved, self._tuned) > stall + pause:
                raise Failed(
                    f"{name}: no part of its disks was copied for {stall:g} s",
                    hint="is the path to the target up?",
                )
            await self._change(POLL_INTERVAL_S)

    def _check(self) -> None:
        """Raise Failed for a mirror that broke."""
        for job, error in self._ended.items():
            if error:
                kind = DiskFull if NO_SPACE in error else Failed
                raise kind(
                    f"{self.domain.record.spec.name}: the copy of its {self.jobs[job]} broke: {error}",
                    hint="does the target still have space for it? --disk-dir names another folder there",
                )

    def _hear(self, name: str, data: Mapping[str, Any]) -> None:
        job = str(data.get("device", ""))
        if name == "MIGRATION":
            self._migration = str(data["status"])
        elif name == "BLOCK_JOB_COMPLETED" and job in self.jobs:
            self._ended[job] = str(data.get("error", ""))
        elif name == "BLOCK_JOB_CANCELLED" and job in self.jobs:
            self._ended[job] = "it was cancelled"
        elif name != "BLOCK_JOB_READY":
            return
        self._news.set()

    async def _change(self, seconds: float) -> bool:
        """Return whether an event arrived within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True


async def send(mirrors: Mirrors, sending: Coroutine[Any, Any, CopyResult]) -> CopyResult:
    """Run `sending`, the memory copy of a domain whose disks are mirrored, and end the mirrors in its pause.

    No mirror is left in any case. Raises Failed when a mirror breaks: the copy is then undone. A cancellation that
    comes meanwhile does not hide why, as it often follows from it: the target sees its stream end."""
    domain = mirrors.domain
    try:
        await _pausing(domain, on=True)
    except BaseException:
        sending.close()
        await tasks.to_the_end(mirrors.give_up())
        raise
    copying = asyncio.create_task(sending)
    switching = asyncio.create_task(mirrors.switch_over())
    try:
        await asyncio.wait({copying, switching}, return_when=asyncio.FIRST_COMPLETED)
        if switching.done() and switching.exception():
            copying.cancel()
            await asyncio.wait({copying})
            await switching
        result = await copying
        if not mirrors.switched:
            raise Failed(f"{domain.record.spec.name}: its memory was copied before its disks were complete")
        return result
    except asyncio.CancelledError:
        if broke := _error(switching):
            raise broke from None
        raise
    finally:
        _, cancelled = await tasks.through(_clear(mirrors, copying, switching))
        if cancelled is not None and _error(switching) is None:
            raise cancelled


async def _clear(mirrors: Mirrors, *left: asyncio.Task[Any]) -> None:
    """End the tasks of a copy, and then its mirrors."""
    await tasks.stop(*left)
    await mirrors.drop()


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


async def end(domain: Domain, clock: Clock) -> None:
    """End the mirrors of a domain held by a move, also those of an earlier run of veeryd. Raises Failed,
    OutcomeUnknown: call it again."""
    if domain.mirrors is None and domain.record.stage is not Stage.SENDING:
        return
    async with _within(f"{domain.record.spec.name}: QEMU does not answer"):
        await domain.met()
    await sweep(domain, clock)
    domain.mirrors = None


async def sweep(domain: Domain, clock: Clock) -> None:
    """End every mirror that a move has left. Idempotent. Raises Failed, OutcomeUnknown."""
    execute, until = domain.monitor.execute, clock.now() + END_DEADLINE_S
    while jobs := [row["device"] for row in await execute("query-block-jobs") if row["device"].startswith(PREFIX)]:
        if clock.now() > until:
            raise Failed(f"{domain.record.spec.name}: {', '.join(jobs)} does not end")
        for job in jobs:
            with contextlib.suppress(CommandError):  # it has just ended
                await execute("block-job-cancel", {"device": job, "force": True})
        await asyncio.sleep(0.05)
    for node in await execute("query-named-block-nodes", {"flat": True}):
        if node["node-name"].startswith(PREFIX):
            with contextlib.suppress(CommandError):
                await execute("blockdev-del", {"node-name": node["node-name"]})
    with contextlib.suppress(CommandError):
        await execute("object-del", {"id": TLS_OBJECT})
    await forget_pause(domain)


async def forget_pause(domain: Domain) -> None:
    """Let later memory copies run without the pause. Nothing happens while a copy is under way. Raises Failed,
    OutcomeUnknown."""
    with contextlib.suppress(CommandError):
        await _pausing(domain, on=False)


async def _pausing(domain: Domain, *, on: bool) -> None:
    """Set whether a memory copy pauses before its switch-over and waits for migrate-continue."""
    wanted = [{"capability": "pause-before-switchover", "state": on}]
    await domain.monitor.execute("migrate-set-capabilities", {"capabilities": wanted})


async def _object(domain: Domain, name: str, **options: Any) -> None:
    with contextlib.suppress(CommandError):
        await domain.monitor.execute("object-del", {"id": name})
    await domain.monitor.execute("object-add", {"id": name, **options})


async def _certify(domain: Domain, tls: Path, endpoint: str) -> None:
    with lending.certificates(domain.home, tls, endpoint) as folder:
        options = {"qom-type": "tls-creds-x509", "dir": str(folder), "endpoint": endpoint, "verify-peer": True}
        await _object(domain, TLS_OBJECT, **options)


@contextlib.asynccontextmanager
async def _within(message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(END_DEADLINE_S):
            yield
    except TimeoutError as error:
        raise Failed(f"{message} within {END_DEADLINE_S:g} s") from error
