"""Sizes, rates and times as people write and read them."""

from __future__ import annotations

import re

from veery.errors import Refused

PER_GIB_S = 0.5
"""More time for each GiB of a domain's memory: the kernel frees it, and hypervisors scan it."""
PER_DISK_S = 1.0
"""More time for each disk of a domain: it is flushed when the domain stops, and opened when the domain starts."""

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
MIB_PER_GIB = 1024
_SUFFIX = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}


def parse_size(text: str, *, default: str = "") -> int:
    """Bytes in "512", "1G", "1.5GiB", "20MB"; suffixes are powers of 1024, as lvcreate's and qemu-img's.

    `default` is the suffix of a bare number. Raises Refused."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([BKMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise Refused(f"not a size: {text!r}", hint="write a number and K, M, G or T, for example 1G")
    number, suffix = match.groups()
    return int(float(number) * _SUFFIX[(suffix or default).upper()])


def format_size(count: float) -> str:
    """`count` bytes for people: "1.0 GiB", "12.5 MiB", "512 B"."""
    for suffix, unit in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count >= unit:
            return f"{count / unit:.1f} {suffix}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration for people: "0:07", "3:20", "1:02:03"."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def patience(least: float, memory: int, disks: int = 0) -> float:
    """Seconds to wait for a step that takes longer with more `memory` (MiB) and more `disks`; `least` at least."""
    return least + memory / MIB_PER_GIB * PER_GIB_S + disks * PER_DISK_S
