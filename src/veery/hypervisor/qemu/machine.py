"""The node as the qemu driver sees it: QEMU's version, the accelerator that works, memory and processors."""

from __future__ import annotations

import logging
import os
import re
import tempfile
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
"""Before 9.0 a move under TCG corrupts the domain's memory (QEMU commit 03bfc2188f mended that)."""
PROBE_DEADLINE = 2.0
_KVM = Path("/dev/kvm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervisor:
    """QEMU on this node: `version` as it prints it, `accel` "kvm" or "tcg" and the reason for it; `boot` is the
    kernel's id of this boot, for which the reading is good."""

    binary: str
    version: str
    accel: str
    reason: str
    boot: str = ""

    def check(self) -> None:
        """Raises Refused for a QEMU that is too old."""
        if tuple(int(part) for part in re.findall(r"\d+", self.version)[:2]) < OLDEST:
            raise Refused(
                f"QEMU {self.version} is too old: 9.0 or newer is needed",
                hint="on Debian 12 install qemu-system-x86 from bookworm-backports",
            )


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def find(settings: Qemu, cache: Path) -> Hypervisor:
    """QEMU's version and the accelerator to use; kept in `cache` until the machine boots or QEMU changes.

    Raises Refused when QEMU is not installed, or when settings.accel is kvm and KVM does not run a guest."""
    said = (await run([settings.binary, "--version"], deadline=10)).out
    match = re.search(r"version (\S+)", said)
    if match is None:
        raise Failed(f"{settings.binary} does not tell its version: {said[:60]!r}")
    version, boot = match.group(1), boot_id()
    if settings.accel == "tcg":
        return Hypervisor(binary=settings.binary, version=version, accel="tcg", reason="as set", boot=boot)
    known = _cached(cache)
    if known is None or (known.binary, known.version, known.boot) != (settings.binary, version, boot):
        works, reason = await _kvm_works(settings.binary)
        accel = "kvm" if works else "tcg"
        known = Hypervisor(binary=settings.binary, version=version, accel=accel, reason=reason, boot=boot)
        write_atomic(cache, codec.encode(known))
        log.info("accelerator=%s: %s", accel, reason)
    if settings.accel == "kvm" and known.accel != "kvm":
        raise Refused(f"KVM was asked for and does not work: {known.reason}", hint='set qemu.accel = "auto"')
    return known


def _cached(cache: Path) -> Hypervisor | None:
    try:
        return codec.decode(cache.read_bytes(), Hypervisor)
    except (FileNotFoundError, VeeryError):
        return None


async def _kvm_works(binary: str) -> tuple[bool, str]:
    """Whether KVM runs a guest, and what was seen."""
    try:
        os.close(os.open(_KVM, os.O_RDWR))
    except OSError as error:
        return False, f"{_KVM}: {error.strerror}"
    with tempfile.NamedTemporaryFile(prefix="veery-probe-") as rom:
        rom.write(bytes(ROM_BYTES - len(PROBE)) + PROBE)
        rom.flush()
        words = [binary, "-no-user-config", "-nodefaults", "-display", "none", "-machine", "pc", "-m", "16"]
        words += ["-accel", "kvm", "-bios", rom.name, "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        try:
            result = await run(words, deadline=PROBE_DEADLINE, check=False)
        except OutcomeUnknown:
            return False, f"{_KVM} opens, but a guest does not get through its first instructions"
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


async def reading(hypervisor: Hypervisor | None) -> HostReading:
    """This machine, now."""
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
    """ "Key : value" lines; the first of a key counts."""
    table: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            table.setdefault(key.strip(), value.strip())
    return table
