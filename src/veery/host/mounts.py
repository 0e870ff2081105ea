"""What lies under a path: a filesystem of this node alone, or one that several nodes may write."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

SHARED = frozenset({"nfs", "nfs4", "ceph", "cifs", "smb3", "glusterfs", "fuse.glusterfs", "ocfs2", "gfs2", "lustre"})
"""Filesystems that two nodes may write at once."""


CHECKSUMMED = frozenset({"btrfs"})
"""Filesystems whose checksums a guest spoils by changing what is being written past the page cache."""
DIRECT_BYTES = 4096


def shared(path: str) -> bool:
    """Whether `path` lies on a filesystem that several nodes may write."""
    return filesystem(path) in SHARED


def takes_direct(path: str) -> bool:
    """Whether a file can be read past the page cache (open(2), O_DIRECT), and written so without harm."""
    if filesystem(path) in CHECKSUMMED:
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, DIRECT_BYTES) as buffer:  # as aligned as any filesystem wants it
                os.preadv(handle, [buffer], 0)
        finally:
            os.close(handle)
    except OSError:
        return False
    return True


def filesystem(path: str) -> str:
    """The type of the filesystem on which `path` lies (proc(5), mountinfo)."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4]
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind
