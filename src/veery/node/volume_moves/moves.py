"""This node's part in every move of a volume: its three sides, and what settles the moves that no task works on."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from veery.cluster.keys import VOLUME_MOVES
from veery.cluster.store import Store
from veery.errors import VeeryError
from veery.host.clock import Clock
from veery.host.shortage import is_shortage
from veery.hypervisor.base import Driver
from veery.migrate.phases import Hold
from veery.node.attachments import NodeAttacher
from veery.node.domains import Domains
from veery.node.peers import Peers
from veery.node.volume_moves.common import RETRY_INTERVAL_S, Common
from veery.node.volume_moves.domain import DomainSide
from veery.node.volume_moves.journal import Journal, Side
from veery.node.volume_moves.source import SourceSide
from veery.node.volume_moves.target import TargetSide
from veery.node.volumes import VolumeService

log = logging.getLogger(__name__)


class VolumeMoves:
    """This node's part in every move of a volume. `run` settles what is open."""

    def __init__(
        self,
        service: VolumeService,
        domains: Domains,
        driver: Driver,
        attacher: NodeAttacher,
        *,
        store: Store,
        peers: Peers,
        clock: Clock,
        hold: Hold,
        folder: Path,
    ) -> None:
        """`folder` is that of the journal. `hold` may pause a move before COMMIT and before FINISH, while the domain is
        paused."""
        self._journal = Journal(folder)
        self._common = Common(service, store=store, peers=peers, clock=clock, journal=self._journal)
        self._store, self._clock = store, clock
        self.source, self.target = SourceSide(self._common), TargetSide(self._common)
        self.domain = DomainSide(self._common, domains, driver, attacher, hold)
        self._sides: dict[Side, SourceSide | TargetSide | DomainSide] = {
            Side.SOURCE: self.source,
            Side.TARGET: self.target,
            Side.DOMAIN: self.domain,
        }
        self._said: dict[str, str] = {}
        self._again: set[tuple[Side, str]] = set()  # read again from the store: their files were put aside

    def recall(self) -> None:
        """Resume what the journal holds. Call once, before tgtd is compared with the records."""
        for side, move in self._journal.open():
            log.info("volume=%s move=%s side=%s found open", move.volume, move.id, side)
            if side is Side.TARGET:
                self.target.recall(move)
            elif side is Side.SOURCE:
                self.source.recall(move)

    async def run(self) -> None:
        """Accept orders, and settle open moves that no task works on, until cancelled."""
        self.source.open()
        try:
            while True:
                try:
                    await self.settle()
                except (VeeryError, OSError) as error:
                    if not is_shortage(error):
                        raise
                    log.error("moves of volumes cannot be settled now: %s", error)
                await self._clock.sleep(RETRY_INTERVAL_S)
        finally:
            await self.source.close()

    async def settle(self) -> None:
        """Try once to settle every open move. Never raises VeeryError."""
        await self._take_again()
        for side, move in self._journal.open():
            if self._common.at_work(side, move):
                continue
            try:
                with self._common.working(side, move):
                    await self._sides[side].settle(move)
            except VeeryError as error:
                if self._said.get(move.id) != error.message:
                    log.warning(
                        "volume=%s move=%s %s is not settled yet: %s", move.volume, move.id, side, error.message
                    )
                self._said[move.id] = error.message

    async def _take_again(self) -> None:
        """Read moves again from the store whose files could not be read: the store has the same record until the move
        is decided."""
        lost = [each for each in self._journal.illegible() if each not in self._again]
        if not lost:
            return
        try:
            standing = await VOLUME_MOVES.readable(self._store)
        except VeeryError as error:
            log.debug("moves of volumes could not be read: %s", error.message)
            return
        self._again |= set(lost)
        for side, move in ((side, move) for side, id in lost for move in standing.values() if move.id == id):
            log.warning("volume=%s move=%s side=%s read again from the store", move.volume, move.id, side)
            with contextlib.suppress(VeeryError):  # a full disk: the key of the move stays, and cancelling helps
                self._journal.write(side, move)
