"""The outer QEMU of nested nodes: Debian 12's own 7.2, unpacked into the cache and never installed.

PVH domains run under its emulated SVM; under that of 10.0.2 they shut down at once. The fault of 7.2's moves
(packages.py) does not matter here: an outer machine never moves, and its snapshot is taken while it is paused."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from veery.host.run import run
from veery.lab.apt import Report
from veery.lab.xen import image

PACKAGE, PROGRAM = "qemu-system-x86", "qemu-system-x86_64"
# QEMU uses this machine's C library, which must match the loader and NSS. Debian 12's is the oldest supported.
_GLIBC = ("ld-linux*", *(f"lib{name}.so.*" for name in ("c", "m", "mvec", "pthread", "dl", "rt", "resolv", "util")))


@dataclass(frozen=True, slots=True)
class Emulator:
    """One unpacked QEMU, in the folder `tree`."""

    tree: Path

    @property
    def argv(self) -> list[str]:
        """Return the command that runs it, without its options."""
        (libraries,) = (self.tree / "usr/lib").glob("*-linux-gnu")
        return ["env", f"LD_LIBRARY_PATH={libraries}", str(self.tree / "usr/bin" / PROGRAM)]

    async def version(self) -> str:
        """Return the output of `--version`. Raises Failed."""
        return (await run([*self.argv, "--version"], deadline=20)).out


async def unpack(tree: Path, report: Report) -> None:
    """Download and unpack QEMU into the folder `tree`, which must not exist yet. Raises Refused, Failed."""
    report("fetching and unpacking the nested machines' QEMU", 0.0)
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=tree.parent) as name:
        made = await image.extract((PACKAGE,), Path(name))
        for path in (path for each in _GLIBC for path in made.glob(f"usr/lib/*-linux-gnu/{each}")):
            path.unlink()
        for unread in ("usr/libexec", "usr/share/doc", "usr/share/man", "usr/share/locale", "var"):
            shutil.rmtree(made / unread, ignore_errors=True)
        made.rename(tree)
