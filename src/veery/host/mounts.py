"""What lies under a path: a filesystem of this node alone, or one that several nodes may write."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = frozenset({"nfs", "nfs4", "ceph", "cifs", "smb3", "glusterfs", "fuse.glusterfs", "ocfs2", "gfs2", "lustre"})
"""Filesystems that two nodes may write at once."""


def shared(path: str) -> bool:
    """Whether `path` lies on a filesystem that several nodes may write (proc(5), mountinfo)."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4]
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind in SHARED
