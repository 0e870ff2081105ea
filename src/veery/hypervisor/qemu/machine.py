"""The node as the qemu driver sees it: QEMU's version, the accelerator that works, memory and processors."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from veery.config.settings import Qemu
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.host.files import write_atomic
from veery.host.run import run
from veery.model import codec
from veery.model.domain import HostReading

log = logging.getLogger(__name__)

OLDEST = (9, 0)
"""Before 9.0 a move under TCG corrupts the domain's memory (fixed by QEMU commit 03bfc2188f)."""
PROBE_DEADLINE_S = 10.0
HOPELESS_DEADLINE_S = 2.0
"""For the probe where the processor reports no virtualization: KVM may work all the same."""
OVERHEAD = 64
"""MiB that a QEMU needs besides its domain's memory, plus one part in `OVERHEAD_SHARE` of that memory: page tables."""
OVERHEAD_SHARE = 200
RESERVE = 256
"""MiB reserved for the machine itself, or one part in `RESERVE_SHARE` of its memory."""
RESERVE_SHARE = 50
ALIASES = frozenset({"q35", "pc"})
_KVM = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervisor:
    """QEMU on this node: `version` as it prints it, `accel` "kvm" or "tcg" and the reason for it. `boot` is the
    kernel's id of the boot for which this is valid."""

    binary: str
    version: str
    accel: str
    reason: str
    boot: str = ""

    def check(self) -> None:
        """Raise Refused for a QEMU that is too old."""
        if tuple(int(part) for part in re.findall(r"\d+", self.version)[:2]) < OLDEST:
            raise Refused(
                f"QEMU {self.version} is too old: 9.0 or newer is needed",
                hint="on Debian 12 install qemu-system-x86 from bookworm-backports",
            )


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def find(settings: Qemu, cache: Path, *, cpuinfo: Path = CPUINFO, kvm: Path = _KVM) -> Hypervisor:
    """Return QEMU's version and the accelerator to use; kept in `cache` until the machine boots or QEMU changes.

    A processor without virtualization gets TCG. On one that has it a failed probe is not kept, and nothing starts until
    a later probe works. Raises Refused when QEMU is not installed, or KVM does not run a guest."""
    printed = (await run([settings.binary, "--version"], deadline=10)).out
    match = re.search(r"version (\S+)", printed)
    if match is None:
        raise Failed(f"{settings.binary} did not print its version: {printed[:60]!r}")
    version, boot = match.group(1), boot_id()
    if settings.accel == "tcg":
        return Hypervisor(binary=settings.binary, version=version, accel="tcg", reason="as set", boot=boot)
    known = _cached(cache)
    able = virtualizes(cpuinfo.read_text())
    if (
        known is None
        or (known.binary, known.version, known.boot) != (settings.binary, version, boot)
        or (able and known.accel != "kvm")
    ):
        works, reason = await _kvm_works(settings.binary, kvm, PROBE_DEADLINE_S if able else HOPELESS_DEADLINE_S)
        if able and not works:
            raise Refused(
                f"this machine has hardware virtualization, but KVM does not run a guest: {reason}",
                hint='modprobe kvm_intel or kvm_amd, see dmesg; or set accel = "tcg" under [qemu], which is slow',
            )
        accel = "kvm" if works else "tcg"
        reason = reason if works else f"no vmx or svm in /proc/cpuinfo; {reason}"
        known = Hypervisor(binary=settings.binary, version=version, accel=accel, reason=reason, boot=boot)
        write_atomic(cache, codec.encode(known))
        log.info("accelerator=%s: %s", accel, reason)
    if settings.accel == "kvm" and known.accel != "kvm":
        raise Refused(
            f"the settings require KVM, but it does not work: {known.reason}",
            hint='set accel = "auto" or "tcg" under [qemu]',
        )
    return known


def pinned(settings: Qemu) -> str:
    """Return the machine type that the settings name for new domains, "" where they name none. Raises Refused for an
    alias."""
    if settings.machine in ALIASES:
        raise Refused(
            f'machine = "{settings.machine}" under [qemu] means another type in each QEMU: no domain could move',
            hint=f"name one with its version: {settings.binary} -machine help lists them",
        )
    return settings.machine


