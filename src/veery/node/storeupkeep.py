"""The upkeep of the store on a node: defragmentation, a restart of its etcd, a daily copy."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from veery.cluster import server, upkeep
from veery.cluster.etcd import EtcdStore
from veery.cluster.upkeep import Defragmented
from veery.errors import Failed, Refused, VeeryError
from veery.host.clock import Clock
from veery.host.log import decision
from veery.host.process import Service

log = logging.getLogger(__name__)

EVERY_S = 86400.0
LOOK_S = 600.0  # between two checks whether a copy is due
RETRY_S = 30.0  # after a copy that failed
TRUST_S = 5.0  # between two checks whether the store is trusted, which takes some seconds after a start
KEEP = 7  # number of copies
STOP_S = 10.0  # for etcd to end by itself
READY_S = 60.0  # for etcd to know a leader again


class StoreUpkeep:
    """The upkeep of the store. `run` is a task of a voter."""

    def __init__(
        self,
        node: str,
        store: EtcdStore,
        services: Sequence[Service],
        *,
        state: Path,
        clock: Clock,
        quota: int,
        trusted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`services` are those of this node. `quota` is that of the store, in bytes. `trusted` returns True if the
        store is the one that this node knows (cluster/trust.py)."""
        self._trusted = trusted
        self._node, self._store, self._clock, self._quota = node, store, clock, quota
        self._etcd = next((each for each in services if each.name == "etcd"), None)
        self.copies = state / "backups"

    # ---- orders
    async def defragment(self) -> list[Defragmented]:
        """As upkeep.defragment."""
        done = await upkeep.defragment(self._store.voters, quota=self._quota)
        log.info(decision("store.defragmented", voters=",".join(each.name for each in done)))
        return done

    async def restart(self, *, force: bool = False) -> None:
        """End this node's etcd, start the installed version, and wait until it knows a leader. Raises Refused if no
        etcd runs here, or if the store would lose its quorum meanwhile (not with `force`). Raises Failed,
        StoreUnavailable."""
        if self._etcd is None:
            raise Refused(f"{self._node} is not a voter", hint="veery node list shows the voters")
        process = self._etcd.process
        seen = await upkeep.look(self._store.voters)
        own = next((each for each in seen if each.voter.name == self._node), None)
        if not force:
            why = "the store has no member here" if own is None else upkeep.spare(seen, own.voter.id)
            if why:
                hint = "start the other voters first: veery doctor --all; --force restarts it anyway"
                raise Refused(f"etcd on {self._node} is not restarted: {why}", hint=hint)
        if process is None:
            raise Failed(f"etcd on {self._node} does not run", hint="see etcd.log in the run folder")
        await self._hand_over(seen, own)
        log.info(decision("etcd.restart", node=self._node))
        await process.stop(grace=STOP_S)
        if own is not None:
            await server.ready(self._store.voters, own.endpoint, deadline=READY_S)

    async def _hand_over(self, seen: Sequence[upkeep.Seen], own: upkeep.Seen | None) -> None:
        """Move the lead to another member first, if this one has it: then nothing waits for an election."""
        if own is None or own.status is None or own.status.leader != own.voter.id:
            return
        other = next((each for each in seen if each.well and each.voter.id != own.voter.id), None)
        if other is not None:
            await upkeep.hand_over(self._store.voters, own.endpoint, other.voter.id)

    # ---- a copy each day
    async def run(self) -> None:
        """Until cancelled: keep the copies in `copies` recent and few. While the store is not trusted, no copy is made
        and none is removed: an old one may be needed."""
        said = ""
        while True:
            pause = LOOK_S
            try:
                if self._trusted():
                    await self.copy()
                else:
                    pause = TRUST_S
                said = ""
            except (VeeryError, OSError) as error:
                pause = RETRY_S
                if str(error) != said:
                    log.warning("the store could not be copied yet: %s", error)
                said = str(error)
            await asyncio.sleep(pause)

    async def copy(self) -> None:
        """Make a copy if one is due, and remove copies beyond KEEP. Raises VeeryError, OSError."""
        self.copies.mkdir(mode=0o700, exist_ok=True)
        now, there = self._clock.epoch(), upkeep.kept(self.copies)
        if there and 0 <= now - there[0].stat().st_mtime < EVERY_S:
            return
        usage = shutil.disk_usage(self.copies)
        if not upkeep.room_for_copy(usage.free, usage.total, self._quota):
            raise Failed(f"there is too little space for a copy in {self.copies}", hint="free some space there")
        path = self.copies / upkeep.name_of(now)
        size = await upkeep.backup(self._store.gateway, path)
        log.info("the store was copied to %s, %d bytes", path, size)
        for old in upkeep.kept(self.copies)[KEEP:]:
            old.unlink(missing_ok=True)
