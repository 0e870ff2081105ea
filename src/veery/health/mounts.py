"""The mount table, as far as the node's own paths need it (proc(5), /proc/pid/mountinfo)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from veery.health.source import Source, lines

ROWS_MAX = 5000
OWN_PATHS = ("/", "/var/lib/veery")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount."""

    point: str
    device: str  # MAJOR:MINOR
    kind: str
    source: str
    options: frozenset[str]
    whole_options: frozenset[str]  # of the filesystem, independent of the options of this mount

    def is_of(self, name: str) -> bool:
        """Return True if the kernel names this mount's device by `name`, such as dm-4 or sda1."""
        if name.startswith("dm-"):
            return self.device.endswith(f":{name[3:]}") and (self.device.startswith(("252:", "253:", "254:")))
        return self.source == f"/dev/{name}"

    @property
    def is_read_only(self) -> bool:
        """Return True if nothing can be written there. A root that is mounted read-only on a writable filesystem is
        intended."""
        if self.whole_options & {"ro", "emergency_ro", "shutdown"}:
            return True
        return "ro" in self.options and self.point != "/"


def read(source: Source) -> tuple[Mount, ...] | None:
    """Return the mount table, or None if there is none."""
    text = source.text("proc/self/mountinfo")
    if text is None:
        return None
    found = []
    for line in lines(text)[:ROWS_MAX]:
        before, dash, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if dash and len(left) >= 6 and len(right) >= 3:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), left[4])
            found.append(
                Mount(point, left[2], right[0], right[1], frozenset(left[5].split(",")), frozenset(right[2].split(",")))
            )
    return tuple(found)


def under(mounts: Sequence[Mount], path: str) -> Mount | None:
    """Return the mount that contains `path`: the deepest mount point, and of several the one mounted last."""
    wanted = PurePosixPath(path)
    holding = [mount for mount in mounts if wanted.is_relative_to(mount.point)]
    return max(reversed(holding), key=lambda mount: len(PurePosixPath(mount.point).parts), default=None)


def own(mounts: Sequence[Mount], paths: Sequence[str] | None) -> list[Mount]:
    """Return the mounts that contain the node's own paths."""
    found = (under(mounts, path) for path in paths or OWN_PATHS)
    return list(dict.fromkeys(mount for mount in found if mount))