def virtualizes(cpuinfo: str) -> bool:
    """Return whether the processor reports hardware virtualization (Intel's vmx, AMD's svm)."""
    flags = next((line.partition(":")[2] for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return not {"vmx", "svm"}.isdisjoint(flags.split())


def address_bits(cpuinfo: str) -> int:
    """Return how many bits the processor's physical addresses have, as the kernel uses them; 0: the kernel does not
    say."""
    match = re.search(r"^address sizes\s*:\s*(\d+) bits physical", cpuinfo, re.MULTILINE)
    return int(match.group(1)) if match else 0


def _cached(cache: Path) -> Hypervisor | None:
    try:
        return codec.decode(cache.read_bytes(), Hypervisor)
    except (FileNotFoundError, VeeryError):
        return None


async def _kvm_works(binary: str, kvm: Path, deadline: float) -> tuple[bool, str]:
    """Return whether KVM runs a guest, and the reason."""
    try:
        os.close(os.open(kvm, os.O_RDWR))
    except OSError as error:
        return False, f"{kvm}: {error.strerror}"
    with tempfile.NamedTemporaryFile(prefix="veery-probe-") as rom:
        rom.write(bytes(ROM_BYTES - len(PROBE)) + PROBE)
        rom.flush()
        words = [binary, "-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-m", "16"]
        words += ["-accel", "kvm", "-bios", rom.name, "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        try:
            result = await run(words, deadline=deadline, check=False)
        except OutcomeUnknown:
            return False, f"{kvm} opens, but a guest hangs in its first instructions"
    if result.code == PROBE_EXIT:
        return True, "KVM ran a guest"
    return False, f"KVM: {(result.err.strip() or f'exit {result.code}').splitlines()[-1]}"


PROBE_EXIT = 0x2A << 1 | 1
ROM_BYTES = 1 << 16
PROBE = bytes.fromhex(
    # A whole boot in the last 256 bytes of a ROM. Some machines have a /dev/kvm that opens and answers its ioctls
    # and yet runs no guest, or only its first mode; this goes through all of them in microseconds:
    "fa31c08ed88ec0bf0010b9000c6631c0fc66f3ab"  # real mode: clear 0x1000-0x4000 for page tables
    "66c70600100320000066c70600200330000066c7060030830000 00"  # one 2 MiB page at 0
    "b800f08ed8be7bffbf0080b91b00f3a4"  # the long mode part, to 0x8000
    "660f0116a8ff"  # lgdt
    "66b8200000000f22e066b8001000000f22d8"  # CR4.PAE, CR3
    "66b9800000c00f32660d000100000f30"  # EFER.LME, by rdmsr and wrmsr
    "0f20c0660d010000800f22c0"  # CR0.PE and PG: protected mode, paging
    "66ea008000000800"  # far jump into long mode
    "31c00fa248c7c400880000535939d9 7507"  # cpuid, push and pop; hang where that fails
    "66baf400b02aeef4ebfd6690"  # outb 0x2a, 0xf4: isa-debug-exit ends QEMU with (0x2a << 1) | 1
    "0000000000000000 00000000009a2000"  # GDT: null, 64-bit code
    "0f0098ff0f00"  # its limit and place
).ljust(0xF0, b"\0") + bytes.fromhex("ea00ff00f0").ljust(16, b"\0")  # reset vector: ljmp 0xf000:0xff00


def overhead(memory: int) -> int:
    """Return the MiB that QEMU and the kernel need besides a domain's `memory` (MiB)."""
    return OVERHEAD + memory // OVERHEAD_SHARE


def left(total: int, available: int, promised: Iterable[int]) -> int:
    """Return the MiB that may still be promised to a domain and its overhead, of `total` and `available` as the kernel
    reports them.

    The kernel counts memory that a guest has not touched yet as available. So the memory of each domain here or on its
    way counts in full."""
    given = sum(memory + overhead(memory) for memory in promised)
    return max(0, min(total - max(RESERVE, total // RESERVE_SHARE) - given, available))


async def reading(hypervisor: Hypervisor | None) -> HostReading:
    """Return this machine's current reading."""
    memory = _table(Path("/proc/meminfo").read_text())
    processors = _table(Path("/proc/cpuinfo").read_text())
    system = os.uname()
    software = {"kernel": system.release}
    if hypervisor is not None:
        software = {"qemu": hypervisor.version} | software
    return HostReading(
        host=system.nodename,
        release=system.release,
        version=system.version,
        machine=system.machine,
        cpus=os.cpu_count() or 1,
        cpu_mhz=float(processors.get("cpu MHz", "0")),
        cpu_model=processors.get("model name", system.machine),
        memory_total=int(memory["MemTotal"].split()[0]) // 1024,
        memory_free=int(memory["MemAvailable"].split()[0]) // 1024,
        accelerator=hypervisor.accel if hypervisor else "",
        software=software,
        facts={"accelerator_reason": hypervisor.reason} if hypervisor else {},
    )


def _table(text: str) -> dict[str, str]:
    """Return the "Key : value" lines as a table; the first line of a key counts."""
    table: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            table.setdefault(key.strip(), value.strip())
    return table
