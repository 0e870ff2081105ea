"""The contract of a hypervisor driver. `qemu.driver.QemuDriver`, `xen.driver.XenDriver` and `fake.FakeDriver` pass one
contract suite (tests/contract/test_driver.py).

A driver runs domains and does not check whether this node may run them: the owner gate is above it, in veery.node and
veery.migrate. Domains are named by their UUID. The caller passes everything from outside that a domain needs (disks,
taps) as Attachments. A domain outlives the driver: `adopt` finds it again. Methods raise Refused when this node does
not have the domain ("no domain ... here"), Failed with the hypervisor's own words, OutcomeUnknown when the hypervisor
did not answer in time."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from veery.errors import Failed
from veery.model.domain import (
    DomainEvent,
    DomainReading,
    DomainSpec,
    HostReading,
    VcpuReading,
)
from veery.model.move import CopyOptions, CopyResult, MoveProgress, MoveSettings, Tuning
from veery.model.plan import Abilities, Blocker, MemoryReading
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, CarriedDisk, IscsiLun

Report = Callable[[MoveProgress], None]
ALONE = CopyOptions()
"""The options of a copy that nothing steers."""


class Console(Protocol):
    """One reader and writer of a domain's console. A domain can have many of them open."""

    async def read(self) -> bytes:
        """Return the next bytes: first the backlog since boot, then new output; b"" once the domain is gone."""
        ...

    async def write(self, data: bytes) -> None:
        """Type `data` into the console."""
        ...

    async def close(self) -> None:
        """Close this console; the domain does not notice."""
        ...


