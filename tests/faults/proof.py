"""What every fault must leave behind: one running domain, on its owner, that never noticed; and no leftovers."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veery.errors import Failed, VeeryError
from veery.host.run import NotInstalled
from veery.lab import members, stored
from veery.lab.plan import DOMAIN_ADDRESS
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.shell import Shell

HYPERVISORS = ("test1", "test2")
SETTLE = 90.0  # seconds for everything to have come to rest: generous, for a busy machine
ASKED = 5  # times that the guest is asked: its serial line may double or lose a character
RECORDS = "/root/records"
OTHERS = (
    r"lib/(etcd|moves|backups)/|lib/backups$|lib/tls/ca-crl\.pem$|run/held\.json$|run/domains/\d+/.*\.tmp"
    r"|.*\.log(\.1)?$"
)
"""Files that come and go without a move: the first daily copy makes lib/backups. Some minutes after a test has renewed
a node's certificate, the old one is revoked, and every node gets the CA's list."""
START = (  # busybox's init runs it at each boot
    "#!/bin/sh\n"
    f"ifconfig eth0 {DOMAIN_ADDRESS} netmask 255.255.0.0 up\n"
    f"writer {RECORDS} 0.2 </dev/null >/dev/null 2>&1 &\n"
)


@dataclass(frozen=True)
class Life:
    """One reading inside the guest: which boot it is, and how many records it has on its disk."""

    boot: str
    count: int


async def keys_of(lab: Lab, prefix: str) -> dict[str, Any]:
    """The records whose keys begin with `prefix`, read from the store itself. Raises VeeryError."""
    return await stored.records(lab.plan, prefix)


async def logged_in(lab: Lab) -> dict[str, set[str]]:
    """Volume -> the nodes that are logged in at its target. Its daemon is asked: a tgtadm of ours could come in the
    midst of a fence, where tgtd dies of a listing (veery.storage.tgt). Raises VeeryError."""
    told = await asyncio.to_thread(lab.client("stor", deadline=15).get, "/v1/targets?here=1")
    return {
        target["iqn"].rpartition(":")[2]: {each["initiator"].rpartition(":")[2] for each in target["sessions"]}
        for target in told["stor"]
    }


@dataclass
class Proof:
    """One domain under test in one lab: it writes numbered records to its volume, and a client outside probes it.

    `boots` counts the boots that its records may show."""

    lab: Lab
    domain: str
    file: Path
    probe: Probe
    boots: int = 1
    usual: dict[str, set[str]] = field(default_factory=dict)

    async def life(self, node: str) -> Life:
        """Ask the guest itself, on its console."""
        async with Shell(self.lab.client(node).address, self.domain) as shell:
            await shell.ready(deadline=60)
            for _ in range(ASKED):
                said = await shell.run(f"cat /proc/sys/kernel/random/boot_id; tail -n 1 {RECORDS}")
                match = re.search(r"([0-9a-f-]{36})\s+(\d+) ([0-9a-f-]{36}) [\d.]+ \d+\s*$", said)
                if match:
                    return Life(match[1], int(match[2]) if match[3] == match[1] else 0)
            raise AssertionError(f"the guest says {said!r}")

    async def alive(self, node: str, after: int = 0) -> Life:
        """Its life, once it has written more than `after` records; without it, the next one since we asked first."""
        end = time.monotonic() + SETTLE
        life = await self.life(node)
        after = after or life.count
        while life.count <= after:
            assert time.monotonic() < end, f"no record after {life.count} (there were {after}) within {SETTLE:g} s"
            await asyncio.sleep(0.1)
            life = await self.life(node)
        return life

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
        return await keys_of(self.lab, prefix)

    async def sessions(self) -> set[str]:
        """The nodes that are logged in at the domain's target."""
        return (await logged_in(self.lab)).get(self.domain, set())

    async def learn(self) -> None:
        """See what lies in the nodes' folders when all is well; more than that is a leftover."""
        for node in HYPERVISORS:
            self.usual[node] = set(self.files(node))

    def files(self, node: str) -> list[str]:
        """What lies in the run and state folders of `node`, but for etcd's own files and copies, kept reports and,
        inside `domains`, what belongs to the domain itself."""
        found = []
        for folder in ("run", "lib"):
            top = self.lab.plan.home(node) / folder
            for path in top.rglob("*"):
                name = f"{folder}/{path.relative_to(top)}"
                if not re.match(OTHERS, name):
                    found.append(re.sub(r"domains/\d+", "domains/ID", name))
        return found

    async def at_rest(self) -> str:
        """What is not yet as it must be; "" when all is."""
        owners, reservations, found, sessions = await asyncio.gather(
            self.keys("owner/"), self.keys("reservation/"), self.readings(), self.sessions()
        )
        owner = owners.get(f"owner/{self.domain}", {}).get("node", "nobody")
        where = {node: row["state"] for node, row in found.items()}
        if list(where) != [owner]:
            return f"owner {owner}, but it is on {where}"
        if where[owner] not in ("running", "blocked"):
            return f"it is {where[owner]} on {owner}"
        if reservations:
            return f"reservations left: {reservations}"
        if sessions != {owner}:
            return f"logged in at its volume: {sessions or 'nobody'}, owner {owner}"
        for node in HYPERVISORS:
            if left := await self._left(node, owner):
                return left
        return ""

    async def _left(self, node: str, owner: str) -> str:
        wanted = int(node == owner)
        qemus = [member for member in self.lab.members(node) if member.program.startswith("qemu-system")]
        if len(qemus) != wanted:
            return f"{len(qemus)} QEMU on {node}, owner {owner}"
        taps = (await self.lab.run(node, ["ip", "-o", "link", "show", "type", "tun"])).out.splitlines()
        if len(taps) != wanted:
            return f"taps on {node}: {taps}"
        files = self.files(node)
        if journal := [name for name in files if name.startswith("lib/journal/")]:
            return f"journal on {node}: {journal}"
        if files.count("run/domains/ID") != wanted:
            return f"{files.count('run/domains/ID')} domain folders on {node}"
        known = self.usual.get(node)
        if known is not None and (more := {name for name in files if "domains/ID" not in name} - known):
            return f"files left on {node}: {', '.join(sorted(more))}"
        return ""

    async def settled(self) -> str:
        """Wait until everything is at rest; the owner's name."""
        end = time.monotonic() + SETTLE
        why = "not looked at"
        while time.monotonic() < end:
            try:
                why = await self.at_rest()
            except NotInstalled:
                raise
            except VeeryError as error:
                why = error.message
            if not why:
                return str((await self.keys("owner/"))[f"owner/{self.domain}"]["node"])
            await asyncio.sleep(0.3)
        raise AssertionError(why)

    async def move(self, there: str) -> None:
        """Move it from the other node to `there`, and see that all is at rest. Raises Failed."""
        here = next(node for node in HYPERVISORS if node != there)
        await self.lab.veery(here, "migrate", "--live", self.domain, there, deadline=120)
        assert await self.settled() == there

    async def checked(self) -> None:
        """End the domain in order, and see that its disk is clean: the filesystem whole, no record missing or
        doubled, and no more boots in them than there were. Then start it again where it was."""
        owner = await self.settled()
        volume = (await self.lab.json(owner, "volume", "show", self.domain, "--json"))["volume"]["path"]
        async with Shell(self.lab.client(owner).address, self.domain) as shell:
            await shell.ready()
            await shell.run("kill $(pidof writer); sleep 0.5; sync; mount -o remount,ro /; sync")
        await self.lab.veery(owner, "destroy", self.domain)
        checked = await self.lab.run("stor", ["e2fsck", "-fn", volume], check=False)
        assert checked.code == 0, checked.out
        told = await self.lab.run("stor", ["debugfs", "-R", f"cat {RECORDS}", volume])
        rows = [line.split() for line in told.out.splitlines()]
        numbers = [int(row[0]) for row in rows]
        holes = [(one, two) for one, two in itertools.pairwise(numbers) if two != one + 1]
        assert not holes, f"records missing or doubled: {holes[:5]}"
        boots = list(dict.fromkeys(row[1] for row in rows))
        changes = sum(one[1] != two[1] for one, two in itertools.pairwise(rows))
        assert changes == len(boots) - 1, "two boots wrote by turns"
        assert len(boots) <= self.boots, f"{len(boots)} boots wrote, {self.boots} were expected"
        await self.lab.veery(owner, "create", str(self.file), deadline=120)
        self.boots += 1
        await self.alive(owner)

    async def clear(self) -> None:
        """Whatever state it is in: no domain, no volume, nothing stopped."""
        for node in HYPERVISORS:
            await self.lab.veery(node, "destroy", self.domain, check=False)
            left = [member for member in self.lab.members(node) if member.program.startswith("qemu-system")]
            await members.end([each for each in left if any(self.domain in word for word in each.words)])
        end = time.monotonic() + SETTLE
        while await self.keys(f"owner/{self.domain}"):
            if time.monotonic() > end:
                raise Failed(f"the name {self.domain} is not given back")
            await asyncio.sleep(0.5)
        for words in (("delete", self.domain), ("volume", "delete", self.domain)):
            await self.lab.veery("test1", *words, check=False)
