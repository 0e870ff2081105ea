"""Switching a running domain's disk from one LUN to another: a mirror, a short pause, a pivot.

QAPI's block-core.json; docs/interop/live-block-operations.rst. The mirror begins in the background, where the guest's
writes wait only for the old LUN: a target that hangs meanwhile blocks the copy and not the guest. When little is left,
or the guest writes so much that the rest does not shrink, the copy mode becomes write-blocking (block-job-change). Then
each write is acknowledged when both LUNs have it, so the copy ends whatever the guest does. For the switch-over the
processors are stopped: nothing is under way then and both LUNs are the same. So it does not matter which of them the
record names if QEMU dies there.

While it is only a copy, the new LUN is opened with a timeout, after which block/iscsi.c connects again. The disk itself
has no timeout, because a guest should wait for its target. So the mirror writes into a raw node, which is the disk's
`front` from then on. At the end that node's child is opened again without a timeout (blockdev-reopen)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host import tasks
from veery.host.clock import Clock
from veery.hypervisor.qemu import devices
from veery.hypervisor.qemu.build import disk_id
from veery.hypervisor.qemu.domain import Domain
from veery.hypervisor.qemu.hotplug import FRONT, front
from veery.hypervisor.qemu.monitor import CommandError
from veery.hypervisor.qemu.process import Stage
from veery.model.volume import AttachedDisk, IscsiLun

log = logging.getLogger(__name__)

TIMEOUT_S = 5  # for a request to the new LUN
LITTLE = 32 << 20  # bytes left; below it the guest's writes begin to wait for both LUNs
NO_PROGRESS_S = 20.0  # they also begin to wait when the rest has not shrunk for so long
OPEN_DEADLINE_S = 20.0  # QEMU answers nothing else while it logs into a LUN
END_DEADLINE_S = 20.0
STALL_S = 30.0  # a copy without a limit is given up after so long without a byte
BURST = 16 << 20  # bytes under way before a job with a speed limit rests (block/mirror.c)
POLL_INTERVAL_S = 0.2

Copied = Callable[[int, int], None]


async def copy(domain: Domain, vdev: str, lun: IscsiLun, rate: int, report: Copied) -> None:
    """See DiskSwitcher.copy_disk."""
    disk = _disk(domain, vdev)
    if not isinstance(disk.source, IscsiLun):
        raise Refused(f"{vdev} of {domain.record.spec.name} is not a volume")
    domain.update(stage=Stage.SWITCHING)
    await _mirror(domain, disk, lun, sync="full", rate=rate, mode="background")
    await _await_synced(domain, vdev, rate, report)


async def over(domain: Domain, vdev: str, lun: IscsiLun, commit: Callable[[], Awaitable[None]], clock: Clock) -> float:
    """See DiskSwitcher.switch_disk. It is never cut short."""
    return await tasks.to_the_end(_over(domain, vdev, lun, commit, clock))


async def settle(domain: Domain, vdev: str, lun: IscsiLun | None) -> None:
    """See DiskSwitcher.settle_disk."""
    if domain.record.stage is not Stage.SWITCHING:
        return
    async with _within(f"{domain.record.spec.name}: QEMU does not answer"):
        await domain.met()
    if domain.gone.is_set():
        raise Refused(f"{domain.record.spec.name} has ended")
    if lun is None:
        await _forget(domain, vdev)
        await _go_on(domain)
    else:
        await _pivot(domain, _disk(domain, vdev), lun)
        await _go_on(domain)
        await _tidy(domain, _disk(domain, vdev))
    domain.update(stage=Stage.RUNNING)


async def _go_on(domain: Domain) -> None:
    if not domain.record.held and domain.record.ended is None and await domain.status() == "paused":
        await domain.cont()


# ---- the copy


async def _mirror(
    domain: Domain, disk: AttachedDisk, lun: IscsiLun, *, sync: str, rate: int = 0, mode: str = "write-blocking"
) -> None:
    """Start the mirror to `lun`. Raises Failed."""
    execute, vdev = domain.monitor.execute, disk.spec.vdev
    now = await front(domain, vdev)
    new = f"{FRONT}{vdev}-{_number(now) + 1}"
    opened = devices.blockdev(replace(disk, source=lun))
    assert opened is not None
    await execute("blockdev-add", {**opened, "node-name": _trial(vdev), "timeout": TIMEOUT_S}, deadline=OPEN_DEADLINE_S)
    discard = "ignore" if disk.spec.discard is False else "unmap"
    await execute("blockdev-add", {"driver": "raw", "node-name": new, "file": _trial(vdev), "discard": discard})
    mirror = {"device": now, "target": new, "sync": sync, "copy-mode": mode, "speed": rate}
    await execute("blockdev-mirror", {"job-id": _job(vdev), "auto-dismiss": False, **mirror}, deadline=OPEN_DEADLINE_S)


async def _await_synced(domain: Domain, vdev: str, rate: int, report: Copied) -> None:
    """Return when the mirror is in step with the disk. Raises Failed."""
    loop, name = asyncio.get_running_loop(), domain.record.spec.name
    begun = moved = nearer = loop.time()
    before, least, blocking = -1, 1 << 62, False
    while True:
        job = None
        with contextlib.suppress(OutcomeUnknown):  # QEMU logs in again, or is busy
            job = await _standing(domain, vdev)
        now = loop.time()
        if job is not None:
            left = job["len"] - job["offset"]
            if job["offset"] != before:
                moved, before = now, job["offset"]
            if left < least:
                nearer, least = now, left
            report(job["offset"], job["len"])
            # bytes flow, but the rest does not shrink
            hopeless = now - nearer > NO_PROGRESS_S and now - moved < NO_PROGRESS_S / 4
            if not blocking and now > begun and (job["ready"] or left < LITTLE or hopeless):
                change = {"id": _job(vdev), "type": "mirror", "copy-mode": "write-blocking"}
                await domain.monitor.execute("block-job-change", change)
                blocking = True
            elif job["ready"] and job.get("actively-synced", True):
                return
        if now - moved > STALL_S + (BURST / rate if rate else 0.0):
            raise Failed(
                f"{name}: no part of {vdev} was copied for {STALL_S:g} s", hint="is the path to the target up?"
            )
        await asyncio.sleep(POLL_INTERVAL_S)


async def _standing(domain: Domain, vdev: str) -> dict[str, Any]:
    """Return the mirror's job. Raises Failed when it broke."""
    for row in await domain.monitor.execute("query-block-jobs", deadline=2.0):
        if row["device"] == _job(vdev) and row["status"] != "concluded":
            found: dict[str, Any] = row
            return found
    why = ""
    for row in await domain.monitor.execute("query-jobs"):
        if row["id"] == _job(vdev):
            why = f": {row.get('error', 'it ended')}"
    raise Failed(f"{domain.record.spec.name}: the copy of its {vdev} broke{why}", hint="is the target node's tgtd up?")


