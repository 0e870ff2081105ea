"""The Debian package in a bare root: installed, upgraded, downgraded, removed, purged.

`make deb-test` makes the packages first. No systemd runs in the root: `systemctl` there stands in for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from veery.lab import fresh, packages

SUITE = os.environ.get("VEERY_SUITE", "bookworm")
BUILT = Path(__file__).parents[2] / ".cache/deb" / SUITE
HERE = Path(__file__).parent
# What a voter with storage needs of the packages that veery recommends.
BESIDE = ("etcd-server", "tgt", "lvm2", "e2fsprogs")
STEPS = (
    "installed",
    "a node with etcd, tgtd, a volume and a stand-in for a domain",
    "upgrade and downgrade: veeryd alone was started anew",
    "a veeryd that was stopped stays stopped",
    "removed: etcd, tgtd and the domain run on",
    "purged: keys, store and volumes are as they were",
    "installed again: the node goes on",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def root() -> Iterator[Path]:
    """A bare Debian root with the two packages in /root."""
    folder = packages.cache() / "fresh"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "root"
        fresh.make(made, SUITE)
        for path in (*sorted(BUILT.glob("*.deb")), HERE / "trial.sh"):
            shutil.copy(path, made / "root")
        yield made


def inside(root: Path, *words: str) -> str:
    """What `words` print inside `root`; fails where they fail."""
    done = subprocess.run(
        fresh.command(root, words, dict(os.environ)),
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_the_life_of_the_package(root: Path) -> None:
    """`BUILT` holds two packages that differ in their revision alone."""
    old, new = (f"/root/{path.name}" for path in sorted(BUILT.glob("*.deb")))
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")  # Debian's etcd and tgt do not start
    policy.chmod(0o755)
    inside(root, "apt-get", "update", "-q")
    inside(root, "apt-get", "install", "-y", "-q", "--no-install-recommends", old, *BESIDE)
    shutil.copy(HERE / "systemctl", root / "usr/local/bin/systemctl")
    (root / "usr/local/bin/systemctl").chmod(0o755)
    told = inside(root, "unshare", "--net", "bash", "/root/trial.sh", old, new)
    assert [line.removeprefix("good: ") for line in told.splitlines() if line.startswith("good: ")] == list(STEPS), told
