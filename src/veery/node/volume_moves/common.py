"""What the three sides of a volume's move share on one node: the store, the journal, and which moves are at work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from veery.cluster import owner as owners
from veery.cluster import volumegate as gate
from veery.cluster.store import Store, StoreUnavailable
from veery.config.check import check_move, short
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host import tasks
from veery.host.clock import Clock
from veery.model.volume import Volume, VolumeMove
from veery.node.peers import Peers
from veery.node.volume_moves.journal import Journal, Side
from veery.node.volume_moves.wire import order_path
from veery.node.volumes import VolumeService

log = logging.getLogger(__name__)
T = TypeVar("T")

Report = Callable[[str, int, int], None]
"""Called with the step, the bytes done and the bytes in all."""

KEY_CHECK_INTERVAL_S = 1.0  # seconds between two checks of the move's key while bytes flow
RETRY_INTERVAL_S = 1.0


class Common:
    """One a node. The three sides of this node's moves use it."""

    def __init__(self, service: VolumeService, *, store: Store, peers: Peers, clock: Clock, journal: Journal) -> None:
        self.node = service.node
        self.service, self.store, self.peers, self.clock, self.journal = service, store, peers, clock, journal
        self._at_work: set[tuple[Side, str]] = set()

    @contextlib.contextmanager
    def working(self, side: Side, move: VolumeMove) -> Iterator[None]:
        """Keep `settle` from this part of the move meanwhile."""
        key = (side, move.id)
        if key in self._at_work:
            raise Refused(f"volume {move.volume} is being moved already", hint="veery moves shows how far it is")
        self._at_work.add(key)
        try:
            yield
        finally:
            self._at_work.discard(key)

    def at_work(self, side: Side, move: VolumeMove) -> bool:
        """Return whether a task works on this side of the move."""
        return (side, move.id) in self._at_work

    async def known(self, move: VolumeMove, node: str) -> VolumeMove:
        """Return the move as the store has it: another node's order only names it. `node` is the node that the order is
        for.

        Raises Refused if the move does not exist or the order is for another node. Raises StoreUnavailable."""
        check_move(move.id)
        known = await gate.standing(self.store, move.volume)
        if known is None or replace(known, revision=0) != replace(move, revision=0) or node != self.node:
            said = f"there is no move {move.id} of volume {short(move.volume)} for {self.node}"
            raise Refused(said, hint="veery volume list shows what is being moved")
        return known

    async def dropped(self, move: VolumeMove, *, deadline: float | None = None) -> Volume | None:
        """Call gate.drop until the store answers. Raises OutcomeUnknown after `deadline` seconds."""
        try:
            async with asyncio.timeout(deadline):
                while True:
                    try:
                        return await gate.drop(self.store, move)
                    except (StoreUnavailable, OutcomeUnknown) as error:
                        log.warning("volume=%s move=%s: %s", move.volume, move.id, error.message)
                        await self.clock.sleep(RETRY_INTERVAL_S)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"the store does not answer where volume {move.volume} is", hint="when etcd is back: veery volume list"
            ) from error

    async def let_go(self, move: VolumeMove) -> None:
        """Return once the domain's QEMU writes to only one of the two LUNs. Raises Failed: call it again."""
        if not move.node:
            return
        try:
            told = await self.peers.call(
                move.node, "POST", order_path(move.volume, "let-go"), {"move": move.id}, deadline=75
            )
            released = bool(told["released"])
        except (Refused, OutcomeUnknown):
            owner = await owners.read(self.store, move.domain)
            released = owner is None or owner.node != move.node  # it has ended, or was fenced
        if not released:
            raise Failed(
                f"{move.node} still uses the old LUN of volume {move.volume}",
                hint="check that veeryd runs there: systemctl status veeryd",
            )

    async def while_standing(self, move: VolumeMove, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` for as long as the move's key exists. Raises Failed when the key is deleted."""
        working = asyncio.create_task(work, name=f"{move.volume} copies")
        watching = asyncio.create_task(self._broken_off(move), name=f"{move.volume} looks")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return await working
            raise Failed(
                f"the move of volume {move.volume} was interrupted",
                hint=f"the volume is on {move.source}; order the move again",
            )
        finally:
            await tasks.stop(working, watching)

    async def _broken_off(self, move: VolumeMove) -> None:
        while True:
            await self.clock.sleep(KEY_CHECK_INTERVAL_S)
            with contextlib.suppress(StoreUnavailable):
                standing = await gate.standing(self.store, move.volume)
                if standing is None or standing.id != move.id:
                    return
