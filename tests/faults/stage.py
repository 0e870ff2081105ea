"""A ledger-keeping domain under the brain's care, in the session's lab: what the tests of faults of nodes share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veery.errors import Failed, VeeryError
from veery.host.run import NotInstalled
from veery.lab.guest import Guest
from veery.lab.ledger import Collector, Ledger, Record
from veery.lab.services import Lab

HYPERVISORS = ("test1", "test2")
NAME, ADDRESS = "kept", "172.16.31.61"  # the domain that each module of such tests has
PATIENCE = 90.0  # seconds for anything to happen: generous, for a busy machine


@dataclass
class Stage:
    """The lab, the client's ears, and the ledgers kept so far."""

    lab: Lab
    guest: Guest
    ramdisk: Path
    folder: Path
    collector: Collector
    ledgers: dict[str, Ledger] = field(default_factory=dict)

    # ---- asking the cluster
    async def get(self, path: str, node: str = "stor") -> Any:
        """GET `path` of `node`."""
        return await asyncio.to_thread(self.lab.client(node, deadline=20).get, path)

    async def post(self, path: str, body: object = None, node: str = "stor") -> Any:
        """POST `path` of `node`."""
        return await asyncio.to_thread(self.lab.client(node, deadline=30).post, path, body)

    async def owner(self, name: str) -> str:
        """The node that owns domain `name`, "" for none."""
        return str((await self.get(f"/v1/ha/{name}"))["node"])

    async def where(self, name: str) -> str:
        """The hypervisor on which `name` is, as the hypervisors tell; "" for none."""
        rows = (await self.get("/v1/domains?cluster=1"))["nodes"]
        return ",".join(node for node, found in rows.items() if any(each["name"] == name for each in found))

    async def states(self, node: str = "stor") -> dict[str, str]:
        """Node -> state, as the brain has it."""
        return {row["name"]: row["state"] for row in (await self.get("/v1/cluster", node))["nodes"]}

    async def events(self, since: float) -> list[dict[str, Any]]:
        """What the brain did since the epoch second `since`, oldest first."""
        return [each for each in await self.get("/v1/events?count=500") if each["at"] >= since]

    async def did(self, what: str, subject: str, since: float) -> bool:
        """Whether there was such an event."""
        return any((each["what"], each["subject"]) == (what, subject) for each in await self.events(since))

    async def until(self, check: Callable[[], Awaitable[bool]], what: str, *, within: float = PATIENCE) -> None:
        """Return once `check` holds; a node that does not answer meanwhile is no failure."""
        ends, said = time.monotonic() + within, ""
        while time.monotonic() < ends:
            try:
                if await check():
                    return
                said = ""
            except NotInstalled:
                raise
            except VeeryError as error:
                said = f" ({error.message})"
            await asyncio.sleep(0.2)
        raise AssertionError(f"not within {within:g} s: {what}{said}")

    async def at_rest(self) -> None:
        """Return once every node is well and no fence stands."""

        said = ""

        async def well() -> bool:
            nonlocal said
            status, fences = await self.get("/v1/cluster"), await self.get("/v1/fences")
            said = f"{status}; fences {fences}"
            for row in status["nodes"]:
                if row["state"] == "damped":  # fenced three times within an hour: held back until somebody says so
                    await self.post(f"/v1/nodes/{row['name']}/resume")
            return {row["state"] for row in status["nodes"]} == {"present"} and not fences

        await self.lab.healthy()
        try:
            await self.until(well, "every node is well")
        except AssertionError as error:
            raise AssertionError(f"{error}: {said}") from None

    # ---- domains
    async def raise_up(self, name: str, address: str, *, node: str = "test1", policy: str = "restart") -> Ledger:
        """Start a ledger on `node` under `policy`, once it has written."""
        ledger = self.ledgers[name] = Ledger(name, address)
        await ledger.make(self.lab, self.guest, self.ramdisk, self.folder, node=node)
        await self.post(f"/v1/ha/{name}", {"policy": policy})
        await self.heard(name)
        return ledger

    async def place(self, name: str, node: str) -> Record:
        """Have `name`, whose policy is restart, run on `node`; a record from there.

        Tests before this one may have used up its restarts, or left it without a node: `ha set` counts from zero, and
        the brain then starts it."""
        await self.at_rest()
        await self.post(f"/v1/ha/{name}", {"policy": "restart"})

        async def owned() -> bool:
            return bool(await self.owner(name))

        await self.until(owned, f"{name} has a node")
        owner = await self.owner(name)
        if owner != node:
            await self.lab.veery(owner, "migrate", "--live", name, node, deadline=120)
        return await self.heard(name)

    async def heard(self, name: str, *, boot: str = "", but: str = "") -> Record:
        """The next record that `name` acknowledges, as Collector.next. Raises Failed with what the cluster says of
        the domain."""
        try:
            return await self.collector.next(name, boot=boot, but=but, deadline=PATIENCE)
        except Failed as error:
            said = (await self.lab.veery("stor", "why", name, check=False)).out
            raise Failed(f"{error.message}; veery why {name}: {said}") from error

    async def tear_down(self, name: str) -> None:
        """End it, and judge its disk; then nothing of it is left."""
        owner = await self.owner(name)
        if owner:
            await self.lab.veery(owner, "destroy", name)
        wrong = await self.judged(name)
        await self.lab.veery("stor", "delete", name)
        await self.lab.veery("stor", "volume", "delete", name)
        assert not wrong, wrong

    async def clear(self) -> None:
        """After a failure: as much as can be done so that the lab's other tests find it empty."""
        with contextlib.suppress(VeeryError, AssertionError):
            await self.at_rest()
        for name in self.ledgers:
            for node, words in (
                *((each, ("destroy", name)) for each in HYPERVISORS),
                ("stor", ("delete", name)),
                ("stor", ("volume", "delete", name)),
            ):
                with contextlib.suppress(VeeryError):
                    await self.lab.veery(node, *words, check=False)

    async def judged(self, name: str) -> list[str]:
        """What is wrong with its disk."""
        return await self.ledgers[name].judged(self.lab, self.collector)

    def copies(self, node: str) -> int:
        """QEMUs that live on `node`."""
        return sum(member.program.startswith("qemu-system") for member in self.lab.members(node))
