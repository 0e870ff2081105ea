"""Debian's fence agents, unpacked into the user's cache and never installed: the package would install 28 others, for
cloud APIs. Of their Python dependencies only the terminal and HTTP libraries are unpacked too.

This module uses only the standard library."""

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
    """The folder of the unpacked agents."""

    root: Path

    def program(self, name: str) -> Path:
        """Return the path of agent `name`, for example fence_dummy."""
        return self.root / "usr/sbin" / name

    @property
    def env(self) -> dict[str, str]:
        """Return the environment variables with which the agents find their files."""
        return {"PYTHONPATH": f"{self.root / 'usr/share/fence'}:{self.root / 'usr/lib/python3/dist-packages'}"}


def find() -> Agents | None:
    """Return the agents that `fetch` unpacked, or None."""
    agents = Agents(cache() / "agents")
    return agents if agents.program("fence_dummy").exists() else None


def fetch(report: Report) -> Agents:
    """Download and unpack the agents if they are missing. Raises Refused, Failed."""
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
