"""The filesystem below a path: one of this node only, or one that several nodes may write."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

SHARED = frozenset({"nfs", "nfs4", "ceph", "cifs", "smb3", "glusterfs", "fuse.glusterfs", "ocfs2", "gfs2", "lustre"})
"""Filesystems that several nodes may write at once."""


CHECKSUMMED = frozenset({"btrfs"})
"""Filesystems whose checksums break if a guest changes data during a write that bypasses the page cache."""
DIRECT_BYTES = 4096


def shared(path: str) -> bool:
    """Return whether `path` is on a filesystem that several nodes may write."""
    return filesystem(path) in SHARED


def takes_direct(path: str) -> bool:
    """Return whether a file can be read with O_DIRECT (open(2)), and safely written with it."""
    if filesystem(path) in CHECKSUMMED:
        return False
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, DIRECT_BYTES) as buffer:  # aligned enough for any filesystem
                os.preadv(handle, [buffer], 0)
        finally:
            os.close(handle)
    except OSError:
        return False
    return True


def filesystem(path: str) -> str:
    """Return the type of the filesystem of `path` (proc(5), mountinfo)."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4]
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind
