"""This node as a machine: its own row among the domains, its readings, and those of all nodes together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from veery.cluster.keys import ALIVE, FENCES, INTENTS, NODES
from veery.cluster.store import Store
from veery.errors import VeeryError
from veery.hypervisor.base import Driver
from veery.model.domain import DomainReading, DomainState, HostReading
from veery.model.node import Node, Role
from veery.node.peers import Peers

ZERO_UUID = "00000000-0000-0000-0000-000000000000"
PEER_DEADLINE_S = 3.0


class Machine:
    """What this node reports about itself and about the others."""

    def __init__(
        self,
        node: Node,
        driver: Driver,
        store: Store,
        peers: Peers,
        *,
        doubt: Callable[[], str] = str,
        unsettled: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`node` is this node's record. `doubt` returns why the store is not trusted, "" if it is. `unsettled` returns
        the moves that cannot be settled here."""
        self.node, self.driver, self.doubt, self.unsettled = node, driver, doubt, unsettled
        self._store, self._peers = store, peers

    async def host(self) -> HostReading:
        """Return the reading of the machine."""
        return await self.driver.host()

    async def domains(self) -> tuple[DomainReading, ...]:
        """Return every domain here, after the machine itself as `Domain-0`, like xm."""
        readings, host = await asyncio.gather(self.driver.list(), self.driver.host())
        if host.domain0 is not None:
            return (host.domain0, *readings)
        given = sum(reading.memory for reading in readings)
        zero = DomainReading(
            name="Domain-0",
            uuid=ZERO_UUID,
            domid=0,
            state=DomainState.RUNNING,
            memory=max(host.memory_total - given, 0),
            vcpus=host.cpus,
            cpu_seconds=_busy_seconds(),
            started=_booted(),
            pid=os.getpid(),
        )
        return (zero, *readings)

    async def everywhere(self) -> dict[str, Any]:
        """Return the domains of every hypervisor: {"nodes": {name: [DomainReading]}, "silent": [name], "unsettled":
        [the nodes' reports of moves that cannot be settled]}."""
        names = [name for name, node in (await NODES.readable(self._store)).items() if node.has(Role.HYPERVISOR)]
        answers = await asyncio.gather(*(self._of(name) for name in names))
        found = dict(zip(names, answers, strict=True))
        return {
            "nodes": {name: told["domains"] for name, told in found.items() if told is not None},
            "silent": [name for name, told in found.items() if told is None],
            "unsettled": [each for told in found.values() if told is not None for each in told.get("unsettled", ())],
        }

    async def nodes(self) -> list[dict[str, Any]]:
        """Return every node's record, whether its lease is valid, its presence, the state of its fence and its
        intent."""
        alive, alive_bad = await ALIVE.sifted(self._store)
        fences, fences_bad = await FENCES.sifted(self._store)
        intents, intents_bad = await INTENTS.sifted(self._store)
        return [
            {
                "node": node,
                "alive": name in alive or name in alive_bad,
                "presence": alive.get(name),
                "fence": fences[name].state if name in fences else "unreadable" if name in fences_bad else "",
                "intent": intents[name].kind if name in intents else "unreadable" if name in intents_bad else "",
            }
            for name, node in (await NODES.readable(self._store)).items()
        ]

    async def _of(self, name: str) -> Any:
        if name == self.node.name:
            return {"domains": await self.domains(), "unsettled": self.unsettled()}
        try:
            return await self._peers.call(name, "GET", "/v1/domains", deadline=PEER_DEADLINE_S)
        except VeeryError:
            return None


def _busy_seconds() -> float:
    """Return the user, nice and system time of the whole machine since boot (proc(5), stat)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4]
    return sum(int(field) for field in fields) / os.sysconf("SC_CLK_TCK")


def _booted() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0
