"""What a hypervisor driver promises. `qemu.driver.QemuDriver`, `xen.driver.XenDriver` and `fake.FakeDriver` pass one
contract suite (tests/contract/test_driver.py).

A driver runs domains and asks nobody whether it may: the owner gate is above it, in veery.node and
veery.migrate. Domains are named by their UUID. Everything a domain needs from outside (disks, taps) comes in
as Attachments. A domain outlives the driver: `adopt` finds it again. Methods raise Refused when the domain is not there
("no domain ... here"), Failed with the hypervisor's own words, OutcomeUnknown when it did not answer in time.
"""

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
"""A copy that nobody steers."""


class Console(Protocol):
    """One reader and writer of a domain's console; many may be open on one domain."""

    async def read(self) -> bytes:
        """The next bytes: first the backlog since boot, then what comes; b"" once the domain is gone."""
        ...

    async def write(self, data: bytes) -> None:
        """Type `data`."""
        ...

    async def close(self) -> None:
        """Leave; the domain does not notice."""
        ...


class Driver(Protocol):
    """The hypervisor of one node. `holds`: a copy that could switch over can be kept from it until its turn comes."""

    name: str
    holds: bool

    # ---- this machine
    async def open(self) -> None:
        """Make ready; find and take over the domains that already run here (after a restart of ours)."""
        ...

    async def close(self) -> None:
        """Let go of every domain without touching it."""
        ...

    async def host(self) -> HostReading:
        """The machine: memory, processors, versions."""
        ...

    async def log(self) -> str:
        """What `veery dmesg` prints."""
        ...

    # ---- domains
    async def list(self) -> tuple[DomainReading, ...]:
        """Every domain here, by domid. A domain whose hypervisor process does not answer is still listed, and so is
        one that is just starting: it can be looked at (`spec`, `console`), and takes no orders yet."""
        ...

    def unread(self) -> tuple[str, ...]:
        """What runs here and is not in `list`, because its record on this node cannot be read: one short text each.
        While there is any, nobody may conclude that a domain which is not listed has ended."""
        ...

    async def spec(self, uuid: str) -> tuple[DomainSpec, Attachments]:
        """What domain `uuid` was started with, including what was attached and detached since."""
        ...

    async def pack(self, uuid: str) -> tuple[DomainSpec, msgspec.Raw]:
        """What must go along with the domain's memory, on a move or in a save file: its spec as it is now, and
        the driver's luggage (JSON, opaque to all others) from which `prepare` and `restore` build exactly the
        same devices and go on counting its uptime."""
        ...

    async def take_domid(self) -> int:
        """The id that the next domain will have, not given twice on this node until it reboots: the node names
        taps after it and hands it to `start`, `restore` or `prepare` as `attachments.domid`."""
        ...

    async def start(self, spec: DomainSpec, attachments: Attachments, *, paused: bool = False) -> DomainReading:
        """Start a domain. On failure nothing of it is left. Raises Refused for what it can see before
        (missing kernel, no memory), Failed with the hypervisor's words."""
        ...

    async def destroy(self, uuid: str) -> None:
        """End the domain at once. Returns only when it is proven that it can no longer write: its process
        is gone. Succeeds if there is none."""
        ...

    async def shutdown(self, uuid: str) -> None:
        """Ask the guest to power off; returns when asked."""
        ...

    async def reboot(self, uuid: str) -> None:
        """Restart the guest; returns when asked."""
        ...

    async def pause(self, uuid: str) -> None:
        """Stop the domain's processors."""
        ...

    async def unpause(self, uuid: str) -> None:
        """Let them go on."""
        ...

    async def rename(self, uuid: str, name: str) -> None:
        """Give the running domain another name."""
        ...

    async def set_memory(self, uuid: str, mebibytes: int) -> None:
        """Ask the guest to balloon to `mebibytes` (at most its maxmem)."""
        ...

    async def vcpus(self, uuid: str) -> tuple[VcpuReading, ...]:
        """Its virtual processors."""
        ...

    async def save(self, uuid: str, path: Path, *, offset: int = 0) -> None:
        """Write the domain's memory and devices to `path` and leave it paused (or resume it on failure,
        removing the file). The first `offset` bytes of the file (a multiple of 4096) are the caller's and stay."""
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
        """Start the domain that `save` wrote; `spec` and `luggage` as `pack` gave them before, `backlog` is the
        console's past. On failure nothing of it is left, `path` stays."""
        ...

    async def attach_disk(self, uuid: str, disk: AttachedDisk) -> None:
        """Hot-plug a disk."""
        ...

    async def detach_disk(self, uuid: str, vdev: str) -> None:
        """Hot-unplug a disk; returns once the guest let go, raises Failed if it does not."""
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
        """Open its console."""
        ...

    async def backlog(self, uuid: str) -> bytes:
        """The console's last bytes (at most 256 KiB), to go along on a move or into a save file."""
        ...

    def events(self) -> AsyncIterator[DomainEvent]:
        """Domains that stopped by themselves, in order, for ever; half domains that are gone too: whose they are, the
        owner key says. One reader."""
        ...

    # ---- before a move
    async def abilities(self) -> Abilities:
        """What this node's hypervisor can build."""
        ...

    async def obstacles(self, spec: DomainSpec, luggage: msgspec.Raw) -> tuple[Blocker, ...]:
        """Why a domain, packed like this elsewhere, cannot be built here: every reason, want of memory too.
        Disks and bridges are the caller's. Raises Failed for luggage that it cannot read."""
        ...

    async def sample(self, uuid: str, *, quick: bool = False) -> MemoryReading:
        """Look at the domain's memory for about a second, or with `quick` once; the guest does not notice. Raises
        Refused while memory of it is still to come."""
        ...

    def give(
        self,
        features: frozenset[str],
        models: frozenset[str],
        *,
        phys_bits: int = 0,
        machines: Sequence[tuple[str, ...]] = (),
    ) -> tuple[str, tuple[str, ...]]:
        """From now on new domains get a processor with these `features`, as far as they are of use to guests, by one of
        these `models` where the hypervisor knows any, with at most `phys_bits` bits of physical addresses (0: not
        known), and a machine type that is among each node's `machines`. Returns the hypervisor's own words for the
        processor, and the features that it has. Domains that run keep theirs."""
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
        """Copy the domain into `stream`, a connected TCP socket; with settings.tls the hypervisor itself encrypts
        it and authenticates both ends by the nodes' certificates, `peer` being the target's node name. The
        caller closes `stream` afterwards, whatever happens.

        Returns when the target has loaded everything and the domain is paused here. Raises Failed with the
        reason, the domain running on and the stream shut down, when the copy did not succeed, no byte moved for
        settings.stall seconds, or the switch-over took longer than means.guard. Cancelling the task cancels the
        copy; the domain runs on when the cancellation is through. `report` hears of it several times a second."""
        ...

    async def tune(self, uuid: str, tuning: Tuning) -> None:
        """Change a `send` that is under way. Raises Refused where none is, Failed for what its means do not allow.
        Once stopped, a domain stays so until the copy has ended; when it fails the domain runs on."""
        ...

    async def resume(self, uuid: str) -> None:
        """Undo a finished or broken `send`: the domain runs on here. Idempotent. Only while the owner is us."""
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
        """Start the empty half domain (state INCOMING) that waits for a stream. `spec` and `luggage` are the
        source's, from `pack`; `backlog` is the console's past; with `tls` only a stream from node `peer` is
        taken; `post_copy` as in CopyOptions. On failure nothing of it is left."""
        ...

    async def receive(self, uuid: str, stream: socket.socket) -> None:
        """Load `stream` (an accepted TCP socket) into the half domain; returns when everything is loaded, or in
        post-copy all but the rest of the memory, and it stands paused. Raises Failed when the stream broke, which is
        then shut down, so that the sender notices at once; the half domain is only good for `destroy`. The caller
        closes `stream`."""
        ...

    async def stands(self, uuid: str) -> bool:
        """Whether the loaded half domain is still here, as far as can be seen in a millisecond: it is asked again and
        again until COMMIT."""
        ...

    async def finish(self, uuid: str, *, paused: bool = False, started: float = 0.0) -> None:
        """Let the loaded domain run (or make it a plain paused one), and announce its MACs. One whose guest ended
        by itself at the source is not let run: `events` reports its end. `started`: when the guest booted last, where
        that was after `pack` (0: not told). Idempotent. Only after COMMIT."""
        ...


