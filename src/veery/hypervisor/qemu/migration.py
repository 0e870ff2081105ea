"""Memory to and from a stream or a file: the two sides of a move, save and restore.

The stream is a TCP socket made elsewhere; QEMU gets a copy of it (getfd, SCM_RIGHTS). The source runs with return-path,
so that its `completed` means that the target has loaded everything. Both copies stay paused until `finish` or `resume`
is called. Neither can be started by mistake: Stage says what each is for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.host.clock import Clock
from veery.host.files import keep_synced
from veery.hypervisor.base import Report
from veery.hypervisor.qemu import lending, postcopy
from veery.hypervisor.qemu.domain import CONT_DEADLINE_S, ENDS, Domain
from veery.hypervisor.qemu.monitor import CommandError, Monitor
from veery.hypervisor.qemu.process import Stage
from veery.hypervisor.qemu.transfer import POLL_HELD_INTERVAL_S, Info, Transfer, orders, reading, shut
from veery.model.move import CopyOptions, CopyResult, MoveSettings, Tuning
from veery.model.volume import Attachments, LocalDisk

log = logging.getLogger(__name__)

UNLIMITED = 1 << 40
"""Bytes/s for "no limit". QEMU multiplies it with milliseconds, so it must not be the largest possible number."""
STALL_S = 60.0
"""Seconds without a byte before a receiver, a save or a restore gives up; a sender has its own setting."""
RUN_ON_DEADLINE_S = 10.0
LIVE = frozenset({"running", "suspended"})
"""QEMU's run states (QAPI, RunState) of a guest that was not stopped from outside."""
NO_THROTTLE = 1
"""Percent: the least that QEMU accepts; a hundredth has no noticeable effect."""
AUTHZ_OBJECT, STREAM = "move-peer", "move"
CLIENT, SERVER = "move-client", "move-server"
"""The ids of the objects that hold certificates, as `credentials` names them."""
PRIORITY = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
"""GnuTLS's priority string: only TLS 1.3, as in the rest of veery; the cheapest of its ciphers first."""
NO_REKEY = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305"
"""The same with the one cipher that GnuTLS never rekeys by itself. With AES-GCM it rekeys after 2^24 records, some 32
GiB. A QEMU before 10.1, which sends and reads one session in two threads, may then fail or crash (QEMU issue 1937). The
two ends agree on a cipher that both name, so an older QEMU at either end decides."""
SAFE_REKEY = (10, 1)
SYNC_INTERVAL_S = 1.0
LATE_ACTIVATE = (10, 0)
"""From this QEMU version on a target opens its disks for writing only when it starts the domain. In 9.x a domain that
stays paused and moves again ends on an assertion."""


# ---- a move's source


async def send(
    domain: Domain,
    stream: socket.socket,
    settings: MoveSettings,
    report: Report,
    *,
    tls: Path | None,
    peer: str,
    means: CopyOptions,
    clock: Clock,
) -> CopyResult:
    """See Driver.send. `tls` is the folder of the node's certificates, None for a plain stream."""

    def pulse(info: Info) -> object:
        report(reading(info))
        return info.get("ram", {}).get("transferred")

    domain.update(stage=Stage.SENDING)
    syncing = asyncio.create_task(
        keep_synced(local_disks(domain.record.attachments), SYNC_INTERVAL_S), name="sync disks"
    )
    async with contextlib.AsyncExitStack() as ending, contextlib.AsyncExitStack() as undo:
        ending.push_async_callback(tasks.stop, syncing)
        undo.callback(shut, stream)
        undo.push_async_callback(lambda: tasks.to_the_end(lending.take_back(domain, CLIENT)))
        undo.push_async_callback(lambda: tasks.to_the_end(_try_to_run_on(domain, clock)))
        transfer = Transfer(domain, clock)
        undo.push_async_callback(transfer.close)
        await transfer.open()
        chosen = await _set_up_source(transfer, settings, tls=tls, peer=peer, means=means)
        if not settings.live:
            await domain.stop()
            transfer.stopped_at = clock.now()
        domain.copying = transfer
        undo.callback(_let_go, domain)
        await transfer.monitor.pass_fd(STREAM, stream.fileno())
        undo.push_async_callback(lambda: tasks.to_the_end(transfer.cancel(stream)))
        await transfer.monitor.execute("migrate", {"channels": [_channel_socket()]})
        info = await transfer.follow(
            stall=settings.stall,
            pulse=pulse,
            timeout=settings.timeout,
            guard=means.guard,
            enough=functools.partial(postcopy.poised, transfer, means),
        )
        paused_ms = (clock.now() - transfer.stopped_at) * 1000 if transfer.stopped_at else 0.0
        domain.copying = None
        await transfer.close()
        undo.pop_all()
    report(reading(info))
    return replace(_result(info, paused_ms), cipher=chosen)


