"""One node's part of a move under the fake xl, as a process that can be killed; and what the test itself does with xl.

python -m tests.xlnode receive FOLDER PORT      prints prepared, loaded; for a line on its input: finished
python -m tests.xlnode send FOLDER PORT         prints sent, or failed"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from veery.errors import VeeryError
from veery.host.clock import RealClock
from veery.hypervisor.xen.incoming import Incoming
from veery.hypervisor.xen.outgoing import Outgoing
from veery.hypervisor.xen.parse import Row
from veery.model.move import MoveSettings

UUID = "11111111-2222-3333-4444-555555555555"
LETTERS = {"running": ("r-----", None), "paused": ("--p---", None), "suspended": ("---ss-", 2)}


class World:
    """One node's domains under the fake xl, as the xen driver asks and orders."""

    program = "xl"

    def __init__(self, folder: Path, side: str) -> None:
        self.folder, self._side = folder, side

    @contextmanager
    def table(self) -> Iterator[dict[str, dict[str, Any]]]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self.folder / f"{self._side}.json"
            rows = json.loads(path.read_text()) if path.exists() else {}
            yield rows
            path.write_text(json.dumps(rows))

    async def rows(self) -> tuple[Row, ...]:
        with self.table() as rows:
            found = []
            for domid, row in rows.items():
                letters, reason = LETTERS[row["state"]]
                found.append(
                    Row(
                        name=row["name"],
                        domid=int(domid),
                        memory=4,
                        vcpus=1,
                        letters=letters,
                        cpu_seconds=0.0,
                        uuid=row["uuid"],
                        reason=reason,
                    )
                )
            return tuple(found)

    async def resume(self, domid: int) -> None:
        with self.table() as rows:
            assert rows[str(domid)]["state"] == "suspended"
            rows[str(domid)].update(state="running", logged=False)

    async def calm(self, domid: int) -> None:
        with self.table() as rows:
            rows[str(domid)]["logged"] = False

    async def rename(self, domid: int, name: str) -> None:
        with self.table() as rows:
            rows[str(domid)]["name"] = name

    async def unpause(self, domid: int) -> None:
        with self.table() as rows:
            rows[str(domid)]["state"] = "running"

    async def destroy(self) -> None:
        with self.table() as rows:
            for domid in [domid for domid, row in rows.items() if row["uuid"] == UUID]:
                del rows[domid]

    def logged(self) -> list[str]:
        """The domains whose written pages are looked for."""
        with self.table() as rows:
            return [row["name"] for row in rows.values() if row.get("logged")]

    def states(self) -> list[tuple[str, str]]:
        with self.table() as rows:
            return [(row["name"], row["state"]) for row in rows.values()]

    def outgoing(self) -> Outgoing:
        return Outgoing(self.folder / "out", UUID, self, RealClock())

    def incoming(self) -> Incoming:
        return Incoming(self.folder / "in", UUID, "busybox", self)


async def receive(folder: Path, port: int, tls: Path | None = None) -> None:
    incoming = World(folder, "target").incoming()
    with socket.create_server(("127.0.0.1", port)) as door:
        await incoming.prepare()
        print("prepared", flush=True)
        stream, _ = await asyncio.to_thread(door.accept)
        await incoming.receive(stream, disks={"xvda": "/dev/there"}, scripts={}, peer="localhost", tls=tls)
        print("loaded", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await incoming.finish(paused=False)
        print("finished", flush=True)


async def send(folder: Path, port: int, tls: Path | None = None) -> None:
    world = World(folder, "source")
    (row,) = await world.rows()
    outgoing = world.outgoing()  # kept: the relay ends with it
    stream = socket.create_connection(("127.0.0.1", port))
    settings = MoveSettings(bandwidth=int(os.environ.get("RATE", "0")))
    try:
        result = await outgoing.send(row, stream, settings, lambda _: None, peer="localhost", tls=tls)
        print("sent", result.bytes, flush=True)
    except VeeryError as error:
        print("failed", error.message, flush=True)
    finally:
        stream.close()
    await asyncio.to_thread(sys.stdin.readline)


if __name__ == "__main__":
    role, place, number, *certificates = sys.argv[1:]
    asyncio.run({"send": send, "receive": receive}[role](Path(place), int(number), *map(Path, certificates)))
