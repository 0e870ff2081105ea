"""Limits by cgroups, on a folder that stands for the kernel's: it has the files that cgroup v2 has."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from veery.hypervisor.qemu.cgroup import SLACK, Groups, limits
from veery.model.units import MIB


def delegated(root: Path, controllers: str = "cpuset cpu io memory pids", procs: str = "") -> Groups:
    root.mkdir(exist_ok=True)
    (root / "cgroup.controllers").write_text(f"{controllers}\n")
    (root / "cgroup.procs").write_text(procs)
    return Groups(root)


def test_a_domain_may_have_what_was_promised_and_some_more() -> None:
    assert limits(1024, 69, 2) == {
        "memory.max": str((1024 + 69 + SLACK) * MIB),
        "cpu.weight": "200",
        "io.weight": "default 100",
    }
    assert limits(64, 64, 0)["cpu.weight"] == "100"
    assert limits(64, 64, 500)["cpu.weight"] == "10000"


def test_a_process_is_put_into_a_group_of_its_own(tmp_path: Path) -> None:
    groups = delegated(tmp_path / "veery")
    assert groups.open() == ""
    assert (tmp_path / "veery" / "cgroup.subtree_control").read_text() == "+memory"  # the last of three writes
    assert groups.admit("one", 4711, limits(64, 64, 1)) == ""
    group = tmp_path / "veery" / "one"
    assert (group / "cgroup.procs").read_text() == "4711"
    assert (group / "memory.max").read_text() == str((128 + SLACK) * MIB)


def test_what_the_host_does_not_give_is_told(tmp_path: Path) -> None:
    assert "not a version 2 cgroup" in Groups(tmp_path / "none").open()
    assert "no controller io, memory" in delegated(tmp_path / "poor", "cpu").open()
    assert "processes of its own" in delegated(tmp_path / "busy", procs="1\n").open()
    groups = delegated(tmp_path / "veery")
    (tmp_path / "veery" / "one" / "memory.max").mkdir(parents=True)
    told = groups.admit("one", 4711, limits(64, 64, 1))
    assert "memory.max" in told
    assert "cpu.weight" not in told
    assert (tmp_path / "veery" / "one" / "cgroup.procs").read_text() == "4711"  # the other limits hold
    (tmp_path / "veery" / "two").write_text("")
    assert "two" in groups.admit("two", 4711, {})


@pytest.mark.parametrize("inside", [False, True])
def test_empty_groups_of_an_earlier_life_go(tmp_path: Path, inside: bool) -> None:
    groups = delegated(tmp_path / "veery")
    old = tmp_path / "veery" / "old"
    old.mkdir()
    if inside:
        (old / "alive").mkdir()
    assert groups.open() == ""
    assert old.exists() == inside
    (tmp_path / "veery" / "ended").mkdir()
    groups.remove("ended")
    groups.remove("never-made")
    assert not (tmp_path / "veery" / "ended").exists()


def real_root() -> Path | None:
    """A new group in the kernel's own tree, None where it cannot be made."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            made = Path(place) / f"veery-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                made.mkdir()
                return made
    return None


def test_on_the_kernels_own_files() -> None:
    root = real_root()
    if root is None:
        pytest.skip("no cgroup of version 2 can be made here")
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        groups = Groups(root)
        given = (root / "cgroup.controllers").read_text().split()
        told = groups.open()
        assert [name for name in ("cpu", "io", "memory") if name in told] == [
            name for name in ("cpu", "io", "memory") if name not in given
        ]
        told = groups.admit("one", sleeper.pid, limits(64, 64, 1))
        assert ("memory.max" in told) == ("memory" not in given)
        assert Path(f"/proc/{sleeper.pid}/cgroup").read_text().rstrip().endswith(f"/{root.name}/one")
        groups.open()
        assert (root / "one").exists()  # what lives is left alone
        sleeper.kill()
        sleeper.wait(60)
        for _ in range(600):  # the kernel lets go of a group a moment after its last process
            groups.remove("one")
            if not (root / "one").exists():
                break
            time.sleep(0.1)
        assert not (root / "one").exists()
    finally:
        sleeper.kill()
        sleeper.wait(60)
        for each in (root / "one", root):
            with contextlib.suppress(OSError):
                each.rmdir()
