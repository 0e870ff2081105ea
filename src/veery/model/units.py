"""Readable sizes, rates and times."""

from __future__ import annotations

import re

from veery.errors import Refused

PER_GIB_S = 0.5
"""Additional time for each GiB of a domain's memory: the kernel frees it, and hypervisors scan it."""
PER_DISK_S = 1.0
"""Additional time for each disk of a domain: it is flushed at the stop of the domain, and opened at the start."""

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
MIB_PER_GIB = 1024
_SUFFIX = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}


def parse_size(text: str, *, default: str = "") -> int:
    """Return the bytes of "512", "1G", "1.5GiB" or "20MB". Suffixes are powers of 1024, as in lvcreate and qemu-img.

    `default` is the suffix of a number without one. Raises Refused."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([BKMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise Refused(f"not a size: {text!r}", hint="write a number with K, M, G or T, for example 1G")
    number, suffix = match.groups()
    return int(float(number) * _SUFFIX[(suffix or default).upper()])


def format_size(count: float) -> str:
    """Return `count` bytes as text: "1.0 GiB", "12.5 MiB", "512 B"."""
    for suffix, unit in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count >= unit:
            return f"{count / unit:.1f} {suffix}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Return a duration as text: "0:07", "3:20", "1:02:03"."""
    total = int(seconds)
    hours, minutes = divmod(total // 60, 60)
    return f"{hours}:{minutes:02}:{total % 60:02}" if hours else f"{minutes}:{total % 60:02}"


def patience(least: float, memory: int, disks: int = 0) -> float:
    """Return the deadline (seconds) of a step that takes longer with more `memory` (MiB) and `disks`."""
    return least + memory / MIB_PER_GIB * PER_GIB_S + disks * PER_DISK_S
