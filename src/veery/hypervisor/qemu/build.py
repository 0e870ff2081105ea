"""The layout of one domain's machine: all that a move's target must build again, byte for byte.

Every disk and interface has a PCIe root port of its own, so that each can be unplugged and its place is a number that
travels. A guest would see a device move if its PCI address changed. All layouts:

    00:03.0        balloon
    00:04.0        virtio-serial with one port for a guest agent (from layout 2 on)
    00:10.0 ...    root ports 0, 1, 2, ... (eight functions a slot), a disk or an interface behind each
    SATA           CD-ROM drives, on the chip set's own controller, present only where there are any

New domains get layout 3. A domain keeps the layout that it was started with, also in its save file. What the guest sees
differs in layout 2 by: the agent's port; no hpet; a longer receive ring. What differs between kernels is off: UDP
segmentation offload (kernels from 6.2 on have it, and a guest that uses it does not load on an older one) and the reset
of single queues. The memory is a back end of its own, the processor has its vendor pinned under KVM, and a QEMU that
cannot provide all of that processor does not start.

Layout 3 differs from layout 2 only under KVM: the width of physical addresses is pinned, and a guest whose file says
`viridian` sees Hyper-V's enlightenments."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from veery.errors import Refused
from veery.model.domain import DiskSpec, DomainSpec, VifSpec

LAYOUT = 3
"""The layout of new domains."""
LAYOUTS = frozenset({1, 2, 3})
"""The layouts that this version can build."""
MACHINE = "pc-q35-9.0"
NEWEST = (11, 0)
"""The newest machine type that new domains get. From 11.1 on QEMU's source no longer waits for an order before it
switches over (hw/core/machine.c, hw_compat_11_0, switchover-ack-legacy)."""
CPU = "qemu64,+pni,+popcnt,+ssse3,+sse4.1,+sse4.2"
"""x86-64-v2: every processor since 2009 has it, and TCG too, so a domain may move between different machines."""
MAX_PORTS = 64
SATA_PORTS = 6
MAX_VCPUS = 255  # more would need x2APIC, which CPU lacks
PHYS_BITS = 40
"""The width of physical addresses that QEMU gives to a guest by default (target/i386/cpu.h)."""
PCI_SPACE = 64 << 30
"""Bytes of the guest's addresses reserved for its devices, below and above its memory."""
HYPERV = (
    *("hv-relaxed", "hv-vapic", "hv-spinlocks=0x1fff", "hv-vpindex", "hv-runtime", "hv-time", "hv-synic", "hv-stimer"),
    *("hv-reset", "hv-ipi"),
)
"""What Windows needs to run well (QEMU, docs/system/i386/hyperv.rst); the same set as Proxmox gives to Windows 10 and
later. None of them keeps a domain from moving. This is part of layout 3: a change needs a new layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The layout of one domain. `memory` in MiB; `ports` root ports; `slots` maps a device's id to its port (SATA port
    for a CD-ROM). `started` is when the guest booted, in seconds since the epoch. `vendor` is that of the processor
    that the guest saw ("": not known, or TCG's). `phys_bits`: the width of physical addresses (0: QEMU's own choice).
    `viridian`: the guest sees Hyper-V's enlightenments. The defaults are those of records that lack the field."""

    layout: int = 1
    machine: str = MACHINE
    accel: str
    cpu: str = CPU
    memory: int
    ports: int
    slots: dict[str, int] = field(default_factory=dict)
    sata: bool = False
    started: float = 0.0
    vendor: str = ""
    phys_bits: int = 0
    viridian: bool = False

    @property
    def model(self) -> str:
        """QEMU's whole -cpu option."""
        if self.layout == 1:
            return self.cpu
        words = [self.cpu, *([f"vendor={self.vendor}"] if self.vendor else [])]
        if self.layout > 2 and self.phys_bits:
            words.append(f"phys-bits={self.phys_bits}")
        if self.layout > 2 and self.viridian:
            words += HYPERV
        return ",".join([*words, "enforce"])

    def seen_on(self, vendor: str) -> Build:
        """Return this build with the processor's `vendor`: under KVM a domain of an older veery, which did not record
        the vendor, runs on a processor of that one."""
        return replace(self, vendor=vendor) if self.accel == "kvm" and not self.vendor else self

    def free_port(self) -> int:
        """Return the lowest root port without a device. Raises Refused when all are taken."""
        taken = {port for name, port in self.slots.items() if not name.startswith("cd-")}
        for port in range(self.ports):
            if port not in taken:
                return port
        raise Refused(f"all {self.ports} places for devices are taken", hint="detach one, or create the domain with it")

    def plug(self, device: str, port: int) -> Build:
        """Return this build with `device` behind `port`."""
        return replace(self, slots={**self.slots, device: port})

    def unplug(self, device: str) -> Build:
        """Return this build without `device`."""
        return replace(self, slots={name: port for name, port in self.slots.items() if name != device})


