"""Fencing at the storage: every storage node removes the node from its targets, then verifies that by reading it back.

ACL entries alone do not stop a session, and the last bytes of a killed QEMU may still be in its socket. Only closed
sessions are proof (storage/tgt.py, cut)."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

from veery.cluster.keys import DOMAINS, NODES, OWNERS, VOLUME_MOVES, VOLUMES
from veery.cluster.store import Store
from veery.errors import Failed, Refused, VeeryError
from veery.ha.fence.base import Ask, NotProven
from veery.model.codec import convert
from veery.model.fence import Cut, Fenced, Method
from veery.model.ha import Proof
from veery.model.node import Role

CUT_DEADLINE_S = 20.0  # seconds for one storage node to cut a node off: it waits for I/O in flight
CHECK_DEADLINE_S = 5.0


class StorageFence:
    """`Fence` by cutting the node off at every storage node."""

    method = Method.STORAGE

    def __init__(self, store: Store, ask: Ask) -> None:
        self._store, self._ask = store, ask

    async def off(self, fence: Fenced, absent: float) -> None:
        """As Fence.off."""
        await self._all(fence, "POST", CUT_DEADLINE_S)

    async def proof(self, fence: Fenced, absent: float) -> Proof:
        """As Fence.proof."""
        try:
            cuts = await self._all(fence, "GET", CHECK_DEADLINE_S)
        except NotProven:
            raise
        except VeeryError as error:
            raise NotProven(error.message, hint=error.hint) from error
        where = ", ".join(f"{cut.storage} ({cut.targets} targets)" for cut in cuts) or "no volume in the cluster"
        return Proof(method=self.method, seen=f"shut out and no session left, read back: {where}")

    async def test(self, node: str) -> str:
        """As Fence.test."""
        places = await self._places(node)
        await asyncio.gather(*(self._ask(place, "GET", "/v1/targets", deadline=CHECK_DEADLINE_S) for place in places))
        return f"{', '.join(places)} would cut it off" if places else "the cluster has no volumes to cut it off from"

    async def _all(self, fence: Fenced, method: str, deadline: float) -> list[Cut]:
        path = f"/v1/fences/{quote(fence.node, safe='')}/cut"
        places = await self._places(fence.node)
        answers = await asyncio.gather(
            *(self._ask(place, method, path, deadline=deadline) for place in places), return_exceptions=True
        )
        cuts = []
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, VeeryError):
                raise NotProven(f"{place} does not prove that {fence.node} is shut out: {answer.message}")
            if isinstance(answer, BaseException):
                raise answer
            cut = convert(answer, Cut)
            if (cut.storage, cut.node, cut.fence) != (place, fence.node, fence.created):
                raise NotProven(f"{place} reports another fence of {fence.node}", hint="try again")
            cuts.append(cut)
        return cuts

    async def _places(self, node: str) -> list[str]:
        """Return the storage nodes to ask. Raises Refused if the node serves a disk to its own domains: no other node
        can cut it off from that disk."""
        known, strange_nodes = await NODES.sifted(self._store)
        volumes, bad = await VOLUMES.sifted(self._store)
        moves, worse = await VOLUME_MOVES.sifted(self._store)
        serving = {name for name, each in known.items() if each.has(Role.STORAGE)}
        for error in (*bad.values(), *worse.values()):
            if node in serving or strange_nodes:  # it may be the node's own volume, or one of an unknown node
                raise error
        own = {name for name, volume in volumes.items() if volume.node == node}
        if own:
            records = await DOMAINS.all(self._store)
            for domain, owner in (await OWNERS.all(self._store)).items():
                record = records.get(domain)
                used = {disk.volume for disk in record.spec.disks} & own if record and owner.node == node else set()
                if used:
                    raise Refused(
                        f"{node} serves {', '.join(sorted(used))} to its own domain {domain}",
                        hint=f"fence it by watchdog or power, or when it is off: veery fence confirm {node}",
                    )
        coming = {move.target for move in moves.values()}  # the target of a move may be written to already
        wherever = serving if bad or worse else set()  # a volume that cannot be read may be served by any
        places = sorted(({volume.node for volume in volumes.values()} | coming | wherever) - {node})
        if strange := [place for place in places if place not in known]:
            raise Failed(f"volumes are recorded on {', '.join(strange)}, which is not a node", hint="veery volume list")
        return places
