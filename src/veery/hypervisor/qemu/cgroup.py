"""Limits of each domain's QEMU, by a cgroup of its own under one that the host delegates to veeryd (Linux,
Documentation/admin-guide/cgroup-v2.rst). Where that fails, a domain runs without limits rather than not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from veery.model.units import MIB

CONTROLLERS = ("cpu", "io", "memory")
SLACK = 512
"""MiB beyond what is promised for a domain and its QEMU before the kernel ends it: that ends a leak, but a wrong
estimate of the overhead must not end a domain."""
WEIGHT, WEIGHT_MAX = 100, 10_000


def limits(memory: int, overhead: int, vcpus: int) -> Mapping[str, str]:
    """Return what to write into which file, for a domain with `memory` and `overhead` MiB. Processor time under
    contention is shared by the number of processors; disk time is the same for all."""
    return {
        "memory.max": str((memory + overhead + SLACK) * MIB),
        "cpu.weight": str(min(WEIGHT * max(vcpus, 1), WEIGHT_MAX)),
        "io.weight": f"default {WEIGHT}",
    }


class Groups:
    """The cgroups below `root`."""

    def __init__(self, root: Path) -> None:
        """Nothing happens before `open`."""
        self._root = root

    def open(self) -> str:
        """Enable the controllers for the groups below, and remove the empty groups. Returns what is missing, "" if
        nothing."""
        available = self._root / "cgroup.controllers"
        try:
            given = available.read_text().split()
            if (self._root / "cgroup.procs").read_text().strip():
                return f"{self._root} has processes of its own"
        except OSError:
            return f"{self._root} is not a version 2 cgroup"
        for child in self._root.iterdir():
            if child.is_dir():
                self._remove(child)
        missing = [name for name in CONTROLLERS if name not in given]
        for name in given:
            if name in CONTROLLERS:
                try:
                    (self._root / "cgroup.subtree_control").write_text(f"+{name}")
                except OSError as error:
                    missing.append(f"{name} ({error.strerror})")
        return f"{self._root} has no controller {', '.join(missing)}" if missing else ""

    def admit(self, name: str, pid: int, wanted: Mapping[str, str]) -> str:
        """Put process `pid` into a new group with these limits. Returns what failed, "" if nothing."""
        group, failed = self._root / name, []
        try:
            group.mkdir(exist_ok=True)
        except OSError as error:
            return f"{group}: {error.strerror}"
        for file, value in (*wanted.items(), ("cgroup.procs", str(pid))):
            try:
                (group / file).write_text(value)
            except OSError as error:
                failed.append(f"{file}: {error.strerror}")
        return f"{group}: {', '.join(failed)}" if failed else ""

    def remove(self, name: str) -> None:
        """Remove a group whose process has ended."""
        self._remove(self._root / name)

    def _remove(self, group: Path) -> None:
        with contextlib.suppress(OSError):  # it was never made, or still has processes
            group.rmdir()
