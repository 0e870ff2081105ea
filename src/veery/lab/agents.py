"""Debian's fence agents, unpacked into the user's cache and never installed: as a package they would bring 28 others,
for the clouds' interfaces. Of what they need in Python only the terminal and HTTP libraries are taken along.

Only the standard library is used here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed
from veery.lab.apt import Report
from veery.lab.packages import cache, private_apt

PACKAGES = ("fence-agents", "python3-pexpect", "python3-ptyprocess", "python3-pycurl")


@dataclass(frozen=True, slots=True)
class Agents:
    """Where they are."""

    root: Path

    def program(self, name: str) -> Path:
        """The agent `name`: fence_dummy."""
        return self.root / "usr/sbin" / name

    @property
    def env(self) -> dict[str, str]:
        """What they need in their environment to be found where they are."""
        return {"PYTHONPATH": f"{self.root / 'usr/share/fence'}:{self.root / 'usr/lib/python3/dist-packages'}"}


def find() -> Agents | None:
    """Those that `fetch` unpacked."""
    agents = Agents(cache() / "agents")
    return agents if agents.program("fence_dummy").exists() else None


def fetch(report: Report) -> Agents:
    """Downloaded and unpacked if they are not there yet. Raises Refused, Failed."""
    found = find()
    if found:
        return found
    apt, _ = private_apt()
    apt.update(report)
    final = cache() / "agents"
    with tempfile.TemporaryDirectory(prefix=".", dir=cache()) as name:
        scratch, tree = Path(name), Path(name) / "tree"
        for number, package in enumerate(PACKAGES):
            report(f"downloading {package}", (number + 1) / (len(PACKAGES) + 1))
            file = apt.download(package, scratch)
            done = subprocess.run(["dpkg", "-x", file, tree], check=False, capture_output=True, text=True, timeout=60)
            if done.returncode:
                raise Failed(f"cannot unpack {file.name}: {done.stderr.strip()}", hint="is the disk full?")
        shutil.rmtree(final, ignore_errors=True)
        tree.rename(final)
    return Agents(final)
