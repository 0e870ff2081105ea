"""Who moves domains, each with domains of its own: a script over QMP, libvirt, veery. All take the same domain files,
disks on the same storage node, and the same QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench import guest as guests
from bench.bare import Bare, Host
from bench.moves import BOOT, NODES, built, by_hand_domain, hosts_of, other, reached
from bench.virsh import Guest, Peer, definition
from veery.errors import Failed
from veery.lab.services import Lab
from veery.lab.shell import Shell

FIRST = NODES[0]


class Contender(Protocol):
    """One of them; `addresses` maps its domains' names to their addresses, `at` to the nodes they are on."""

    addresses: dict[str, str]
    at: dict[str, str]

    async def boot(self, name: str, text: str, address: str) -> None:
        """Start the domain of file `text`, whose disk is volume `name`, on the first node."""

    async def move(self, name: str, *options: str) -> float:
        """Move it to the other node; milliseconds as the mover itself tells them (0 where it does not)."""

    async def end(self) -> None:
        """End all of its domains; nothing of them is left."""


@dataclass(slots=True)
class ByHand:
    """bench/bare.py; its one option is "TLS"."""

    lab: Lab
    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)
    at: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    domains: dict[str, Bare] = field(default_factory=dict)

    async def boot(self, name: str, text: str, address: str) -> None:
        """As Contender.boot."""
        self.hosts = self.hosts or hosts_of(self.lab)
        number = len(self.domains) + 1
        bare = self.domains[name] = await by_hand_domain(self.lab, name, text, self.folder, number=number)
        await asyncio.to_thread(bare.start, self.hosts[FIRST])
        await asyncio.to_thread(bare.type, guests.address_line(address))
        self.addresses[name], self.at[name] = address, FIRST

    async def move(self, name: str, *options: str) -> float:
        """As Contender.move."""
        target = other(self.at[name])
        told = await asyncio.to_thread(self.domains[name].move, self.hosts[target], tls="TLS" in options)
        self.at[name] = target
        return told["total"]

    async def end(self) -> None:
        """As Contender.end."""
        for bare in self.domains.values():
            await asyncio.to_thread(bare.stop)


@dataclass(slots=True)
class ByVirsh:
    """libvirt; its options are virsh's."""

    peer: Peer
    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)
    at: dict[str, str] = field(default_factory=dict)
    guests: dict[str, Guest] = field(default_factory=dict)

    async def boot(self, name: str, text: str, address: str) -> None:
        """As Contender.boot; a domain without a disk sets its address by itself."""
        spec, build, binary = await built(text, 0x80 + len(self.guests))
        luns = await reached(self.peer.lab, name) if spec.disks else dict.fromkeys(NODES)
        files = {}
        for node, lun in luns.items():
            if lun is not None:
                await self.peer.secrets(node, lun.user, lun.password)
            files[node] = guests.write(self.folder, f"{name}.{node}.xml", definition(spec, build, binary, lun))
        self.guests[name] = Guest(name, files)
        await self.peer.create(self.guests[name], FIRST)
        if spec.disks:
            await self.peer.type(self.guests[name], FIRST, guests.address_line(address))
        self.addresses[name], self.at[name] = address, FIRST

    async def limit(self, name: str, downtime: int) -> None:
        """Allow its next move a pause of `downtime` ms."""
        await self.peer.limit(self.guests[name], self.at[name], downtime)

    async def move(self, name: str, *options: str) -> float:
        """As Contender.move."""
        if not await self.attempt(name, *options, patience=BOOT):
            raise Failed(f"virsh migrate {name} did not end within {BOOT:g} s")
        return 0.0

    async def attempt(self, name: str, *options: str, patience: float) -> bool:
        """Move it; False when it had to be aborted after `patience` seconds."""
        source, target = self.at[name], other(self.at[name])
        done = await self.peer.move(self.guests[name], source, target, *options, patience=patience)
        if done:
            self.at[name] = target
        return done

    async def end(self) -> None:
        """As Contender.end."""
        for guest in self.guests.values():
            await self.peer.destroy(guest)


@dataclass(slots=True)
class ByVeery:
    """veery; its options are those of `veery migrate`."""

    lab: Lab
    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)
    at: dict[str, str] = field(default_factory=dict)

    async def boot(self, name: str, text: str, address: str) -> None:
        """As Contender.boot; a domain without a disk sets its address by itself."""
        self.addresses[name], self.at[name] = address, FIRST
        path = guests.write(self.folder, name, text)
        await self.lab.veery(FIRST, "create", str(path), deadline=BOOT)
        if "volume=" in text:
            async with Shell(self.lab.client(FIRST).address, name) as shell:
                await shell.ready()
                await shell.run(guests.address_line(address))

    async def move(self, name: str, *options: str) -> float:
        """As Contender.move."""
        here, target = self.at[name], other(self.at[name])
        words = ("migrate", "--json", *options, name, target)
        report = json.loads((await self.lab.veery(here, *words, deadline=180.0)).out)
        if report["state"] != "done" or report["reason"]:
            raise Failed(f"veery's move of {name} ended as {report['state']}: {report['reason']}")
        self.at[name] = target
        return float(report["total_ms"])

    async def evacuate(self, *options: str) -> None:
        """Move all of them to the other node in one order."""
        here = next(iter(self.at.values()))
        target = other(here)
        await self.lab.veery(here, "migrate", "-q", "--to", target, *options, *self.at, deadline=180.0)
        self.at = dict.fromkeys(self.at, target)

    async def end(self) -> None:
        """As Contender.end."""
        for name in self.at:
            for node in NODES:
                await self.lab.veery(node, "destroy", name, check=False)
            await self.lab.veery(FIRST, "delete", name, check=False)


@contextlib.asynccontextmanager
async def ended(lab: Lab, contenders: Sequence[Contender]) -> AsyncIterator[None]:
    """Whatever happens in the body: afterwards their domains, and the volumes of these, are gone."""
    try:
        yield
    finally:
        for each in contenders:
            await each.end()
            for name in each.addresses:
                await lab.veery("stor", "volume", "delete", name, check=False)


async def boot(
    lab: Lab, contender: Contender, prefix: str, *, count: int, first: int, file: Callable[[str], str]
) -> None:
    """Give `contender` `count` domains called `prefix`N, each with the busybox image on a volume; their addresses
    begin at 172.16.31.`first`, and `file` is the domain file of a name."""
    for number in range(count):
        name = f"{prefix}{number}"
        contender.addresses[name] = f"172.16.31.{first + number}"
        await guests.make_volume(lab, name)
        await contender.boot(name, file(name), contender.addresses[name])
