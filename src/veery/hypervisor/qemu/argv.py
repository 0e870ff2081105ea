"""QEMU's command line for a domain. Pure: no file is read and nothing is started here.

Two QEMUs may meet in one migration only when their command lines build the same machine. So all that may differ between
nodes or versions of veery comes from the Build, which travels with the domain."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from veery.hypervisor.qemu import devices
from veery.hypervisor.qemu.build import Build, disk_id, vif_id
from veery.hypervisor.qemu.choice import Choice
from veery.model.domain import DomainSpec, OnEvent
from veery.model.volume import AttachedDisk, AttachedVif, Attachments

TB_SIZE = 32
"""MiB of translated code that TCG keeps. Its own default, up to 1 GiB, wastes memory for a small guest."""
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
MEMORY = "pc.ram"
"""The name of guest memory in a migration stream; QEMU's own for a PC's memory (MachineClass, default_ram_id)."""
AGENT = "org.qemu.guest_agent.0"
KERNEL, RAMDISK = "kernel", "ramdisk"
RESTARTS = frozenset({OnEvent.RESTART, OnEvent.SOFT_RESET})


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What a QEMU that does not run as root cannot open by itself, by descriptor: `disks` by their names in the domain
    file, `taps` by the ids of their netdevs. Empty: QEMU runs as root and opens everything itself."""

    disks: Mapping[str, int] = field(default_factory=dict)
    taps: Mapping[str, int] = field(default_factory=dict)
    console_log: int | None = None
    kvm: int | None = None
    boot: bool = False  # kernel and ramdisk are copies in its working directory, KERNEL and RAMDISK

    def sets(self) -> tuple[int, ...]:
        """Return the descriptors that QEMU finds as /dev/fdset/N, N being the descriptor's own number."""
        others = (one for one in (self.console_log, self.kvm) if one is not None)
        return (*others, *self.disks.values())

    def all(self) -> tuple[int, ...]:
        """Return every descriptor."""
        return (*self.sets(), *self.taps.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What the new process finds open: the listening sockets of its two monitors, its console and the guest's agent
    (from layout 2 on), by number. `secrets` maps a secret's id to a descriptor that holds it; `console_log` receives
    what the guest prints; `vhosts` are descriptors of /dev/vhost-net by the ids of netdevs; `choice` is the node's."""

    monitors: tuple[int, ...]
    console: int
    console_log: Path
    secrets: Mapping[str, int]
    agent: int | None = None
    handed: Handed = Handed()
    vhosts: Mapping[str, int] = field(default_factory=dict)
    choice: Choice = devices.PLAIN


Command = Callable[[Wiring], list[str]]
"""A command line that only needs its descriptors."""


def build_argv(
    binary: str, spec: DomainSpec, attachments: Attachments, build: Build, wiring: Wiring, *, incoming: bool
) -> list[str]:
    """Return the command line. The machine is always stopped at first (-S): the driver starts it once it has recorded
    that it exists. The line contains no password."""
    return [
        binary,
        *("-name", f"guest={_commas(spec.name)},debug-threads=on"),
        *("-uuid", spec.uuid),
        *("-no-user-config", "-nodefaults", "-display", "none", "-msg", "timestamp=on", "-S"),
        *("-sandbox", SANDBOX),
        *_fdsets(wiring),
        *("-machine", _machine(build)),
        *("-accel", _accelerator(build, wiring)),
        *("-cpu", build.model),
        *("-m", f"size={build.memory}M"),
        *_memory(build, wiring.choice),
        *_clocks(build),
        *("-smp", f"cpus={spec.vcpus},maxcpus={max(spec.vcpus, spec.maxvcpus)}"),
        *_ends(spec),
        *_boot(spec, wiring),
        *_monitors(wiring),
        *_agent(build, wiring),
        *_board(build),
        *_disks(spec, attachments, build, wiring),
        *_vifs(attachments, build, wiring),
        *(("-incoming", "defer") if incoming else ()),
    ]


def fdset(number: int) -> str:
    """Return the name by which QEMU opens a descriptor that it was given (qemu(1), -add-fd)."""
    return f"/dev/fdset/{number}"


def _fdsets(wiring: Wiring) -> list[str]:
    """Return the -add-fd options. Each has the console log's path, so that a process can be recognised by its command
    line (Home.process)."""
    words: list[str] = []
    for number in wiring.handed.sets():
        words += ["-add-fd", f"fd={number},set={number},opaque={_commas(wiring.console_log)}"]
    return words


def _accelerator(build: Build, wiring: Wiring) -> str:
    if build.accel != "kvm":
        return f"tcg,thread=multi,tb-size={TB_SIZE}"
    return "kvm" if wiring.handed.kvm is None else f"kvm,device={fdset(wiring.handed.kvm)}"


def _machine(build: Build) -> str:
    """Return the -machine option. Guest memory stays out of core dumps, and is not merged with other guests' (KSM's
    side channels). Both concern this host alone, so a domain that was started without them can still move here."""
    board = f"{build.machine},usb=off,vmport=off,smbus=off,sata={'on' if build.sata else 'off'}"
    board = f"{board},dump-guest-core=off,mem-merge=off"
    return board if build.layout == 1 else f"{board},hpet=off,memory-backend={MEMORY}"


def _memory(build: Build, choice: Choice) -> list[str]:
    """Return guest memory as an object of its own, with the name that it has without one: another kind of it (huge
    pages) may then take its place on either end of a move."""
    if build.layout == 1:
        return []
    kind = choice.memory()
    options: devices.Options = {
        "qom-type": kind.pop("qom-type"),
        "id": MEMORY,
        "size": build.memory << 20,
        "dump": False,
        "merge": False,
        "x-use-canonical-path-for-ramblock-id": False,
        **kind,
    }
    return ["-object", _json(options)]


def _clocks(build: Build) -> list[str]:
    """Return the clock options. Ticks that a guest missed come later, one after the other, as guests that count ticks
    need it."""
    if build.layout == 1:
        return []
    pit = ["-global", "kvm-pit.lost_tick_policy=delay"] if build.accel == "kvm" else []
    return ["-rtc", "base=utc,driftfix=slew", *pit]


def _commas(text: str | Path) -> str:
    """Double each comma, as QEMU's key=value lists require it."""
    return str(text).replace(",", ",,")


def _ends(spec: DomainSpec) -> list[str]:
    """Return the -action options. A domain that ends stays there, stopped, until the layer above has read why and done
    what on_* says. Only a reboot that is to be a plain restart is left to the machine itself, which resets in
    milliseconds."""
    reboot = "reset" if spec.on_reboot in RESTARTS else "shutdown"
    return ["-action", f"reboot={reboot},shutdown=pause,panic=pause,watchdog=pause"]


def _boot(spec: DomainSpec, wiring: Wiring) -> list[str]:
    if not spec.kernel:
        return ["-boot", "strict=on"]
    kernel, ramdisk = (KERNEL, RAMDISK) if wiring.handed.boot else (spec.kernel, spec.ramdisk)
    words = ["-kernel", kernel, "-append", devices.command_line(spec.cmdline, spec.disks)]
    return words + (["-initrd", ramdisk] if spec.ramdisk else [])


def _monitors(wiring: Wiring) -> list[str]:
    words: list[str] = []
    for number, descriptor in enumerate(wiring.monitors):
        words += ["-chardev", f"socket,id=qmp{number},fd={descriptor},server=on,wait=off"]
        words += ["-mon", f"chardev=qmp{number},mode=control"]
    handed = wiring.handed.console_log
    log = f"logfile={_commas(wiring.console_log) if handed is None else fdset(handed)},logappend=on"
    words += ["-chardev", f"socket,id=console,fd={wiring.console},server=on,wait=off,{log}"]
    return words


def _agent(build: Build, wiring: Wiring) -> list[str]:
    """Return the port for an agent in the guest. It works without a listener on either end."""
    if build.layout == 1:
        return []
    chardev = f"socket,id=agent,fd={wiring.agent},server=on,wait=off"
    bus = {"driver": "virtio-serial-pci", "id": "serial", "bus": "pcie.0", "addr": "0x4", "max_ports": 2}
    port = {"driver": "virtserialport", "id": "agent0", "bus": "serial.0", "nr": 1, "chardev": "agent", "name": AGENT}
    return ["-chardev", chardev, "-device", _json(bus), "-device", _json(port)]


def _board(build: Build) -> list[str]:
    words = ["-device", _json({"driver": "isa-serial", "chardev": "console", "id": "console0"})]
    words += ["-device", _json({"driver": "pvpanic", "id": "panic"})]
    words += ["-device", _json({"driver": "virtio-balloon-pci", "id": "balloon", "bus": "pcie.0", "addr": "0x3"})]
    for port in range(build.ports):
        options: devices.Options = {
            "driver": "pcie-root-port",
            "id": f"port{port}",
            "bus": "pcie.0",
            "addr": f"{0x10 + port // 8:#x}.{port % 8}",
            "chassis": port + 1,
            "port": port,
            "io-reserve": 0,
        }
        if port % 8 == 0:
            options["multifunction"] = True
        words += ["-device", _json(options)]
    return words


def _disks(spec: DomainSpec, attachments: Attachments, build: Build, wiring: Wiring) -> list[str]:
    words: list[str] = []
    for number, disk in enumerate(attachments.disks):
        if devices.secret(disk):
            name = devices.secret_id(disk)
            source = f"/proc/self/fd/{wiring.secrets[name]}"
            words += ["-object", _json({"qom-type": "secret", "id": name, "file": source})]
        handed = wiring.handed.disks.get(disk.spec.vdev)
        node = devices.blockdev(disk, "" if handed is None else fdset(handed), wiring.choice)
        if node is not None:
            words += ["-blockdev", _json(node)]
        slot = build.slots[disk_id(disk.spec)]
        bootindex = None if spec.kernel or (node is None and not disk.spec.cdrom) else number + 1
        threaded = threads(build, disk, wiring.choice)
        if threaded:
            words += ["-object", _json({"qom-type": "iothread", "id": devices.io_thread(disk)})]
        words += ["-device", _json(devices.disk_device(disk, slot, bootindex=bootindex, threaded=threaded))]
    return words


def _vifs(attachments: Attachments, build: Build, wiring: Wiring) -> list[str]:
    words: list[str] = []
    for vif in attachments.vifs:
        handed = wiring.handed.taps.get(devices.tap_id(vif))
        vhost = wiring.vhosts.get(devices.tap_id(vif))
        carried = "" if vhost is None else str(vhost)
        words += ["-netdev", _json(devices.netdev(vif, "" if handed is None else str(handed), carried))]
        words += ["-device", _json(devices.vif_device(vif, build.slots[vif_id(vif.spec)], build.layout))]
    return words


def threads(build: Build, disk: AttachedDisk, choice: Choice) -> bool:
    """Return whether a disk of a domain with this build has a thread of its own here."""
    return choice.iothreads and build.layout > 2 and not disk.spec.cdrom


def carries(build: Build, vif: AttachedVif, choice: Choice) -> bool:
    """Return whether the kernel carries the packets of an interface here. In layout 1 the guest would see the
    difference."""
    return choice.vhost and build.layout > 1 and devices.is_virtio(vif)


def _json(options: devices.Options) -> str:
    return json.dumps(options, separators=(",", ":"))