async def _set_up_source(
    transfer: Transfer, settings: MoveSettings, *, tls: Path | None, peer: str, means: CopyOptions
) -> str:
    """Tell a source's QEMU how to copy. Returns the cipher that it will use, "" for a plain stream."""
    chosen = await _encrypt(transfer, tls, means.peer_version) if tls is not None else ""
    throttle = _throttle(NO_THROTTLE) if means.throttle else {}
    await transfer.set_up(
        return_path=True,
        means=means,
        **throttle,
        max_bandwidth=settings.bandwidth or UNLIMITED,
        downtime_limit=settings.downtime,
        tls_creds=credentials(tls, "client", SAFE_REKEY)["id"] if tls else "",
        tls_hostname=peer if tls else "",
    )
    await postcopy.allow(transfer, means, settings.bandwidth)
    if means.hold:
        transfer.poll = POLL_HELD_INTERVAL_S
    return chosen


async def _encrypt(transfer: Transfer, tls: Path, theirs: str) -> str:
    """Give a source's QEMU its certificates. Returns the cipher that it will use with a QEMU of version `theirs`."""
    version = await qemu_version(transfer.monitor)
    chosen = cipher(version, theirs)
    log.info("domain=%s tls: cipher=%s", transfer.domain.record.spec.name, chosen or "not known")
    with lending.certificates(transfer.domain.home, tls, "client") as folder:
        await _put_object(transfer.monitor, credentials(folder, "client", version))
    return chosen


def local_disks(attachments: Attachments) -> list[str]:
    """Return the files and devices of this node that the domain writes. QEMU flushes its disks while the domain is
    paused for the switch-over. What was written out before takes no time then: a file's part of the page cache, and a
    drive's own cache. QEMU's flush comes before COMMIT, so a sync that is late finds nothing left to write.

    LUNs are not among them: their targets acknowledge a write once it is on the disk (docs/storage.md)."""
    return [
        disk.source.path
        for disk in attachments.disks
        if isinstance(disk.source, LocalDisk) and disk.spec.readwrite and not disk.spec.cdrom
    ]


async def tune(domain: Domain, tuning: Tuning) -> None:
    """See Driver.tune."""
    transfer = domain.copying
    if transfer is None:
        raise Refused(f"{domain.record.spec.name} is not being copied")
    parameters: dict[str, Any] = {}
    if tuning.bandwidth is not None:
        parameters["max-bandwidth"] = tuning.bandwidth or UNLIMITED
        parameters["max-postcopy-bandwidth"] = tuning.bandwidth
    if tuning.downtime is not None:
        parameters["downtime-limit"] = tuning.downtime
    if tuning.throttle is not None:
        parameters |= {name.replace("_", "-"): value for name, value in _throttle(tuning.throttle).items()}
    if parameters:
        await transfer.monitor.execute("migrate-set-parameters", parameters)
    if tuning.post_copy:
        await transfer.leave()
    elif tuning.stop:
        await transfer.stop()


def _let_go(domain: Domain) -> None:
    domain.copying = None


def _throttle(percent: int) -> dict[str, int]:
    """Return the parameters that make auto-converge throttle by `percent` in one step, at the next two rounds in which
    as much was written as was sent (ram.c, mig_throttle_guest_down). QEMU wants at least 1."""
    value = min(max(percent, NO_THROTTLE), 99)
    return {"cpu_throttle_initial": value, "cpu_throttle_increment": value, "max_cpu_throttle": value}


async def resume(domain: Domain, clock: Clock) -> None:
    """See Driver.resume."""
    if domain.record.stage not in {Stage.SENDING, Stage.SAVING}:
        return
    async with contextlib.AsyncExitStack() as stack:
        transfer = Transfer(domain, clock)
        stack.push_async_callback(transfer.close)
        await transfer.open()
        await transfer.cancel(None)
    await _run_on(domain, clock)


async def _run_on(domain: Domain, clock: Clock) -> None:
    """Let the domain run on here, unless a user had paused it or it ended by itself.

    Raises Failed or OutcomeUnknown where QEMU does not; the domain is then still marked as held by a move."""
    status = await domain.status()
    away = status == "postmigrate"
    if (end := ENDS.get(status)) is not None:
        domain.stopped(end)
    if not domain.record.held and domain.record.ended is None:
        await _go_on(domain, clock)
    domain.update(stage=Stage.RUNNING)
    if away:  # the target may have announced the domain on its own bridges
        await domain.announce()