class Driver(Protocol):
    """The hypervisor of one node. `holds`: the driver can keep a copy that is ready from switching over until its turn
    comes."""

    name: str
    holds: bool

    # ---- this machine
    async def open(self) -> None:
        """Prepare the driver, and find and adopt the domains that already run here (after a restart of veeryd)."""
        ...

    async def close(self) -> None:
        """Release every domain without touching it."""
        ...

    async def host(self) -> HostReading:
        """Return what the machine has: memory, processors, versions."""
        ...

    async def log(self) -> str:
        """Return the text that `veery dmesg` prints."""
        ...

    # ---- domains
    async def list(self) -> tuple[DomainReading, ...]:
        """Return every domain of this node, sorted by domid. The list includes a domain whose hypervisor process does
        not answer, and one that is just starting: `spec` and `console` work for it, other orders do not yet."""
        ...

    def unread(self) -> tuple[str, ...]:
        """Return one short text for each domain that runs here but is missing from `list`, because its record on this
        node cannot be read. While there is any, no caller may conclude that a domain which is not listed has ended."""
        ...

    async def spec(self, uuid: str) -> tuple[DomainSpec, Attachments]:
        """Return what domain `uuid` was started with, including later attaches and detaches."""
        ...

    async def pack(self, uuid: str) -> tuple[DomainSpec, msgspec.Raw]:
        """Return what a move or a save file must carry besides the domain's memory: its current spec, and the driver's
        luggage. The luggage is JSON and opaque to all others. From it `prepare` and `restore` build exactly the same
        devices and continue the domain's uptime."""
        ...

    async def take_domid(self) -> int:
        """Return the id of the next domain. No id is given twice on this node until it reboots. The node names taps
        after the id and passes it to `start`, `restore` or `prepare` as `attachments.domid`."""
        ...

    async def start(self, spec: DomainSpec, attachments: Attachments, *, paused: bool = False) -> DomainReading:
        """Start a domain. On failure nothing of it is left. Raises Refused for problems that the driver sees beforehand
        (missing kernel, not enough memory), Failed with the hypervisor's words."""
        ...

    async def destroy(self, uuid: str) -> None:
        """End the domain at once. Returns only when it is proven that the domain can no longer write: its process is
        gone. Succeeds if there is no such domain."""
        ...

    async def shutdown(self, uuid: str) -> None:
        """Ask the guest to power off; returns once it was asked."""
        ...

    async def reboot(self, uuid: str) -> None:
        """Restart the guest; returns once it was asked."""
        ...

    async def pause(self, uuid: str) -> None:
        """Stop the domain's processors."""
        ...

    async def unpause(self, uuid: str) -> None:
        """Start the domain's processors again."""
        ...

    async def rename(self, uuid: str, name: str) -> None:
        """Give the running domain another name."""
        ...

    async def set_memory(self, uuid: str, mebibytes: int) -> None:
        """Ask the guest to balloon to `mebibytes` (at most its maxmem)."""
        ...

    async def vcpus(self, uuid: str) -> tuple[VcpuReading, ...]:
        """Return the state of the domain's virtual processors."""
        ...

    async def save(self, uuid: str, path: Path, *, offset: int = 0) -> None:
        """Write the domain's memory and devices to `path` and leave the domain paused. On failure, resume it and remove
        the file. The first `offset` bytes of the file (a multiple of 4096) belong to the caller and stay."""
        ...

    async def restore(
        self,
        spec: DomainSpec,
        attachments: Attachments,
        luggage: msgspec.Raw,
        path: Path,
        *,
        backlog: bytes = b"",
        offset: int = 0,
        paused: bool = False,
    ) -> DomainReading:
        """Start the domain that `save` wrote. `spec` and `luggage` are what `pack` returned then; `backlog` is the
        console's earlier output. On failure nothing of the domain is left, `path` stays."""
        ...

    async def attach_disk(self, uuid: str, disk: AttachedDisk) -> None:
        """Hot-plug a disk."""
        ...

    async def detach_disk(self, uuid: str, vdev: str) -> None:
        """Hot-unplug a disk. Returns once the guest released it, raises Failed if it does not."""
        ...

    async def resize_disk(self, uuid: str, vdev: str, size: int) -> None:
        """Tell the guest that a disk has grown to `size` bytes."""
        ...

    async def attach_vif(self, uuid: str, vif: AttachedVif) -> None:
        """Hot-plug an interface."""
        ...

    async def detach_vif(self, uuid: str, mac: str) -> None:
        """Hot-unplug the interface with this MAC."""
        ...

    async def console(self, uuid: str) -> Console:
        """Open the domain's console."""
        ...

    async def backlog(self, uuid: str) -> bytes:
        """Return the console's last bytes (at most 256 KiB), which a move or a save file carries along."""
        ...

    def events(self) -> AsyncIterator[DomainEvent]:
        """Yield domains that stopped by themselves, in order and without end. Half domains that are gone are among
        them: the owner key says which node they belong to. Only one caller may read."""
        ...

    # ---- before a move
    async def abilities(self) -> Abilities:
        """Return what this node's hypervisor can build."""
        ...

    async def obstacles(self, spec: DomainSpec, luggage: msgspec.Raw) -> tuple[Blocker, ...]:
        """Return every reason, lack of memory too, why a domain packed like this elsewhere cannot be built here. The
        caller checks disks and bridges. Raises Failed for luggage that the driver cannot read."""
        ...

    async def sample(self, uuid: str, *, quick: bool = False) -> MemoryReading:
        """Sample the domain's memory for about a second, or with `quick` once; the guest does not notice. Raises
        Refused while some of its memory has not arrived yet."""
        ...

    def give(
        self,
        features: frozenset[str],
        models: frozenset[str],
        *,
        phys_bits: int = 0,
        machines: Sequence[tuple[str, ...]] = (),
    ) -> tuple[str, tuple[str, ...]]:
        """Give new domains a processor with these `features` from now on, as far as guests can use them. The processor
        is one of these `models` where the hypervisor knows any, with at most `phys_bits` bits of physical addresses (0:
        not known). The machine type is one that each node's `machines` has. Returns the hypervisor's own words for the
        processor, and its features. Running domains keep theirs."""
        ...

    # ---- one move: the source's side
    async def send(
        self,
        uuid: str,
        stream: socket.socket,
        settings: MoveSettings,
        report: Report,
        *,
        peer: str,
        means: CopyOptions = ALONE,
    ) -> CopyResult:
        """Copy the domain into `stream`, a connected TCP socket. With settings.tls the hypervisor itself encrypts the
        stream and authenticates both ends by the nodes' certificates; `peer` is the target's node name. The caller
        closes `stream` afterwards in every case.

        Returns when the target has loaded everything and the domain is paused here. Raises Failed with the reason when
        the copy did not succeed, no byte moved for settings.stall seconds, or the switch-over took longer than
        means.guard; the domain then runs on and the stream is shut down. Cancelling the task cancels the copy; once the
        cancellation is done the domain runs on. `report` is called several times a second."""
        ...

    async def tune(self, uuid: str, tuning: Tuning) -> None:
        """Change a `send` that is under way. Raises Refused where there is none, Failed for a change that its means do
        not allow. A domain that this stopped stays paused until the copy has ended; when the copy fails the domain runs
        on."""
        ...

    async def resume(self, uuid: str) -> None:
        """Undo a finished or broken `send`: the domain runs on here. Idempotent. Call it only while this node is the
        owner."""
        ...

    # ---- one move: the target's side
    async def prepare(
        self,
        spec: DomainSpec,
        attachments: Attachments,
        luggage: msgspec.Raw,
        backlog: bytes,
        *,
        tls: bool,
        peer: str,
        post_copy: bool = False,
    ) -> DomainReading:
        """Start the empty half domain (state INCOMING) that waits for a stream. `spec` and `luggage` are the source's,
        from `pack`; `backlog` is the console's earlier output. With `tls` only a stream from node `peer` is accepted;
        `post_copy` as in CopyOptions. On failure nothing of the half domain is left."""
        ...

    async def receive(self, uuid: str, stream: socket.socket) -> None:
        """Load `stream` (an accepted TCP socket) into the half domain. Returns when everything is loaded, or in
        post-copy everything but the rest of the memory; the domain is then paused. Raises Failed when the stream broke.
        The stream is then shut down, so that the sender notices at once, and the half domain is only good for
        `destroy`. The caller closes `stream`."""
        ...

    async def stands(self, uuid: str) -> bool:
        """Return whether the loaded half domain still exists, as far as a check of about a millisecond shows. The
        target calls this again and again until COMMIT."""
        ...

    async def finish(self, uuid: str, *, paused: bool = False, started: float = 0.0) -> None:
        """Let the loaded domain run (or make it a plain paused one), and announce its MACs. A domain whose guest ended
        by itself at the source does not run: `events` reports its end. `started` is the time of the guest's last boot,
        where that was after `pack` (0: the source did not say). Idempotent. Call it only after COMMIT."""
        ...


