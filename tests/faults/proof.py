"""What every fault must leave behind: one running domain, on its owner, that never noticed; and no leftovers."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veery.errors import VeeryError
from veery.host.run import Result
from veery.lab.services import Lab
from veery.lab.shell import Shell

HYPERVISORS = ("test1", "test2")
SETTLE = 90.0  # seconds for everything to have come to rest: generous, for a busy machine


@dataclass(frozen=True)
class Life:
    """One reading inside the guest: which boot it is, and how far its counter has come."""

    boot: str
    count: int


class Proof:
    """One domain under test in one lab."""

    def __init__(self, lab: Lab, domain: str, file: Path) -> None:
        self.lab, self.domain, self.file = lab, domain, file

    def hold(self, node: str, phase: str) -> Path:
        """Hold `phase` on `node` until the file returned is removed."""
        path = self.lab.plan.home(node) / "run" / "hold" / phase
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    async def held(self, node: str, phase: str, moving: asyncio.Task[Result]) -> None:
        """Return once the move has come to `phase` on `node`; a move that ended before that is told."""
        wanted = f"held in {phase}"
        log = self.lab.log(node)
        begin = max(0, log.stat().st_size - 400)
        async with asyncio.timeout(SETTLE):
            while wanted not in log.read_bytes()[begin:].decode(errors="replace"):
                assert not moving.done(), f"it ended before {phase}: {moving.result()}"
                await asyncio.sleep(0.05)

    async def life(self, node: str) -> Life:
        """Ask the guest itself, on its console."""
        async with Shell(self.lab.client(node).address, self.domain) as shell:
            await shell.ready(deadline=30)
            said = await shell.run("cat /proc/sys/kernel/random/boot_id; cat /tmp/count")
            boot, count = said.split()[-2:]
            return Life(boot, int(count))

    async def readings(self) -> dict[str, dict[str, Any]]:
        """Node -> the domain's reading there."""
        found = {}
        for node in HYPERVISORS:
            rows = (await asyncio.to_thread(self.lab.client(node, deadline=10).get, "/v1/domains"))["domains"]
            for row in rows:
                if row["name"] == self.domain:
                    found[node] = row
        return found

    async def keys(self, prefix: str) -> dict[str, Any]:
        """The keys under `prefix` in etcd, as they stand there."""
        tls = self.lab.plan.home("stor") / "lib" / "tls"
        told = await self.lab.run(
            "stor",
            [
                *("etcdctl", "--endpoints", "https://172.16.31.3:2379", "--cacert", tls / "ca-cert.pem"),
                *("--cert", tls / "client-cert.pem", "--key", tls / "client-key.pem"),
                *("get", "--prefix", f"/veery/{prefix}"),
            ],
        )
        lines = told.out.splitlines()
        return {
            key.removeprefix("/veery/"): json.loads(value) for key, value in zip(lines[::2], lines[1::2], strict=True)
        }

    async def at_rest(self) -> str:
        """What is not yet as it must be; "" when all is."""
        owner = (await self.keys("owner/")).get(f"owner/{self.domain}", {}).get("node", "nobody")
        reservations = await self.keys("reservation/")
        found = await self.readings()
        where = {node: row["state"] for node, row in found.items()}
        if list(where) != [owner]:
            return f"owner {owner}, but it is on {where}"
        if where[owner] not in ("running", "blocked"):
            return f"it is {where[owner]} on {owner}"
        if reservations:
            return f"reservations left: {reservations}"
        for node in HYPERVISORS:
            qemus = [member for member in self.lab.members(node) if member.program.startswith("qemu-system")]
            if len(qemus) != (node == owner):
                return f"{len(qemus)} QEMU on {node}, owner {owner}"
            taps = (await self.lab.run(node, ["ip", "-o", "link", "show", "type", "tun"])).out.splitlines()
            if len(taps) != (node == owner):
                return f"taps on {node}: {taps}"
            journal = list((self.lab.plan.home(node) / "lib" / "journal").glob("*.json"))
            if journal:
                return f"journal on {node}: {journal}"
        return ""

    async def settled(self) -> str:
        """Wait until everything is at rest; the owner's name."""
        end = time.monotonic() + SETTLE
        why = "not looked at"
        while time.monotonic() < end:
            try:
                why = await self.at_rest()
            except VeeryError as error:
                why = error.message
            if not why:
                return str((await self.keys("owner/"))[f"owner/{self.domain}"]["node"])
            await asyncio.sleep(0.3)
        raise AssertionError(why)

    async def unharmed(self, before: Life) -> str:
        """At rest, the same boot, its counter gone on, and it can move there and back; where it runs."""
        owner = await self.settled()
        after = await self.life(owner)
        assert after.boot == before.boot, "it was booted anew"
        assert after.count >= before.count, f"counter {before.count} -> {after.count}"
        other = next(node for node in HYPERVISORS if node != owner)
        await self.lab.veery(owner, "migrate", "--live", self.domain, other, deadline=120)
        assert await self.settled() == other
        return other

    async def home(self, node: str = "test1") -> Life:
        """Bring it to `node`, at rest; its life there."""
        owner = await self.settled()
        if owner != node:
            await self.lab.veery(owner, "migrate", "--live", self.domain, node, deadline=120)
            assert await self.settled() == node
        return await self.life(node)