# ---- the switch-over


async def _over(domain: Domain, vdev: str, lun: IscsiLun, commit: Callable[[], Awaitable[None]], clock: Clock) -> float:
    begun, paused_ms = clock.now(), [0.0]

    def heard(name: str, _: Mapping[str, Any]) -> None:
        if name == "RESUME":
            paused_ms[0] = (clock.now() - begun) * 1000

    domain.listeners.add(heard)
    try:
        await domain.stop()  # both LUNs have all writes
        job = await _standing(domain, vdev)
        if not job["ready"] or not job.get("actively-synced", True):
            raise Failed(f"{domain.record.spec.name}: the copy of its {vdev} fell behind", hint="try again")
        await commit()
    except BaseException:
        domain.listeners.discard(heard)
        await settle(domain, vdev, None)
        raise
    try:
        await settle(domain, vdev, lun)
    finally:
        domain.listeners.discard(heard)
    log.info(
        "domain=%s disk=%s switched to %s, paused for %.0f ms", domain.record.spec.name, vdev, lun.portal, paused_ms[0]
    )
    return paused_ms[0]


async def _pivot(domain: Domain, disk: AttachedDisk, lun: IscsiLun) -> None:
    """Give the device `lun`, from any step of the switch. Until it has it, the domain stays paused. Raises Failed,
    OutcomeUnknown."""
    if disk.source == lun:
        return
    vdev = disk.spec.vdev
    job = await _job_row(domain, vdev)
    if (job is None and not await _pivoted(domain, vdev)) or (job is not None and job.get("error")):
        await _forget(domain, vdev)  # the mirror broke; nothing was written since both LUNs were the same
        await _mirror(domain, disk, lun, sync="none")
    await _complete(domain, vdev)
    record = domain.record
    disks = (replace(each, source=lun) if each.spec.vdev == vdev else each for each in record.attachments.disks)
    domain.update(attachments=replace(record.attachments, disks=tuple(disks)))