async def _go_on(domain: Domain, clock: Clock) -> None:
    """Start the processors. Raises Failed, OutcomeUnknown. A guest that sleeps, or that meets its disk's error again,
    is as it would be without a move."""
    deadline, told = clock.now() + RUN_ON_DEADLINE_S, False
    while (status := await domain.status()) not in LIVE and not (told and status == "io-error"):
        try:
            await domain.cont()
            told = True
        except CommandError:  # "Migration is not finalized yet": QEMU will finish it, or start the guest itself
            if clock.now() > deadline:
                raise
        await asyncio.sleep(0.02)


async def _try_to_run_on(domain: Domain, clock: Clock) -> None:
    """Do `_run_on` as the last step of a failed copy, whose own error is the one to report."""
    try:
        await _run_on(domain, clock)
    except VeeryError as error:
        log.error("domain=%s could not be resumed after a failed copy: %s", domain.record.spec.name, error)


# ---- a move's target


async def await_stream(domain: Domain, *, tls: Path | None, peer: str, post_copy: bool) -> None:
    """Prepare an empty half domain for `receive`; with `tls`, only a stream from node `peer` is accepted."""
    means = CopyOptions(post_copy=post_copy)
    version = await qemu_version(domain.monitor)
    late = version >= LATE_ACTIVATE
    if tls is None:
        await domain.monitor.execute_all(*orders(return_path=True, means=means, late_activate=late))
        return
    authz = {"qom-type": "authz-simple", "id": AUTHZ_OBJECT, "identity": f"CN={peer}"}
    with lending.certificates(domain.home, tls, "server") as folder:
        mine = credentials(folder, "server", version)
        await domain.monitor.execute_all(
            ("object-add", mine),
            ("object-add", authz),
            *orders(return_path=True, means=means, late_activate=late, tls_creds=mine["id"], tls_authz=AUTHZ_OBJECT),
        )


async def receive(domain: Domain, stream: socket.socket, clock: Clock) -> None:
    """See Driver.receive."""

    def pulse(info: Info) -> object:
        words = domain.home.words()
        if info.get("status") == "setup" and words:  # a failed TLS handshake: only QEMU's log says so
            raise Failed(f"{domain.record.spec.name}: {words}", hint="do both nodes belong to one cluster?")
        return _received(stream)

    async with contextlib.AsyncExitStack() as undo:
        undo.callback(shut, stream)
        async with contextlib.AsyncExitStack() as stack:
            transfer = Transfer(domain, clock)
            stack.push_async_callback(transfer.close)
            await transfer.open()
            await transfer.monitor.pass_fd(STREAM, stream.fileno())
            await _migrate_incoming(transfer, _channel_socket())
            await transfer.follow(stall=STALL_S, pulse=pulse, enough=functools.partial(postcopy.loaded, transfer))
            if transfer.status != "completed":
                stack.pop_all()
                domain.lifeline = transfer
        undo.pop_all()


async def finish(domain: Domain, *, paused: bool, started: float = 0.0) -> None:
    """See Driver.finish."""
    if domain.record.stage is not Stage.INCOMING:
        return
    status, arriving = await asyncio.gather(domain.status(), postcopy.arriving(domain))
    if status == "inmigrate":
        raise Failed(f"{domain.record.spec.name} is not loaded yet", hint="the target was still receiving it")
    if arriving:
        await postcopy.take_plain_streams(domain.monitor)
    end = ENDS.get(status)
    if not paused and end is None and status != "running":
        await domain.cont()
    elif paused and await qemu_version(domain.monitor) >= LATE_ACTIVATE:
        await domain.monitor.execute("blockdev-set-active", {"active": True}, deadline=domain.patience(CONT_DEADLINE_S))
    build = domain.record.build
    # the guest may have rebooted here since it was started
    build = replace(build, started=max(build.started, started))
    domain.update(stage=Stage.ARRIVING if arriving else Stage.RUNNING, held=paused, build=build)
    if end is not None:  # the guest ended at the source, which did not see it
        domain.stopped(end)
    await domain.announce()
    await lending.take_back(domain, SERVER)
    if not paused and end is None:
        await domain.steady()


# ---- files


async def save(domain: Domain, path: Path, offset: int, clock: Clock) -> None:
    """See Driver.save."""
    domain.update(stage=Stage.SAVING)
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(lambda: tasks.to_the_end(_try_to_run_on(domain, clock)))
        undo.callback(path.unlink, missing_ok=True)
        transfer = Transfer(domain, clock)
        undo.push_async_callback(transfer.close)
        await transfer.open()
        await transfer.set_up(return_path=False, max_bandwidth=UNLIMITED, tls_creds="", tls_hostname="")
        await domain.stop()
        undo.push_async_callback(lambda: tasks.to_the_end(transfer.cancel(None)))
        async with lending.file(domain, transfer.monitor, path, os.O_WRONLY | os.O_CREAT) as name:
            await transfer.monitor.execute("migrate", {"channels": [_channel_file(name, offset)]})
            await transfer.follow(stall=STALL_S, pulse=lambda info: info.get("ram", {}).get("transferred"))
        try:
            await asyncio.to_thread(_sync, path)
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}") from error
        await transfer.close()
        undo.pop_all()
    domain.update(stage=Stage.RUNNING, held=True)