class Lost(Failed):
    """What was left of a domain's memory cannot be sent any more: the run that has gone on without it has no future."""


class Rest(StrEnum):
    """How the sending of what a domain left behind has ended, for now."""

    SENT = "sent"  # the target has everything
    BROKEN = "broken"  # the stream broke, or stood still and was broken off: another is wanted
    UNSURE = "unsure"  # all went out, and the target has not said that it came


@runtime_checkable
class PostCopier(Protocol):
    """What a driver has besides if a domain can go on at its target before all of its memory is there.

    The source: `send` with means.post_copy; a `tune` with post_copy lets it return early, its result `poised`; until
    `release` it is undone as any other. Then `drain`, and after a break `reconnect` and `drain` again. The target:
    `prepare` with post_copy, `receive`, `finish`; then `whole`, and after a break `rejoin`."""

    async def release(self, uuid: str) -> None:
        """Let a poised copy go over: from here on the domain can go on at the target alone. Only after COMMIT.
        Idempotent."""
        ...

    async def drain(self, uuid: str, report: Report, *, stall: float) -> Rest:
        """Send what is left, until it is there or the stream does not get on: nothing moved for `stall` seconds.
        Raises Lost when it cannot be sent any more; Refused when there is no such domain."""
        ...

    async def reconnect(self, uuid: str, stream: socket.socket) -> None:
        """Go on over `stream`, a connected socket whose other end leads to what the target's `rejoin` gave. Raises
        Failed; then it may be tried again. The caller closes `stream` afterwards."""
        ...

    async def rejoin(self, uuid: str) -> socket.socket:
        """Give a broken stream up and wait for another; a connected socket into which its bytes are to go. Raises
        Failed, Lost when the domain never began to run, Refused when it is not arriving here."""
        ...

    async def whole(self, uuid: str) -> bool:
        """Whether all of the domain's memory is here. Raises Refused when there is no such domain."""
        ...

    async def lose(self, uuid: str) -> None:
        """The rest of its memory never comes: end the domain as if its process had died (the event DIED)."""
        ...


