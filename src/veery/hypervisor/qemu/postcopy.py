"""Post-copy: the domain goes on at its target before all of its memory is there; the rest follows, pages that it
touches first (docs/devel/migration/postcopy.rst; QAPI's migration.json).

The source stops at QEMU's state pre-switchover, where it can still be cancelled; `release` sends it over that edge.
From there on QEMU offers no way back ("Postcopy migration in progress, cannot cancel"). A target that was started with
-S stands with its devices loaded until `cont`, so the owner gate is before it.

While the link is cut the target's main loop may hang on a page that is missing (a device looks at its ring), and then
no command is obeyed but those that QMP takes out of band, on a connection that was greeted before. Therefore the
target keeps one (`Domain.lifeline`), is mended by migrate-pause and migrate-recover alone, and the new stream comes
in by a unix socket: neither a descriptor can be passed then, nor would QEMU's TLS get through its hand-shake, which
the main loop makes. The daemons encrypt that stream.

release-ram is not used: what was sent is kept, for what was on its way when a link broke has to be sent again."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import socket
from pathlib import Path

from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.host.clock import Clock
from veery.host.owner import Owner
from veery.hypervisor.base import Lost, Report, Rest
from veery.hypervisor.qemu import lending
from veery.hypervisor.qemu.domain import Domain
from veery.hypervisor.qemu.monitor import CommandError, Monitor
from veery.hypervisor.qemu.process import Stage
from veery.hypervisor.qemu.transfer import POLL, QUERY_DEADLINE, Transfer, reading
from veery.model.move import CopyOptions

log = logging.getLogger(__name__)

POISED = "pre-switchover"
STREAM = "again"
DEVICES_DEADLINE = 20.0
"""Seconds for the devices' state to be loaded once it has come."""
PAUSE_DEADLINE = 10.0
GONE_DEADLINE = 1.0
SYS_USERFAULTFD, UFFD_DEVICE = 323, Path("/dev/userfaultfd")  # x86-64; linux/userfaultfd.h
UFFD_SWITCH = Path("/proc/sys/vm/unprivileged_userfaultfd")


def obstacle(owner: Owner | None = None) -> str:
    """Why nothing can come in by post-copy on this machine, to a QEMU of `owner` (None: root); "" where it can.

    QEMU asks the same way: the device first, then the system call (util/userfaultfd.c); it needs faults of the kernel
    too, so what vm.unprivileged_userfaultfd=0 leaves to everybody is not enough."""
    if owner is not None:
        return closed(owner, UFFD_DEVICE, UFFD_SWITCH)
    try:
        os.close(os.open(UFFD_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        libc = ctypes.CDLL(None, use_errno=True)
        handle = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
        if handle < 0:
            return f"the kernel gives no userfaultfd: {os.strerror(ctypes.get_errno())}"
        os.close(handle)
    return ""


def closed(owner: Owner, device: Path, switch: Path) -> str:
    """The same for a user that is not root, as far as modes and the switch tell."""
    with contextlib.suppress(OSError):
        if switch.read_text().strip() == "1":
            return ""
    with contextlib.suppress(OSError):
        found = device.stat()
        bits = found.st_mode >> 6 if found.st_uid == owner.uid else found.st_mode >> 3
        if found.st_uid != owner.uid and found.st_gid != owner.gid:
            bits = found.st_mode
        if bits & 0o6 == 0o6:
            return ""
    return (
        f"user {owner.uid}, whom QEMU runs as, gets no userfaultfd: give it {device} (a rule of udev), "
        "or set sysctl vm.unprivileged_userfaultfd=1"
    )


# ---- a move's source


async def allow(transfer: Transfer, means: CopyOptions, bandwidth: int) -> None:
    """Where `means` has post-copy, let a copy that is to begin stand still before its switch-over; `bandwidth` bytes/s
    (0: unlimited) holds for what follows then, too."""
    if not means.post_copy:
        return
    pause = [{"capability": "pause-before-switchover", "state": True}]
    await transfer.monitor.execute("migrate-set-capabilities", {"capabilities": pause})
    await transfer.monitor.execute("migrate-set-parameters", {"max-postcopy-bandwidth": bandwidth})


async def poised(transfer: Transfer, means: CopyOptions) -> bool:
    """Whether the domain stands and waits for `release`. A copy that came to its end without post-copy goes on."""
    if not means.post_copy or transfer.status != POISED:
        return False
    if not transfer.leaving:
        await transfer.monitor.execute("migrate-continue", {"state": POISED})
    return transfer.leaving


async def release(domain: Domain) -> None:
    """As PostCopier.release."""
    try:
        await domain.monitor.execute("migrate-continue", {"state": POISED})
    except CommandError:  # "Migration not in expected state": it is past it
        if domain.record.stage is not Stage.SENDING:
            raise


async def drain(domain: Domain, report: Report, *, stall: float, clock: Clock) -> Rest:
    """As PostCopier.drain."""
    try:
        return await _drain(domain, report, stall, clock)
    except Failed as error:
        with contextlib.suppress(TimeoutError):  # a QEMU that hangs up has usually ended
            async with asyncio.timeout(GONE_DEADLINE):
                await domain.gone.wait()
        if domain.gone.is_set() and not isinstance(error, Lost):
            raise _ended(domain) from error
        raise


def _ended(domain: Domain) -> Lost:
    return Lost(f"{domain.record.spec.name}: its QEMU ended before all of its memory was sent")


async def _drain(domain: Domain, report: Report, stall: float, clock: Clock) -> Rest:
    name = domain.record.spec.name
    async with contextlib.AsyncExitStack() as stack:
        transfer = Transfer(domain, clock)
        stack.push_async_callback(transfer.close)
        await transfer.open()
        moved, last = clock.now(), (-1, -1)
        while True:
            if domain.gone.is_set():
                raise _ended(domain)
            with contextlib.suppress(OutcomeUnknown):
                info = await transfer.query()
                match transfer.status:
                    case "completed":
                        return Rest.SENT
                    case "failed" | "cancelled":
                        raise Lost(f"{name}: {info.get('error-desc') or 'the rest of its memory cannot be sent'}")
                    case "postcopy-paused":
                        return Rest.BROKEN
                progress = reading(info)
                report(progress)
                if (progress.transferred, progress.remaining) != last:
                    last, moved = (progress.transferred, progress.remaining), clock.now()
                elif clock.now() - moved > stall:
                    if not progress.remaining:  # broken off now, QEMU would call it failed: the last bytes may be there
                        return Rest.UNSURE
                    await _pause(transfer, clock)
                    return Rest.BROKEN
            await transfer.change(POLL)


async def _pause(transfer: Transfer, clock: Clock) -> None:
    """Break off a stream in which nothing moves. Raises Failed where QEMU does not."""
    with contextlib.suppress(CommandError):
        await transfer.monitor.execute("migrate-pause", out_of_band=True)
    end = clock.now() + PAUSE_DEADLINE
    while clock.now() < end and not transfer.domain.gone.is_set():
        await transfer.query()
        if transfer.status in {"postcopy-paused", "completed", "failed"}:
            return
        await transfer.change(POLL)
    raise Failed(f"{transfer.domain.record.spec.name}: its stream cannot be broken off")


async def reconnect(domain: Domain, stream: socket.socket, clock: Clock) -> None:
    """As PostCopier.reconnect."""
    address = {"transport": "socket", "type": "fd", "str": STREAM}
    async with contextlib.AsyncExitStack() as stack:
        transfer = Transfer(domain, clock)
        stack.push_async_callback(transfer.close)
        await transfer.open()
        await take_plain_streams(transfer.monitor)
        await transfer.monitor.pass_fd(STREAM, stream.fileno())
        channel = {"channel-type": "main", "addr": address}
        await transfer.monitor.execute("migrate", {"channels": [channel], "resume": True})
        end = clock.now() + PAUSE_DEADLINE
        while clock.now() < end:
            await transfer.query()
            if transfer.status in {"postcopy-active", "completed"}:
                return
            if transfer.status == "postcopy-paused" or domain.gone.is_set():
                break
            await transfer.change(POLL)
        with contextlib.suppress(VeeryError):
            await _pause(transfer, clock)
    raise Failed(f"{domain.record.spec.name}: its stream did not take up again", hint="it is tried again")


# ---- a move's target


async def loaded(transfer: Transfer) -> bool:
    """Whether the half domain has its devices, though not all of its memory. Raises Failed where they do not come."""
    if transfer.status != "postcopy-active":
        return False
    domain = transfer.domain
    try:
        async with asyncio.timeout(domain.patience(DEVICES_DEADLINE)):
            while await domain.status() == "inmigrate":
                if domain.gone.is_set():
                    return False
                await asyncio.sleep(0.003)  # each is one of the gap's; no event tells it
    except TimeoutError as error:
        raise Failed(f"{domain.record.spec.name}: its devices were not loaded within {DEVICES_DEADLINE:g} s") from error
    return True


async def arriving(domain: Domain) -> bool:
    """Whether memory of the domain is still to come."""
    info = await domain.monitor.execute("query-migrate", deadline=QUERY_DEADLINE)
    return str(info.get("status", "")).startswith("postcopy")


async def take_plain_streams(monitor: Monitor) -> None:
    """A stream that takes the place of a broken one is encrypted by the daemons that carry it."""
    await monitor.execute("migrate-set-parameters", {"tls-creds": "", "tls-hostname": "", "tls-authz": ""})


async def _lifeline(domain: Domain, clock: Clock) -> Transfer:
    """The connection that stays open while the domain arrives; made anew after a restart of ours. Raises Failed,
    OutcomeUnknown."""
    if domain.lifeline is None or not domain.lifeline.monitor.connected:
        transfer = Transfer(domain, clock)
        try:
            await transfer.open()
            await transfer.query()
        except BaseException:
            await transfer.close()
            raise
        domain.lifeline = transfer
    return domain.lifeline


async def rejoin(domain: Domain, clock: Clock) -> socket.socket:
    """As PostCopier.rejoin."""
    name = domain.record.spec.name
    if domain.record.stage not in {Stage.ARRIVING, Stage.INCOMING}:
        raise Refused(f"{name} does not arrive here")
    transfer = await _lifeline(domain, clock)
    if domain.record.stage is Stage.INCOMING and not transfer.status.startswith("postcopy"):
        await transfer.query()
        if transfer.status == "failed":
            raise Lost(f"{name}: its devices' state was lost on the way")
        raise Failed(f"{name} is not loaded yet")
    execute, apart = transfer.monitor.execute, domain.home.apart
    path = (domain.home.tmp if apart else domain.home.path) / "mend"
    uri = f"unix:{path.relative_to(domain.home.own) if apart else path}"  # its working directory
    with contextlib.suppress(CommandError):
        await execute("migrate-pause", out_of_band=True)
    end = clock.now() + PAUSE_DEADLINE
    while True:
        path.unlink(missing_ok=True)
        try:
            await execute("migrate-recover", {"uri": uri}, out_of_band=True)
            break
        except CommandError:  # its threads have not all noticed yet
            if clock.now() > end:
                raise
            await asyncio.sleep(0.05)
    far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(far, str(path)), PAUSE_DEADLINE)
        lending.refuse_another(far, domain.process.pid)
    except Failed:
        far.close()
        raise
    except (OSError, TimeoutError) as error:
        far.close()
        raise Failed(f"{name}: its QEMU takes no new stream") from error
    finally:
        path.unlink(missing_ok=True)
    return far


async def whole(domain: Domain, clock: Clock) -> bool:
    """As PostCopier.whole."""
    if domain.record.stage is Stage.INCOMING:
        return False
    if domain.record.stage is Stage.ARRIVING:
        transfer = await _lifeline(domain, clock)
        if transfer.status != "completed":
            return False
        domain.update(stage=Stage.RUNNING)
        domain.lifeline = None
        await transfer.close()
    return True


async def lose(domain: Domain) -> None:
    """As PostCopier.lose."""
    log.error("domain=%s the rest of its memory is lost: ended", domain.record.spec.name)
    domain.update(stage=Stage.RUNNING)  # its end is that of a domain, not of half a one
    await domain.process.stop(grace=0)
