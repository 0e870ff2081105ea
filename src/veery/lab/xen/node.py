"""A nested node in a lab: its namespace has the cables, an outer QEMU and the door; dom0 and veeryd are inside QEMU.

Its folder has `root.qcow2`, which is made again at every power-on, and `state.img`, which stays: veery's state and
settings, the iSCSI records, saved domains; also veery itself and the guests' kernel, which are not in the snapshot."""

from __future__ import annotations

import asyncio
import compileall
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import veery
from veery.errors import Failed
from veery.host.files import write_atomic
from veery.host.process import Process
from veery.host.run import run
from veery.lab import guest, hosts
from veery.lab.members import Member
from veery.lab.plan import NAMESPACES, PREFIX, Machine, Plan
from veery.lab.xen import dom0, talk
from veery.lab.xen.outer import Outer
from veery.lab.xen.snapshot import STATE_SIZE, Snapshot

_WAKE_TIMEOUT_S = 240.0  # from power-on to the agent's first answer
_SETTLE_TIMEOUT_S = 240.0  # to mount disks, set names and start services
_MODULE = "veery.lab.xen"
# veery.toml's lines with long timeouts: on a busy machine software emulation can pause for seconds.
SLOW_SETTINGS = ("presence_ttl = 20", "[etcd]", "deadline = 15.0", "[guard]", "end = 60.0")


@dataclass(frozen=True, slots=True)
class Nested:
    """One nested node of the lab `plan`."""

    plan: Plan
    node: Machine

    @property
    def namespace(self) -> Path:
        """Return the namespace of its cables, its outer QEMU and its door."""
        return NAMESPACES / self.plan.namespace(self.node.name)

    @property
    def folder(self) -> Path:
        """Return the folder, on this machine, of its disks, its sockets and the outer QEMU's logs."""
        return self.plan.home(self.node.name) / "outer"

    @property
    def _golden(self) -> Path:
        return self.folder / "golden"

    # ---- its disks
    async def make(self, golden: Snapshot) -> None:
        """Make the folder and the disks of a new node."""
        self.folder.mkdir(parents=True)
        self._golden.symlink_to(golden.memory.parent)
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            staged = Path(name)
            await asyncio.to_thread(self._stage, staged)
            state = self.folder / "state.img"
            words = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]
            await run([*words, "-d", staged, state, f"{STATE_SIZE >> 10}k"], deadline=60)

    def _stage(self, folder: Path) -> None:
        """Write the initial contents of the state disk to `folder`."""
        source = folder / "source" / "veery"
        shutil.copytree(Path(veery.__file__).parent, source)
        if sys.version_info[:2] == (3, 11):  # dom0's version
            compileall.compile_dir(source, quiet=2)
        if kernel := guest.find():
            (folder / "guest").mkdir()
            shutil.copy(kernel.kernel, folder / "guest" / "vmlinuz")
            shutil.copy(kernel.ramdisk, folder / "guest" / "initramfs")
        (folder / "etc").mkdir()
        rows = [
            f"# node {self.node.name} of lab {self.plan.lab}, written by veery lab up",
            *SLOW_SETTINGS,
            "[relocation]",
        ]
        rows += [f'address = "{self.node.address}"', "port = 8002", 'hosts_allow = ""', ""]
        write_atomic(folder / "etc" / "veery.toml", "\n".join(rows), mode=0o644)

    # ---- its power
    async def power_on(self) -> None:
        """Start a dom0 with its name, addresses and disk, but without veeryd. Raises Failed."""
        root, golden = self.folder / "root.qcow2", Snapshot.at(self._golden.resolve())
        root.unlink(missing_ok=True)
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b"]
        await run([*overlay, golden.image.root, root], deadline=30)
        outer = Outer(golden.emulator, golden.image.folder, root, self.folder / "state.img", self.folder)
        outer.socket.unlink(missing_ok=True)
        argv = hosts.enter(self.namespace.name, outer.argv(waiting=True))
        process = Process.spawn(argv, log_file=self.folder / "outer.log", cwd=golden.image.folder)
        await outer.load(process, golden.memory)
        await talk.answers(self.namespace, deadline=_WAKE_TIMEOUT_S)
        await talk.born(self.namespace)
        address = f"{self.node.address}/{PREFIX}"
        await self.run(
            ["sh", "-c", dom0.BECOME, "become", self.node.name, address, self.node.mac], deadline=_SETTLE_TIMEOUT_S
        )
        self._open_door()

    def _open_door(self) -> None:
        """Make the daemon's socket available at the usual place of a lab's node."""
        here = self.plan.home(self.node.name) / "run" / "api.sock"
        words: list[str | Path] = [sys.executable, "-m", f"{_MODULE}.door", here, "/run/veery/api.sock"]
        Process.spawn(hosts.enter(self.namespace.name, words), log_file=self.folder / "door.log")

    # ---- inside
    def enter(self, argv: Sequence[str | Path]) -> list[str | Path]:
        """Return the command line that runs `argv` in dom0."""
        return hosts.enter(self.namespace.name, [sys.executable, "-m", f"{_MODULE}.call", *argv])

    async def run(self, argv: Sequence[str | Path], *, deadline: float) -> str:
        """Run `argv` in dom0; return its output. Raises Failed."""
        result = await run(self.enter(argv), deadline=deadline, check=False)
        if result.code:
            message = (result.err.strip() or result.out.strip() or "no message").splitlines()[-1]
            raise Failed(f"{argv[0]} in {self.node.name} failed with {result.code}: {message}")
        return result.out

    async def members(self) -> tuple[Member, ...]:
        """Return the processes in dom0, with its own pids."""
        return await talk.members(self.namespace)