async def _tidy(domain: Domain, disk: AttachedDisk) -> None:
    """Close the old LUN, and open the new one without a timeout, from any step of this. Raises Failed,
    OutcomeUnknown."""
    execute, vdev = domain.monitor.execute, disk.spec.vdev
    now, name = await front(domain, vdev), disk_id(disk.spec)
    nodes = await _nodes(domain)
    for node in nodes:
        if node.startswith(f"{FRONT}{vdev}-") and node != now:
            await execute("blockdev-del", {"node-name": node}, deadline=OPEN_DEADLINE_S)
    if _trial(vdev) not in nodes:
        return
    if name in nodes:
        with contextlib.suppress(CommandError):  # this node is the new LUN already, and in use
            await execute("blockdev-del", {"node-name": name}, deadline=OPEN_DEADLINE_S)
    if name not in await _nodes(domain):
        opened = devices.blockdev(disk)
        assert opened is not None
        await execute("blockdev-add", opened, deadline=OPEN_DEADLINE_S)
    discard = "ignore" if disk.spec.discard is False else "unmap"
    options = {"driver": "raw", "node-name": now, "file": name, "discard": discard}
    await execute("blockdev-reopen", {"options": [options]}, deadline=OPEN_DEADLINE_S)
    await execute("blockdev-del", {"node-name": _trial(vdev)}, deadline=OPEN_DEADLINE_S)


async def _pivoted(domain: Domain, vdev: str) -> bool:
    """Return whether the device has the mirror's target: of two fronts that one has the higher number."""
    now, nodes = await front(domain, vdev), await _nodes(domain)
    fronts = [node for node in nodes if node.startswith(f"{FRONT}{vdev}-")]
    return _trial(vdev) in nodes and now in fronts and _number(now) == max(map(_number, fronts))


async def _complete(domain: Domain, vdev: str) -> None:
    """Let the mirror switch the device to its target. Raises Failed."""
    execute, asked = domain.monitor.execute, False
    async with _within(f"{domain.record.spec.name}: its {vdev} did not switch in time"):
        while (job := await _job_row(domain, vdev)) is not None:
            if job["status"] == "ready" and not asked:
                await execute("block-job-complete", {"device": _job(vdev)}, deadline=OPEN_DEADLINE_S)
                asked = True
            elif job["status"] == "concluded":
                await execute("job-dismiss", {"id": _job(vdev)})
                if job.get("error"):
                    raise Failed(f"{domain.record.spec.name}: its {vdev} did not switch: {job['error']}")
                return
            await asyncio.sleep(0.005)


async def _forget(domain: Domain, vdev: str) -> None:
    """End the mirror; the domain keeps the disk that it had. Raises Failed, OutcomeUnknown."""
    execute = domain.monitor.execute
    async with _within(f"{domain.record.spec.name}: the copy of its {vdev} cannot end until its target answers"):
        while (job := await _job_row(domain, vdev)) is not None:
            with contextlib.suppress(CommandError):  # it has just ended
                if job["status"] == "concluded":
                    await execute("job-dismiss", {"id": _job(vdev)})
                else:
                    await execute("block-job-cancel", {"device": _job(vdev), "force": True})
            await asyncio.sleep(0.05)
    now = await front(domain, vdev)
    nodes = await _nodes(domain)
    for node in (*(node for node in nodes if node.startswith(f"{FRONT}{vdev}-") and node != now), _trial(vdev)):
        if node in nodes:
            await execute("blockdev-del", {"node-name": node}, deadline=OPEN_DEADLINE_S)


# ---- smaller parts


@contextlib.asynccontextmanager
async def _within(message: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(END_DEADLINE_S):
            yield
    except TimeoutError as error:
        raise Failed(message, hint="the move of the disk is retried automatically") from error


async def _job_row(domain: Domain, vdev: str) -> dict[str, Any] | None:
    rows: list[dict[str, Any]] = await domain.monitor.execute("query-jobs")
    return next((row for row in rows if row["id"] == _job(vdev)), None)


async def _nodes(domain: Domain) -> list[str]:
    rows = await domain.monitor.execute("query-named-block-nodes", {"flat": True})
    return [str(row["node-name"]) for row in rows]


def _disk(domain: Domain, vdev: str) -> AttachedDisk:
    for disk in domain.record.attachments.disks:
        if disk.spec.vdev == vdev:
            return disk
    raise Refused(f"{domain.record.spec.name} has no disk {vdev}")


def _number(node: str) -> int:
    """Return how often the disk was switched before it had this node."""
    return int(node.rpartition("-")[2]) if node.startswith(FRONT) else 0


def _job(vdev: str) -> str:
    return f"switch-{vdev}"


def _trial(vdev: str) -> str:
    """Return the node name of the new LUN, opened with a timeout."""
    return f"trial-{vdev}"
