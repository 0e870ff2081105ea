"""Real parts for the storage tests: a private tgtd on loopback, and QEMU's own initiator to log in with."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from veery.errors import Failed, Refused
from veery.host.clock import RealClock
from veery.host.process import Service
from veery.host.run import Result, run
from veery.model.volume import Backing, Initiator, Volume
from veery.storage.file import FileStore
from veery.storage.names import initiator_iqn
from veery.storage.served import Served
from veery.storage.tgt import TargetServer
from veery.storage.volumes import Volumes

AUTHORITY = "2026-11.lab.veery"
TEST1 = Initiator(node="test1", iqn=initiator_iqn(AUTHORITY, "test1"), user="test1", password="first-secret-1")
TEST2 = Initiator(node="test2", iqn=initiator_iqn(AUTHORITY, "test2"), user="test2", password="other-secret-2")


class MemoryRecords:
    """The cluster's records, kept in a dict. `lost`: they cannot be read now."""

    def __init__(self, *initiators: Initiator) -> None:
        self.kept: dict[str, Volume] = {}
        self.known = list(initiators)
        self.fenced: set[tuple[str, str]] = set()
        self.used: dict[str, list[str]] = {}
        self.lost = False

    async def volumes(self) -> Sequence[Volume]:
        if self.lost:
            raise Failed("the store does not answer")
        return list(self.kept.values())

    async def initiators(self) -> Sequence[Initiator]:
        return self.known

    async def denied(self) -> Collection[tuple[str, str]]:
        return self.fenced

    async def users(self, name: str) -> Sequence[str]:
        return self.used.get(name, [])

    async def put(self, volume: Volume, *, new: bool = False) -> None:
        if new and volume.name in self.kept:
            raise Refused(f"there is a volume {volume.name} already")
        self.kept[volume.name] = volume

    async def take_tid(self, least: int) -> int:
        return least

    async def remove(self, volume: Volume) -> None:
        self.kept.pop(volume.name, None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Storage:
    """One storage node: tgtd under a Service, and its volumes in a folder."""

    def __init__(self, folder: Path, records: MemoryRecords, port: int, *, sync: bool = True) -> None:
        self.records = records
        self.run = folder / "run"
        self.pool = folder / "pool"
        self.folder = folder
        self.server = TargetServer(address="127.0.0.1", port=port, run=self.run)
        self._sync = sync
        self.volumes = self.with_memory(Served(folder / "served.json"))
        self.starts = 0
        self.served = asyncio.Event()
        self.service = Service(
            "tgtd", self.server.command, run=self.run, env=self.server.env, started=self._started, pause=0.05
        )

    def with_memory(self, served: Served) -> Volumes:
        """Its volumes, as a daemon that has just begun has them."""
        return Volumes(
            node="stor",
            server=self.server,
            stores={Backing.FILE: FileStore(self.pool)},
            records=self.records,
            authority=AUTHORITY,
            clock=RealClock(),
            served=served,
            sync=self._sync,
        )

    async def _started(self) -> None:
        await self.server.ready()
        try:
            await self.volumes.reconcile()
        except Failed:
            if not self.records.lost:
                raise
        self.starts += 1
        self.served.set()

    async def again(self) -> None:
        """Kill tgtd and return once the next one serves."""
        self.served.clear()
        assert self.service.process is not None
        await self.service.process.stop(grace=0)
        async with asyncio.timeout(30):
            await self.served.wait()


@asynccontextmanager
async def storage(*initiators: Initiator, sync: bool = True) -> AsyncIterator[Storage]:
    """A storage node for the while. Its folder is a short one: unix sockets' paths are (108 bytes)."""
    with tempfile.TemporaryDirectory(prefix="veery-st-") as folder:
        node = Storage(Path(folder), MemoryRecords(*initiators), free_port(), sync=sync)
        task = asyncio.create_task(node.service.run())
        try:
            async with asyncio.timeout(30):
                await node.served.wait()
            yield node
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            if node.service.process is not None:  # tgtd ignores SIGTERM
                await node.service.process.stop(grace=0)
            await node.service.stop()


def login(volume: Volume, initiator: Initiator, *, password: str = "", name: str = "") -> list[str]:
    """QEMU's words for the volume's LUN as `initiator` sees it, for qemu-img and qemu-io."""
    return [
        "--object",
        f"secret,id=chap,data={password or initiator.password}",
        "--image-opts",
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={volume.portal},file.target={volume.iqn},"
        f"file.lun=1,file.user={initiator.user},file.password-secret=chap,file.initiator-name={name or initiator.iqn}",
    ]


async def qemu_io(volume: Volume, initiator: Initiator, *commands: str, **changes: str) -> Result:
    """Run qemu-io commands on the LUN."""
    words = [word for command in commands for word in ("-c", command)]
    return await run(["qemu-io", *words, *login(volume, initiator, **changes)], deadline=30, check=False)
