"""The side of a volume's move on the node where the domain runs that uses the volume."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from veery.cluster import volumegate as gate
from veery.cluster.store import StoreUnavailable
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.hypervisor.base import DiskSwitcher, Driver
from veery.migrate.phases import Hold
from veery.model.cluster import Owner
from veery.model.move import Phase
from veery.model.volume import IscsiLun, VolumeMove
from veery.node.attachments import NodeAttacher
from veery.node.domains import Domains
from veery.node.volume_moves.common import Common, Report
from veery.node.volume_moves.journal import Side
from veery.storage import portal

log = logging.getLogger(__name__)


class DomainSide:
    """The moves under domains of this node. `hold` may pause a move before COMMIT and before FINISH, while the domain
    is paused."""

    def __init__(self, common: Common, domains: Domains, driver: Driver, attacher: NodeAttacher, hold: Hold) -> None:
        self._common, self._domains, self._driver, self._attacher = common, domains, driver, attacher
        self._hold = hold

    async def mirror(self, move: VolumeMove, report: Report) -> dict[str, Any]:
        """Copy the disk of a domain that runs here, COMMIT, and switch it to the new LUN. Raises Failed, Refused: the
        domain continues with its old LUN."""
        driver = self._driver
        if not isinstance(driver, DiskSwitcher):
            raise Refused(f"the driver {driver.name} cannot move a disk under a domain", hint="shut the domain down")
        move = await self._common.known(move, move.node)
        await self._domains.ours(move.domain)
        lun = await self._attacher.lun(move.place)
        self._common.journal.write(Side.DOMAIN, move)
        with self._common.working(Side.DOMAIN, move):
            try:
                pause = await self._copy_and_switch(driver, move, lun, report)
            except VeeryError:
                with contextlib.suppress(VeeryError):  # tried again by `run`
                    await self.settle(move)
                raise
            self._common.journal.strike(Side.DOMAIN, move)
        return {"pause_ms": pause, "bytes": move.place.size}

    async def _copy_and_switch(self, driver: DiskSwitcher, move: VolumeMove, lun: IscsiLun, report: Report) -> float:
        copying = driver.copy_disk(
            move.uuid, move.vdev, lun, move.rate, lambda done, total: report("copying", done, total)
        )
        await self._common.while_standing(move, copying)
        report("switching over", move.place.size, move.place.size)
        async with self._domains.locks.hold(move.domain):
            owner = await self._domains.ours(move.domain)  # which shows that the store answers, too
            return await driver.switch_disk(move.uuid, move.vdev, lun, lambda: self._commit(move, owner))

    async def _commit(self, move: VolumeMove, owner: Owner) -> None:
        await self._hold.at(Phase.COMMIT)
        try:
            await gate.commit(self._common.store, move, owner)
        except StoreUnavailable:
            raise  # surely not committed
        except OutcomeUnknown:
            log.warning("volume=%s move=%s: no answer to COMMIT, asking the store", move.volume, move.id)
            if not gate.arrived(await self._common.dropped(move), move):
                raise Failed(f"volume {move.volume}: the store did not take the COMMIT") from None
        await self._hold.at(Phase.FINISH)

    async def let_go(self, move: str, *, deadline: float = 60.0) -> bool:
        """Return True when this node's domain no longer needs a move that is over; False after `deadline` seconds."""
        ends = self._common.clock.now() + deadline
        while any(one.id == move for side, one in self._common.journal.open() if side is Side.DOMAIN):
            if self._common.clock.now() > ends:
                return False
            await self._common.clock.sleep(0.1)
        return True

    async def settle(self, move: VolumeMove) -> None:
        """Try once to end a move of the journal. Raises VeeryError."""
        record = await self._common.dropped(move)
        lun = await self._attacher.lun(move.place) if gate.arrived(record, move) else None
        if isinstance(self._driver, DiskSwitcher):
            if any(reading.uuid == move.uuid for reading in await self._driver.list()):
                await portal.require(move.place.portal, (await self._attacher.lun(move.place)).initiator)
            with contextlib.suppress(Refused):  # it is no longer here
                await self._driver.settle_disk(move.uuid, move.vdev, lun)
        self._common.journal.strike(Side.DOMAIN, move)
