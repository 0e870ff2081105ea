"""The facts that decide how KVM behaves on a machine: its processor, kernel, KVM's parameters, clocks, memory and
devices.

Nothing here names the machine, its addresses or its users, so the answer can be published."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path
from typing import Any

from veery.hypervisor.qemu.machine import address_bits, virtualizes
from veery.hypervisor.qemu.tsc import CHECK_EXTENSION, KVM

CAPABILITIES = {  # linux/kvm.h
    "tsc_control": 60,
    "get_tsc_khz": 61,
    "manual_dirty_log_protect2": 168,
    "dirty_log_ring": 192,
    "dirty_log_ring_acq_rel": 223,
}
SHOWN = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "cpu MHz")
PARAMETERS = ("nested", "ept", "npt", "avic", "enable_apicv", "unrestricted_guest", "pml", "flexpriority")
TEXT_MAX = 200  # characters of one file of the kernel


def facts(root: Path = Path("/")) -> dict[str, Any]:
    """Return all facts. `root` is the folder of /proc, /sys and /dev. What cannot be read is left out."""
    cpuinfo = _text(root / "proc/cpuinfo", most=1 << 20)
    first = dict(_pairs(cpuinfo.split("\n\n")[0]))
    flags = first.get("flags", "").split()
    memory = dict(_pairs(_text(root / "proc/meminfo", most=1 << 16)))
    system = root / "sys"
    return {
        "processor": {name: first[name] for name in SHOWN if name in first}
        | {
            "processors": len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)),
            "virtualization": virtualizes(cpuinfo),
            "is_a_guest": "hypervisor" in flags,
            "phys_bits": address_bits(cpuinfo),
            "flags": flags,
        },
        "vulnerabilities": _folder(system / "devices/system/cpu/vulnerabilities"),
        "kernel": _text(root / "proc/sys/kernel/osrelease"),
        "kvm_parameters": {
            module: {
                name: text for name, text in _folder(system / f"module/{module}/parameters").items() if name in wanted
            }
            for module, wanted in (
                ("kvm", ("halt_poll_ns", "ignore_msrs", "tdp_mmu")),
                ("kvm_intel", PARAMETERS),
                ("kvm_amd", PARAMETERS),
            )
            if (system / f"module/{module}").is_dir()
        },
        "kvm_capabilities": capabilities(KVM if root == Path("/") else root / "dev/kvm"),
        "clocksource": _text(system / "devices/system/clocksource/clocksource0/current_clocksource"),
        "memory": {name: memory[name] for name in ("MemTotal", "HugePages_Total", "Hugepagesize") if name in memory},
        "huge_pages": _text(system / "kernel/mm/transparent_hugepage/enabled"),
        "numa_nodes": len(list((system / "devices/system/node").glob("node[0-9]*"))),
        "devices": {name: (root / "dev" / name).exists() for name in ("kvm", "vhost-net", "userfaultfd", "net/tun")},
        "io_uring_disabled": _text(root / "proc/sys/kernel/io_uring_disabled"),
    }


def capabilities(kvm: Path) -> dict[str, int]:
    """Return what KVM supports according to CHECK_EXTENSION; empty if it cannot be opened."""
    try:
        handle = os.open(kvm, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return {}
    found: dict[str, int] = {}
    try:
        for name, number in CAPABILITIES.items():
            with contextlib.suppress(OSError):
                found[name] = fcntl.ioctl(handle, CHECK_EXTENSION, number)
    finally:
        os.close(handle)
    return found


def _text(path: Path, *, most: int = TEXT_MAX) -> str:
    try:
        with path.open("rb") as file:
            return file.read(most).decode(errors="replace").strip()
    except OSError:
        return ""


def _folder(path: Path) -> dict[str, str]:
    """Return the files of a folder of sysfs with their content."""
    with contextlib.suppress(OSError):
        return {each.name: _text(each) for each in sorted(path.iterdir()) if each.is_file()}
    return {}


def _pairs(text: str) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in text.splitlines())
    return [(key.strip(), value.strip()) for key, colon, value in lines if colon]