@runtime_checkable
class DiskMover(Protocol):
    """What a driver has besides if it can take a domain's local disks along on a move; one that cannot lacks it.

    The target, after `prepare`: export_disks. The source: mirror_disks, then `send`, which ends the mirrors while the
    domain stands still for the last time, so that both copies are the same when it is loaded. `resume` undoes all of
    it. The target's `receive` takes the export back once everything is loaded."""

    async def local_disks(self, uuid: str) -> tuple[CarriedDisk, ...]:
        """The files and block devices of this node that the domain writes, with their sizes as they are now."""
        ...

    async def export_disks(self, uuid: str, vdevs: Sequence[str], *, tls: bool, peer: str) -> Path:
        """Let these disks of a half domain be written through the unix socket that is returned; with `tls` only by
        node `peer`. Only after `prepare`."""
        ...

    async def mirror_disks(
        self, uuid: str, vdevs: Sequence[str], through: str, settings: MoveSettings, report: Report, *, peer: str
    ) -> None:
        """Copy the disks through the abstract unix socket `through`, behind which the target's export is. Returns
        when the copies are whole; from then on each write of the domain goes to both, until `send` or `resume`.

        Raises Failed with the reason, the domain running on and no mirror left. Cancelling the task does the same."""
        ...


class Trigger(StrEnum):
    """What a domain can be given from outside."""

    NMI = "nmi"  # a non-maskable interrupt, on every processor
    POWER = "power"  # its power button is pressed


@runtime_checkable
class Signaller(Protocol):
    """What a driver has besides if it reaches a guest that answers nothing else; one that cannot lacks it."""

    async def trigger(self, uuid: str, what: Trigger) -> None:
        """Give it `what`; returns when given."""
        ...

    async def sysrq(self, uuid: str, letter: str) -> None:
        """Send a magic SysRq letter to its kernel; returns when sent. Whether the kernel takes it is not known."""
        ...

    async def dump_core(self, uuid: str, path: Path) -> None:
        """Write its memory to `path`, an ELF core; it stands still meanwhile. Raises Failed, OutcomeUnknown."""
        ...


@runtime_checkable
class Adjuster(Protocol):
    """What a driver has besides if a running domain can get other bounds and shares; one that cannot lacks it."""

    async def adjust(self, uuid: str, spec: DomainSpec) -> None:
        """Give the domain the largest memory, the online processors, the affinities and the share of `spec`, which
        differs from its own in these alone. They go along with it on a move. Raises Failed with the hypervisor's
        words; the domain's spec is as it was then."""
        ...


@runtime_checkable
class MediumChanger(Protocol):
    """What a driver has besides if the medium in a CD-ROM drive can be changed; one that cannot lacks it."""

    async def change_medium(self, uuid: str, disk: AttachedDisk) -> None:
        """Have the drive `disk.spec.vdev` hold what `disk` names: nothing where its source is None. The guest is not
        asked. Raises Refused where the domain has no such drive; Failed, the drive then as it was or empty."""
        ...


@runtime_checkable
class DiskSwitcher(Protocol):
    """What a driver has besides if a running domain's disk can go over from one LUN to another; one that cannot lacks
    it. `copy_disk`, then `switch_disk`; `settle_disk` ends what either of them, or an earlier life of ours, left."""

    async def copy_disk(
        self, uuid: str, vdev: str, lun: IscsiLun, rate: int, report: Callable[[int, int], None]
    ) -> None:
        """Copy the disk to `lun`, at most at `rate` bytes/s (0: unlimited), while the domain runs; `report` hears of
        bytes done and bytes in all. Returns when the copy is whole: from then on each write of the domain goes to both.

        Raises Refused, or Failed with the reason; the domain runs on with the disk that it had. What there is of the
        copy stands then, and when it is cancelled, for `settle_disk`."""
        ...

    async def switch_disk(self, uuid: str, vdev: str, lun: IscsiLun, commit: Callable[[], Awaitable[None]]) -> float:
        """Stop the domain, make sure that both are the same, await `commit`, let the domain go on with `lun` alone; the
        milliseconds for which it stood. Where `commit` raises, it goes on with the disk that it had, and that is
        raised.

        Raises Failed after `commit` when the disk could not be switched yet: the domain stands still, and
        `settle_disk` is to be asked until it succeeds."""
        ...

    async def settle_disk(self, uuid: str, vdev: str, lun: IscsiLun | None) -> None:
        """The disk is `lun` for good, or with None the one that the domain had: see to it, and let the domain run as it
        did. Idempotent. To be asked only while the targets answer: a copy whose target hangs cannot be ended without
        holding up the domain. Raises Refused when the domain is not here, Failed, OutcomeUnknown: ask again."""
        ...
