"""The guest's initramfs follows the code that makes it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from veery.lab.guest import Guest, refresh


def test_an_old_initramfs_is_built_anew_once(guest: Guest, tmp_path: Path) -> None:
    ramdisk = tmp_path / "initramfs"
    ramdisk.write_bytes(b"of an older veery")
    os.utime(ramdisk, (0, 0))
    mine = replace(guest, ramdisk=ramdisk)
    assert refresh(mine)
    assert ramdisk.read_bytes().startswith(b"\x1f\x8b")
    assert not refresh(mine)
