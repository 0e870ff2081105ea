"""What a file's filesystem can."""

from __future__ import annotations

import os
from pathlib import Path

from veery.host.mounts import filesystem, takes_direct


def test_a_file_that_the_kernel_opens_past_its_cache_takes_it(tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(bytes(10))  # shorter than what is read
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
        can = filesystem(str(file)) != "btrfs"
    except OSError:
        can = False
    assert takes_direct(str(file)) is can


def test_what_cannot_does_not() -> None:
    assert not takes_direct("/proc/self/status")  # proc(5) has no O_DIRECT
    assert not takes_direct("/nowhere/disk.raw")
    assert filesystem("/proc/self/status") == "proc"
