"""Post-copy: the domain runs at its target before all of its memory has arrived. The rest follows, pages that the guest
touches first (docs/devel/migration/postcopy.rst; QAPI's migration.json).

The source stops at QEMU's state pre-switchover, where the copy can still be cancelled; `release` lets it switch over.
From there on QEMU offers no way back ("Postcopy migration in progress, cannot cancel"). A target that was started with
-S stays paused with its devices loaded until `cont`, so the owner gate comes first.

While the link is cut the target's main loop may hang on a missing page (a device looks at its ring). It then obeys only
the commands that QMP takes out of band, on a connection that was greeted before. Therefore the target keeps such a
connection (`Domain.lifeline`), and is repaired by migrate-pause and migrate-recover alone. The new stream comes in by a
unix socket: no descriptor can be passed then, and QEMU's TLS handshake would hang, because the main loop makes it. The
daemons encrypt that stream.

release-ram is not used: the source keeps what it has sent, because what was under way when a link broke must be sent
again."""

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
from veery.hypervisor.qemu.transfer import POLL_INTERVAL_S, QUERY_DEADLINE_S, Transfer, reading
from veery.model.move import CopyOptions

log = logging.getLogger(__name__)

POISED = "pre-switchover"
STREAM = "again"
DEVICES_DEADLINE_S = 20.0
"""Time to load the devices' state once it has arrived."""
PAUSE_DEADLINE_S = 10.0
GONE_DEADLINE_S = 1.0
SYS_USERFAULTFD, UFFD_DEVICE = 323, Path("/dev/userfaultfd")  # x86-64; linux/userfaultfd.h
UFFD_SWITCH = Path("/proc/sys/vm/unprivileged_userfaultfd")


def obstacle(owner: Owner | None = None) -> str:
    """Return why no domain can move in by post-copy on this machine, to a QEMU of `owner` (None: root); "" where it
    can.

    QEMU checks the same way: the device first, then the system call (util/userfaultfd.c). It needs faults of the kernel
    too, so what vm.unprivileged_userfaultfd=0 leaves to every user is not enough."""
    if owner is not None:
        return closed(owner, UFFD_DEVICE, UFFD_SWITCH)
    try:
        os.close(os.open(UFFD_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        libc = ctypes.CDLL(None, use_errno=True)
        handle = libc.syscall(SYS_USERFAULTFD, os.O_CLOEXEC)
        if handle < 0:
            return f"the kernel does not allow userfaultfd: {os.strerror(ctypes.get_errno())}"
        os.close(handle)
    return ""


def closed(owner: Owner, device: Path, switch: Path) -> str:
    """Return the same for a user that is not root, as far as file modes and the sysctl show."""
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
        f"QEMU runs as user {owner.uid}, which may not use userfaultfd: give it {device} (a udev rule), "
        "or set sysctl vm.unprivileged_userfaultfd=1"
    )


# ---- a move's source


async def allow(transfer: Transfer, means: CopyOptions, bandwidth: int) -> None:
    """Where `means` has post-copy, make a copy that is to begin pause before its switch-over. `bandwidth` bytes/s (0:
    unlimited) holds for the rest that follows then, too."""
    if not means.post_copy:
        return
    pause = [{"capability": "pause-before-switchover", "state": True}]
    await transfer.monitor.execute("migrate-set-capabilities", {"capabilities": pause})
    await transfer.monitor.execute("migrate-set-parameters", {"max-postcopy-bandwidth": bandwidth})


async def poised(transfer: Transfer, means: CopyOptions) -> bool:
    """Return whether the domain is paused and waits for `release`. Lets a copy that ended without post-copy
    continue."""
    if not means.post_copy or transfer.status != POISED:
        return False
    if not transfer.leaving:
        await transfer.monitor.execute("migrate-continue", {"state": POISED})
    return transfer.leaving


async def release(domain: Domain) -> None:
    """See PostCopier.release."""
    try:
        await domain.monitor.execute("migrate-continue", {"state": POISED})
    except CommandError:  # "Migration not in expected state": it was released before
        if domain.record.stage is not Stage.SENDING:
            raise


async def drain(domain: Domain, report: Report, *, stall: float, clock: Clock) -> Rest:
    """See PostCopier.drain."""
    try:
        return await _drain(domain, report, stall, clock)
    except Failed as error:
        with contextlib.suppress(TimeoutError):  # a QEMU that closed its monitor has usually ended
            async with asyncio.timeout(GONE_DEADLINE_S):
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
                    if not progress.remaining:  # a pause now would fail it in QEMU: the last bytes may have arrived
                        return Rest.UNSURE
                    await _pause(transfer, clock)
                    return Rest.BROKEN
            await transfer.change(POLL_INTERVAL_S)


async def _pause(transfer: Transfer, clock: Clock) -> None:
    """Shut down a stream in which nothing moves. Raises Failed where QEMU does not."""
    with contextlib.suppress(CommandError):
        await transfer.monitor.execute("migrate-pause", out_of_band=True)
    end = clock.now() + PAUSE_DEADLINE_S
    while clock.now() < end and not transfer.domain.gone.is_set():
        await transfer.query()
        if transfer.status in {"postcopy-paused", "completed", "failed"}:
            return
        await transfer.change(POLL_INTERVAL_S)
    raise Failed(f"{transfer.domain.record.spec.name}: QEMU does not shut down its stalled stream")


async def reconnect(domain: Domain, stream: socket.socket, clock: Clock) -> None:
    """See PostCopier.reconnect."""
    address = {"transport": "socket", "type": "fd", "str": STREAM}
    async with contextlib.AsyncExitStack() as stack:
        transfer = Transfer(domain, clock)
        stack.push_async_callback(transfer.close)
        await transfer.open()
        await take_plain_streams(transfer.monitor)
        await transfer.monitor.pass_fd(STREAM, stream.fileno())
        channel = {"channel-type": "main", "addr": address}
        await transfer.monitor.execute("migrate", {"channels": [channel], "resume": True})
        end = clock.now() + PAUSE_DEADLINE_S
        while clock.now() < end:
            await transfer.query()
            if transfer.status in {"postcopy-active", "completed"}:
                return
            if transfer.status == "postcopy-paused" or domain.gone.is_set():
                break
            await transfer.change(POLL_INTERVAL_S)
        with contextlib.suppress(VeeryError):
            await _pause(transfer, clock)
    raise Failed(f"{domain.record.spec.name}: the new stream did not continue", hint="the source retries automatically")


# ---- a move's target


async def loaded(transfer: Transfer) -> bool:
    """Return whether the half domain has its devices, though not all of its memory. Raises Failed where they do not
    arrive."""
    if transfer.status != "postcopy-active":
        return False
    domain = transfer.domain
    try:
        async with asyncio.timeout(domain.patience(DEVICES_DEADLINE_S)):
            while await domain.status() == "inmigrate":
                if domain.gone.is_set():
                    return False
                await asyncio.sleep(0.003)  # each millisecond adds to the gap, and QEMU sends no event
    except TimeoutError as error:
        raise Failed(
            f"{domain.record.spec.name}: its devices were not loaded within {DEVICES_DEADLINE_S:g} s"
        ) from error
    return True


async def arriving(domain: Domain) -> bool:
    """Return whether some memory of the domain has not arrived yet."""
    info = await domain.monitor.execute("query-migrate", deadline=QUERY_DEADLINE_S)
    return str(info.get("status", "")).startswith("postcopy")


async def take_plain_streams(monitor: Monitor) -> None:
    """Let QEMU accept an unencrypted stream: the daemons that carry the new stream encrypt it."""
    await monitor.execute("migrate-set-parameters", {"tls-creds": "", "tls-hostname": "", "tls-authz": ""})


async def _lifeline(domain: Domain, clock: Clock) -> Transfer:
    """Return the connection that stays open while the domain arrives; open it again after a restart of veeryd. Raises
    Failed, OutcomeUnknown."""
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
    """See PostCopier.rejoin."""
    name = domain.record.spec.name
    if domain.record.stage not in {Stage.ARRIVING, Stage.INCOMING}:
        raise Refused(f"{name} is not arriving here")
    transfer = await _lifeline(domain, clock)
    if domain.record.stage is Stage.INCOMING and not transfer.status.startswith("postcopy"):
        await transfer.query()
        if transfer.status == "failed":
            raise Lost(f"{name}: the state of its devices was lost on the way")
        raise Failed(f"{name} is not loaded yet")
    execute, apart = transfer.monitor.execute, domain.home.apart
    path = (domain.home.tmp if apart else domain.home.path) / "mend"
    uri = f"unix:{path.relative_to(domain.home.own) if apart else path}"  # relative to QEMU's working directory
    with contextlib.suppress(CommandError):
        await execute("migrate-pause", out_of_band=True)
    end = clock.now() + PAUSE_DEADLINE_S
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
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(far, str(path)), PAUSE_DEADLINE_S)
        lending.refuse_another(far, domain.process.pid)
    except Failed:
        far.close()
        raise
    except (OSError, TimeoutError) as error:
        far.close()
        raise Failed(f"{name}: its QEMU accepts no new stream") from error
    finally:
        path.unlink(missing_ok=True)
    return far


async def whole(domain: Domain, clock: Clock) -> bool:
    """See PostCopier.whole."""
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
    """See PostCopier.lose."""
    log.error("domain=%s the rest of its memory is lost: ended", domain.record.spec.name)
    domain.update(stage=Stage.RUNNING)  # it ends as a domain, not as a half domain
    await domain.process.stop(grace=0)
