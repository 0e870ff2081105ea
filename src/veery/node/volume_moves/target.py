"""The side of a volume's move on the storage node that the volume goes to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from veery.cluster import volumegate as gate
from veery.cluster.keys import VOLUMES
from veery.errors import Failed
from veery.model.volume import Volume, VolumeMove
from veery.node.peers import read_answer
from veery.node.volume_moves.common import Common, Report
from veery.node.volume_moves.journal import Side
from veery.node.volume_moves.wire import order_path, pieces
from veery.storage.extents import sync, write_sparse


class TargetSide:
    """The moves that bring a volume to this node."""

    def __init__(self, common: Common) -> None:
        self._common = common

    async def place(self, volume: Volume) -> Volume:
        """As storage.volumes.Volumes.place."""
        return await self._common.service.mine().place(volume)

    async def take_in(self, move: VolumeMove) -> None:
        """Make the new bytes and serve them. Raises Refused, Failed; then nothing is left."""
        volumes, move = self._common.service.mine(), await self._common.known(move, move.target)
        self._common.journal.write(Side.TARGET, move)
        with self._common.working(Side.TARGET, move):
            await volumes.take_in(move.place, move.node)

    async def fetch(self, move: VolumeMove, report: Report) -> dict[str, Any]:
        """Copy a volume that no domain uses from its node. Raises Failed, Refused."""
        move = await self._common.known(move, move.target)
        with self._common.working(Side.TARGET, move):
            return {"bytes": await self._common.while_standing(move, self._fetch(move, report))}

    async def _fetch(self, move: VolumeMove, report: Report) -> int:
        rows = await self._common.peers.call(move.source, "GET", order_path(move.volume, "extents"), deadline=60)
        parts = [(int(offset), int(length)) for offset, length in rows]
        done, total, begun = 0, sum(length for _, length in parts), self._common.clock.now()
        path = Path(move.place.path)
        with await asyncio.to_thread(path.open, "rb+", buffering=0) as file:
            for offset, length in parts:
                where = order_path(move.volume, f"content?offset={offset}&length={length}")
                at = offset
                async with await self._common.peers.open(move.source, "GET", where) as response:
                    if response.status >= 400:
                        await read_answer(response)
                    async for piece in pieces(response, move.source):
                        await asyncio.to_thread(write_sparse, file, at, piece)
                        at, done = at + len(piece), done + len(piece)
                        report("copying", done, total)
                        if move.rate:
                            await self._common.clock.sleep(
                                max(0.0, done / move.rate - (self._common.clock.now() - begun))
                            )
                if at != offset + length:
                    raise Failed(f"{move.source} closed the connection before the end", hint="see veeryd's log there")
        await asyncio.to_thread(sync, path)
        return done

    def recall(self, move: VolumeMove) -> None:
        """Serve the new bytes of a move that the journal has, until it is settled."""
        self._common.service.mine().expect(move.place, move.node)

    async def settle(self, move: VolumeMove) -> None:
        """Try once to end a move of the journal, if it is decided. Raises VeeryError."""
        standing = await gate.standing(self._common.store, move.volume)
        if standing is not None and standing.id == move.id:
            return  # it continues
        record = await VOLUMES.get(self._common.store, move.volume)
        if gate.arrived(record, move):
            await self._common.service.mine().arrived(move.place)
        else:
            await self._common.let_go(move)
            await self._common.service.mine().give_up(move.place)
        self._common.journal.strike(Side.TARGET, move)