async def load(domain: Domain, path: Path, offset: int, clock: Clock) -> None:
    """Fill a half domain from a file that `save` wrote. Raises Failed."""
    async with contextlib.AsyncExitStack() as stack:
        transfer = Transfer(domain, clock)
        stack.push_async_callback(transfer.close)
        await transfer.open()
        await transfer.set_up(return_path=False)
        async with lending.file(domain, transfer.monitor, path, os.O_RDONLY) as name:
            await _migrate_incoming(transfer, _channel_file(name, offset))
            await transfer.follow(stall=STALL_S, pulse=lambda info: _read_bytes(domain.process.pid))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- orders to QEMU and its answers


async def _put_object(monitor: Monitor, options: dict[str, Any]) -> None:
    """Make an object; replace one that an earlier attempt left, because certificates are renewed."""
    try:
        await monitor.execute("object-add", options)
    except CommandError:
        with contextlib.suppress(CommandError):
            await monitor.execute("object-del", {"id": options["id"]})
        await monitor.execute("object-add", options)


async def qemu_version(monitor: Monitor) -> tuple[int, int]:
    """Return the version of the running QEMU, which may be older than the installed one. Raises Failed,
    OutcomeUnknown."""
    told = (await monitor.execute("query-version"))["qemu"]
    return int(told["major"]), int(told["minor"])


def priority(version: tuple[int, int]) -> str:
    """Return GnuTLS's priority string for a QEMU of `version`."""
    return PRIORITY if version >= SAFE_REKEY else NO_REKEY


def cipher(mine: tuple[int, int], theirs: str) -> str:
    """Return the cipher of the stream between two QEMUs: both name the same ciphers in the same order, an older one
    only the last. "" where `theirs`, the target's version in words, is unknown and may be either."""
    peer = tuple(int(part) for part in re.findall(r"\d+", theirs)[:2])
    if mine < SAFE_REKEY or (peer and peer < SAFE_REKEY):
        return "ChaCha20-Poly1305"
    return "AES-128-GCM" if peer else ""


def credentials(tls: Path, endpoint: str, version: tuple[int, int]) -> dict[str, Any]:
    """Return the object that holds the certificates in `tls`; `endpoint` is "client" (the source) or "server",
    `version` that of its QEMU."""
    return {
        "id": f"move-{endpoint}",  # a domain that moved in keeps its "server", and may move on as a "client"
        "qom-type": "tls-creds-x509",
        "dir": str(tls),
        "endpoint": endpoint,
        "verify-peer": True,
        "priority": priority(version),
    }


def _channel_socket() -> dict[str, Any]:
    return {"channel-type": "main", "addr": {"transport": "socket", "type": "fd", "str": STREAM}}


def _channel_file(name: str, offset: int) -> dict[str, Any]:
    return {"channel-type": "main", "addr": {"transport": "file", "filename": name, "offset": offset}}


async def _migrate_incoming(transfer: Transfer, channel: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"channels": [channel], "exit-on-error": False}
    try:
        await transfer.monitor.execute("migrate-incoming", arguments)
    except CommandError as error:
        if "exit-on-error" not in error.message:
            raise
        del arguments["exit-on-error"]  # QEMU 9.0 lacks the option, and exits when the stream breaks
        await transfer.monitor.execute("migrate-incoming", arguments)


def _result(info: Info, paused_ms: float) -> CopyResult:
    progress = reading(info)
    return CopyResult(
        downtime_ms=max(float(info.get("downtime", 0)), round(paused_ms, 1)),
        bytes=progress.transferred,
        rounds=progress.rounds,
        dirty_rate=progress.dirty_rate,
        setup_ms=float(info.get("setup-time", 0)),
        poised=info.get("status") == postcopy.POISED,
    )


def _received(stream: socket.socket) -> int:
    """Return the bytes received on a TCP socket, whichever process read them (struct tcp_info, linux/tcp.h,
    tcpi_bytes_received)."""
    try:
        data = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        return int(struct.unpack_from("=Q", data, 128)[0])
    except (OSError, struct.error):
        return 0


def _read_bytes(pid: int) -> int:
    """Return the bytes that a process has read from anywhere (proc(5), /proc/PID/io, rchar)."""
    try:
        return int(Path(f"/proc/{pid}/io").read_text().split()[1])
    except (OSError, ValueError):
        return 0