def disk_id(disk: DiskSpec) -> str:
    """Return the QEMU id of a disk; a CD-ROM's begins with "cd-"."""
    return f"{'cd' if disk.cdrom else 'disk'}-{disk.vdev}"


def vif_id(vif: VifSpec) -> str:
    """Return the QEMU id of an interface. Raises Refused where it has no MAC."""
    if not vif.mac:
        raise Refused("an interface has no MAC", hint="the domain's record in the store must give it one")
    return f"vif-{vif.mac.replace(':', '').lower()}"


def lay_out(
    spec: DomainSpec,
    *,
    machine: str,
    accel: str,
    started: float,
    cpu: str = CPU,
    vendor: str = "",
    phys_bits: int = 0,
    layout: int = LAYOUT,
) -> Build:
    """Return the build of a new domain: disks first, then interfaces, and at least four spare places. `phys_bits`: the
    width of physical addresses that all processors of the cluster have (0: not known).

    Raises Refused for two devices of one name and for more devices than fit."""
    if max(spec.vcpus, spec.maxvcpus) > MAX_VCPUS:
        raise Refused(f"{spec.name}: a domain has at most {MAX_VCPUS} processors here", hint="lower vcpus and maxvcpus")
    names = [disk_id(disk) for disk in spec.disks if not disk.cdrom] + [vif_id(vif) for vif in spec.vifs]
    drives = [disk_id(disk) for disk in spec.disks if disk.cdrom]
    for name in names + drives:
        if (names + drives).count(name) > 1:
            raise Refused(f"{spec.name}: {name} is given twice", hint="give each disk and MAC once")
    ports = -(-(len(names) + 4) // 8) * 8
    if ports > MAX_PORTS or len(drives) > SATA_PORTS:
        raise Refused(f"{spec.name}: too many devices", hint=f"at most {MAX_PORTS - 4} and {SATA_PORTS} CD-ROM drives")
    memory, under_kvm = max(spec.memory, spec.maxmem), accel == "kvm" and layout > 2
    slots = {name: number for number, name in enumerate(names)} | {name: n for n, name in enumerate(drives)}
    return Build(
        layout=layout,
        machine=machine,
        accel=accel,
        cpu=cpu,
        memory=memory,
        ports=ports,
        slots=slots,
        sata=bool(drives),
        started=started,
        vendor=vendor if accel == "kvm" else "",
        phys_bits=pinned_bits(spec.name, memory, phys_bits) if under_kvm else 0,
        viridian=under_kvm and wants_hyperv(spec),
    )


def machine_type(told: Iterable[Collection[str]]) -> str:
    """Return the machine type of new domains among nodes that have reported theirs (`told`): MACHINE as long as all
    have it, or a node reports none; then the newest that all have, `NEWEST` at most; "" if there is none."""
    types = [frozenset(each) for each in told]
    if not types or not all(types):
        return MACHINE
    common = frozenset.intersection(*types)
    if MACHINE in common:
        return MACHINE
    for pattern, most in ((r"pc-q35-([\d.]+)", NEWEST), (r"pc-q35-rhel([\d.]+)", (sys.maxsize,))):
        found = {name: match.group(1) for name in common if (match := re.fullmatch(pattern, name))}
        numbers = {name: tuple(int(part) for part in text.split(".") if part) for name, text in found.items()}
        fitting = [name for name in numbers if numbers[name] <= most]
        if fitting:
            return max(fitting, key=lambda name: numbers[name])
    return ""


def bits_for(memory: int) -> int:
    """Return how wide physical addresses must be for a guest with `memory` MiB."""
    return ((memory << 20) + PCI_SPACE - 1).bit_length()


def pinned_bits(name: str, memory: int, given: int) -> int:
    """Return the width of a new domain's physical addresses where processors have `given` bits (0: not known, and QEMU
    decides): QEMU's own choice as long as it is enough and possible. Raises Refused where `memory` does not fit."""
    if given and bits_for(memory) > given:
        raise Refused(
            f"{name}: {memory} MiB do not fit into the {given} bits of physical addresses that the processors have",
            hint="give it less memory= and maxmem=; veery cluster cpu shows the nodes' processors",
        )
    return min(given, max(PHYS_BITS, given if bits_for(memory) > PHYS_BITS else 0))


def wants_hyperv(spec: DomainSpec) -> bool:
    """Return whether the domain file asks for Hyper-V's enlightenments (viridian=1, or a list of them)."""
    return dict(spec.xl).get("viridian", "0") not in ("0", "''", '""', "[ ]", "[]")
