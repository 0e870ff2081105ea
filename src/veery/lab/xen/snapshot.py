"""The golden snapshot: a nested machine is booted once, and its memory is kept and copied for every node of every lab.

In XDG_CACHE_HOME/veery/xen: `qemu-KEY` and `tree-KEY` are unpacked packages, the outer QEMU's and dom0's; `golden-KEY`
is an image, with `memory` and a link to its QEMU. KEY is a hash of its sources, so a change of them makes another
snapshot, and a running lab keeps its own."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from veery.errors import Failed, Refused
from veery.host.process import Process
from veery.lab.apt import Report
from veery.lab.packages import cache
from veery.lab.xen import agent, dom0, emulator, image
from veery.lab.xen.emulator import Emulator
from veery.lab.xen.image import Image
from veery.lab.xen.outer import Outer

STATE_SIZE = 1 << 30  # bytes; the snapshot contains the size of the second disk
_BOOT_TIMEOUT_S = 240.0  # from power-on to the agent's message
_LOCK_TIMEOUT_S = 900.0  # to wait for another process that makes the snapshot
_UNUSED_S = 3 * 86400.0  # after this time an unused snapshot is removed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is ready: `image`, the `emulator` that booted a machine from it, and that machine's `memory`."""

    image: Image
    emulator: Emulator
    memory: Path

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Return the snapshot in `folder`."""
        return cls(Image(folder), Emulator((folder / "qemu").resolve()), folder / "memory")


def find(key: str) -> Snapshot | None:
    """Return the snapshot `key`, or None."""
    golden = Snapshot.at(_folder() / f"golden-{key}")
    return golden if golden.memory.exists() else None


async def ready(report: Report) -> Snapshot:
    """Return the snapshot; make it if it is missing: half a minute for the packages, which are kept, and as much for
    the boot. Raises Refused, Failed."""
    async with _locked():
        for path in _folder().glob(".*"):  # left by a killed process
            shutil.rmtree(path, ignore_errors=True)
        outer = Emulator(_folder() / f"qemu-{_hash(dom0.SUITE, emulator.PACKAGE)}")
        if not outer.tree.exists():
            await emulator.unpack(outer.tree, report)
        os.utime(outer.tree)
        key = await _key(outer)
        golden = find(key)
        if golden is None:
            golden = await _make(key, outer, report)
        os.utime(golden.memory.parent)
        _clear(keep={golden.memory.parent, outer.tree, _tree()})
    return golden


async def _make(key: str, outer: Emulator, report: Report) -> Snapshot:
    tree = _tree()
    if not tree.exists():
        await image.unpack(tree, report)
    os.utime(tree)
    with tempfile.TemporaryDirectory(prefix=".", dir=_folder()) as name:
        made = await image.build(tree, Path(name), report)
        report("booting a nested machine for its snapshot", 0.7)
        await _boot(made, outer)
        (made.folder / "qemu").symlink_to(outer.tree)
        final = _folder() / f"golden-{key}"
        shutil.rmtree(final, ignore_errors=True)
        made.folder.rename(final)
        made.folder.mkdir()  # for TemporaryDirectory to remove
    found = find(key)
    assert found is not None
    return found


async def _boot(made: Image, outer: Emulator) -> None:
    """Boot the image in its own network namespace, wait for the agent's message, and write `memory`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = folder / "state.img"
        state.touch()
        os.truncate(state, STATE_SIZE)
        machine = Outer(outer, made.folder, made.root, state, folder)
        log = folder / "outer.log"
        words = ["unshare", "--net", "setpriv", "--pdeathsig", "KILL", *machine.argv()]
        process = Process.spawn(words, log_file=log, cwd=made.folder)
        try:
            ends = time.monotonic() + _BOOT_TIMEOUT_S
            while agent.READY not in _text(machine.console):
                if not process.alive() or time.monotonic() > ends:
                    kept = made.folder.parent / "failed.log"
                    kept.write_text(_text(machine.console) + _text(log))
                    raise Failed("the nested machine did not boot", hint=f"its console is in {kept}")
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.0)  # for the rest of its boot
            partial = made.folder / "memory.part"
            await machine.save(process, partial)
        finally:
            await process.stop(grace=10)
        partial.rename(made.folder / "memory")


def _text(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(errors="replace")
    return ""


async def _key(outer: Emulator) -> str:
    """Return a short hash of everything that the snapshot is made from."""
    files = [repr(part) for part in (dom0.FILES, dom0.LINKS, dom0.FOLDERS, dom0.BOOT_MODULES, image.site())]
    files += [Path(str(part.__file__)).read_text() for part in (agent, image)]
    machine = Outer(outer, *(Path(name) for name in ("boot", "root.img", "state.img", "folder"))).argv()
    return _hash(_tree().name, await outer.version(), str(STATE_SIZE), *machine, *files)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _tree() -> Path:
    """Where dom0's packages are."""
    sources = " ".join((dom0.SUITE, dom0.HYPERVISOR_NEEDS, *dom0.PACKAGES, *dom0.MODULES))
    return _folder() / f"tree-{_hash(sources)}"


def _folder() -> Path:
    return cache() / "xen"


def _clear(keep: set[Path]) -> None:
    """Remove what was not used for a long time."""
    for path in _folder().glob("*-*"):
        if path not in keep and path.is_dir() and time.time() - path.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(path, ignore_errors=True)


@asynccontextmanager
async def _locked() -> AsyncIterator[None]:
    """Let one process at a time make a snapshot; the kernel releases the lock of a killed one. Raises Refused."""
    _folder().mkdir(parents=True, exist_ok=True)
    handle = os.open(_folder() / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    ends = time.monotonic() + _LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > ends:
                    raise Refused("another process is making the nested machine's snapshot") from None
            await asyncio.sleep(0.5)
        yield
    finally:
        os.close(handle)
