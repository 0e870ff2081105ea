"""Where bytes are: sparse files for real; LVM's reports as lvm2 2.03 printed them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from veery.errors import Failed, Refused
from veery.model.units import GIB, MIB
from veery.storage.base import whole_mib
from veery.storage.file import FileStore
from veery.storage.lvm import LvmStore, parse_report
from veery.storage.room import Usage


async def test_files_are_sparse_grow_and_go(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "pool")
    assert await store.size("a") is None
    assert await store.create("a", 64 * MIB) == 64 * MIB
    path = store.path("a")
    assert path == tmp_path / "pool" / "a.img"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_blocks * 512 < MIB

    path.write_bytes(b"x" * MIB)
    os.truncate(path, 64 * MIB)
    assert await store.grow("a", 80 * MIB) == 80 * MIB
    assert await store.grow("a", 8 * MIB) == 80 * MIB
    assert path.read_bytes()[:MIB] == b"x" * MIB
    await store.clear("a")
    assert await store.size("a") == 80 * MIB
    assert not any(path.read_bytes())
    await store.delete("a")
    await store.delete("a")
    assert await store.size("a") is None


async def test_files_refuse_what_cannot_be(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    free = await store.free()
    with pytest.raises(Refused, match="do not fit"):
        await store.create("a", free + 1024 * MIB)
    (tmp_path / "b.img").write_bytes(b"precious")
    with pytest.raises(Refused, match="exists already"):
        await store.create("b", MIB)
    with pytest.raises(Refused, match="do not fit"):
        await store.grow("b", free + 1024 * MIB)
    assert (tmp_path / "b.img").read_bytes() == b"precious"
    with pytest.raises(Failed, match=r"c\.img is missing"):
        await store.grow("c", MIB)
    for pool in (tmp_path / "with space", tmp_path / "a,b", Path("relative"), tmp_path / "b.img"):
        with pytest.raises(Refused):
            await FileStore(pool).create("a", MIB)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.img"]


async def test_volumes_leave_room_for_veerys_own_files_on_the_same_filesystem(tmp_path: Path) -> None:
    usage = Usage(total=100 * GIB, free=50 * GIB, promised=30 * GIB, taken=10 * GIB, shared=True)
    assert usage.left == 28 * GIB
    store = FileStore(tmp_path / "pool", tmp_path)
    free = await store.free()
    half = whole_mib(free * 6 // 10)
    await store.create("a", half)
    with pytest.raises(Refused, match="veery's state"):
        await store.create("b", half)
    with pytest.raises(Refused, match="veery's state"):
        await store.grow("a", whole_mib(free - MIB))
    await FileStore(tmp_path / "pool").create("b", half)  # of its own: more may be promised than there is


def test_sizes_are_whole_mebibytes() -> None:
    assert [whole_mib(size) for size in (1, MIB, MIB + 1)] == [MIB, MIB, 2 * MIB]


def test_lvms_reports() -> None:
    groups = """
  {
      "report": [
          {
              "vg": [
                  {"vg_name":"veerysto", "vg_free":"62914560", "vg_size":"62914560", "vg_extent_size":"4194304"}
              ]
          }
      ]
  }
"""
    assert parse_report(groups)[0]["vg_free"] == "62914560"
    assert parse_report('{"report": [{"lv": []}]}') == []
    with pytest.raises(Failed, match="cannot parse lvm2"):
        parse_report("  Volume group not found")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root asks LVM")
async def test_lvm_without_a_group_says_what_to_set() -> None:
    with pytest.raises(Refused, match="no volume group for volumes"):
        await LvmStore("").create("a", MIB)
    with pytest.raises(Refused, match="there is no volume group veery-none-such"):
        await LvmStore("veery-none-such").create("a", MIB)