class DiskFull(Failed):
    """A disk's copy found no room at the target. This is the cause of whatever else then fails on both nodes."""


class Lost(Failed):
    """The rest of a domain's memory can no longer be sent. The instance that runs without it cannot continue."""


class Rest(StrEnum):
    """How sending the rest of a domain's memory has ended, for now."""

    SENT = "sent"  # the target has everything
    BROKEN = "broken"  # the stream broke, or stalled and was shut down: a new stream is needed
    UNSURE = "unsure"  # everything was sent, but the target has not confirmed it


@runtime_checkable
class PostCopier(Protocol):
    """Methods that a driver has besides if a domain can run at its target before all of its memory has arrived.

    On the source: `send` with means.post_copy. A `tune` with post_copy lets it return early with a result that is
    `poised`; until `release` the copy is undone like any other. Then `drain`, and after a break `reconnect` and `drain`
    again. On the target: `prepare` with post_copy, `receive`, `finish`; then `whole`, and after a break `rejoin`."""

    async def release(self, uuid: str) -> None:
        """Let a poised copy switch over: from here on the domain can run at the target alone. Call it only after
        COMMIT. Idempotent."""
        ...

    async def drain(self, uuid: str, report: Report, *, stall: float) -> Rest:
        """Send the rest of the memory until all of it has arrived, or the stream makes no progress: no byte moved for
        `stall` seconds. Raises Lost when the rest can no longer be sent; Refused when there is no such domain."""
        ...

    async def reconnect(self, uuid: str, stream: socket.socket) -> None:
        """Continue over `stream`, a connected socket whose other end leads to the socket that the target's `rejoin`
        returned. Raises Failed; the caller may then try again. The caller closes `stream` afterwards."""
        ...

    async def rejoin(self, uuid: str) -> socket.socket:
        """Drop a broken stream and wait for another one. Returns a connected socket; the caller writes the new stream's
        bytes into it. Raises Failed, Lost when the domain never began to run, Refused when it is not arriving here."""
        ...

    async def whole(self, uuid: str) -> bool:
        """Return whether all of the domain's memory is here. Raises Refused when there is no such domain."""
        ...

    async def lose(self, uuid: str) -> None:
        """End the domain as if its process had died (the event DIED), because the rest of its memory will never
        come."""
        ...


@runtime_checkable
class DiskMover(Protocol):
    """Methods that a driver has besides if it can move a domain's local disks along; a driver that cannot lacks them.

    On the target, after `prepare`: export_disks. On the source: mirror_disks, then `send`. `send` ends the mirrors
    while the domain is paused for the switch-over, so that both copies are the same when it is loaded. `resume` undoes
    all of this. The target's `receive` withdraws the export once everything is loaded."""

    async def local_disks(self, uuid: str) -> tuple[CarriedDisk, ...]:
        """Return the files and block devices of this node that the domain writes, with their current sizes."""
        ...

    async def export_disks(self, uuid: str, vdevs: Sequence[str], *, tls: bool, peer: str) -> Path:
        """Return a unix socket through which these disks of a half domain can be written; with `tls` only by node
        `peer`. Call it only after `prepare`."""
        ...

    async def mirror_disks(
        self, uuid: str, vdevs: Sequence[str], through: str, settings: MoveSettings, report: Report, *, peer: str
    ) -> None:
        """Copy the disks through the abstract unix socket `through`, which leads to the target's export. Returns when
        the copies are complete; from then on each write of the domain goes to both nodes, until `send` or `resume`.

        Raises Failed with the reason; the domain then runs on and no mirror is left. Cancelling the task does the
        same."""
        ...

    async def tune_disks(self, uuid: str, bandwidth: int) -> None:
        """Change the bandwidth of a `mirror_disks` that is under way (bytes/s, 0: unlimited). Raises Refused where
        there is none, Failed, OutcomeUnknown."""
        ...


class Trigger(StrEnum):
    """A signal that veery can give a domain from outside."""

    NMI = "nmi"  # a non-maskable interrupt, on every processor
    POWER = "power"  # its power button is pressed


@runtime_checkable
class Signaller(Protocol):
    """Methods that a driver has besides if it can reach a guest that answers nothing else; a driver that cannot lacks
    them."""

    async def trigger(self, uuid: str, what: Trigger) -> None:
        """Send the domain the signal `what`; returns once it was sent."""
        ...

    async def sysrq(self, uuid: str, letter: str) -> None:
        """Send a magic SysRq letter to the domain's kernel; returns once it was sent. Whether the kernel accepts it is
        not known."""
        ...

    async def dump_core(self, uuid: str, path: Path) -> None:
        """Write the domain's memory to `path`, an ELF core; the domain is paused meanwhile. Raises Failed,
        OutcomeUnknown."""
        ...


@runtime_checkable
class Adjuster(Protocol):
    """Methods that a driver has besides if it can change the limits and shares of a running domain; a driver that
    cannot lacks them."""

    async def adjust(self, uuid: str, spec: DomainSpec) -> None:
        """Give the domain the largest memory, the online processors, the affinities and the share of `spec`, which
        differs from its own in these alone. A move carries them along. Raises Failed with the hypervisor's words; the
        domain's spec is then as it was before."""
        ...


@runtime_checkable
class MediumChanger(Protocol):
    """Methods that a driver has besides if it can change the medium in a CD-ROM drive; a driver that cannot lacks
    them."""

    async def change_medium(self, uuid: str, disk: AttachedDisk) -> None:
        """Put what `disk` names into the drive `disk.spec.vdev`: nothing where its source is None. The guest is not
        asked. Raises Refused where the domain has no such drive; Failed, with the drive then as it was or empty."""
        ...


@runtime_checkable
class DiskSwitcher(Protocol):
    """Methods that a driver has besides if it can switch a running domain's disk from one LUN to another; a driver that
    cannot lacks them. Call `copy_disk`, then `switch_disk`. `settle_disk` ends what either of them left, in this run of
    veeryd or an earlier one."""

    async def copy_disk(
        self, uuid: str, vdev: str, lun: IscsiLun, rate: int, report: Callable[[int, int], None]
    ) -> None:
        """Copy the disk to `lun`, at most at `rate` bytes/s (0: unlimited), while the domain runs. `report` is called
        with the bytes done and the bytes in all. Returns when the copy is complete: from then on each write of the
        domain goes to both LUNs.

        Raises Refused, or Failed with the reason; the domain runs on with the disk that it had. After a failure or a
        cancellation the partial copy stays until `settle_disk`."""
        ...

    async def switch_disk(self, uuid: str, vdev: str, lun: IscsiLun, commit: Callable[[], Awaitable[None]]) -> float:
        """Pause the domain, make sure that both LUNs are the same, await `commit`, then let the domain run with `lun`
        alone. Returns for how many milliseconds the domain was paused. Where `commit` raises, the domain runs on with
        the disk that it had, and the error is raised.

        Raises Failed after `commit` when the disk could not be switched yet: the domain is paused, and the caller must
        call `settle_disk` until it succeeds."""
        ...

    async def settle_disk(self, uuid: str, vdev: str, lun: IscsiLun | None) -> None:
        """Make `lun` the disk's permanent LUN, or with None the one that the domain had, and let the domain run as it
        did. Idempotent. Call it only while the targets answer: ending a copy whose target hangs would block the domain.
        Raises Refused when the domain is not here; Failed or OutcomeUnknown: call it again."""
        ...
