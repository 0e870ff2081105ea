"""A cluster of IPv6 addresses alone: a lab of its own, whose nodes change to them one after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_parts import Node, Workshop, aside, until

from veery.lab import faults
from veery.lab.guest import Guest
from veery.lab.plan import BRIDGE
from veery.lab.services import Lab
from veery.storage.image import build_initramfs

NAME = "six"
ADDRESSES = {"stor": "fd00:31::3", "test1": "fd00:31::1", "test2": "fd00:31::2"}
ON = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 0 >$f; done"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def six() -> Iterator[Lab]:
    made: Lab = aside(Lab.up(f"s{os.getpid()}"))
    try:
        yield made
    finally:
        aside(made.down())


async def change(lab: Lab, node: str, address: str) -> None:
    """To an IPv6 address; its settings name the old one no more."""
    asked = Node(lab, "test1")
    path = lab.plan.settings(node)
    rows = [row for row in path.read_text().splitlines() if not row.startswith("address = ")]
    path.write_text("\n".join(rows) + "\n")
    await faults.kill(lab, node, "veeryd")
    await lab.start(node)

    async def free() -> bool:
        return (await asked.result("node", "readdress", node, address, "--plan")).code == 0

    await until(free, f"{node} may change to {address}", within=120)
    await asked.veery("node", "readdress", node, address, within=300)

    async def there() -> bool:
        told = await asked.beyond(node, "node", "show", node, "--json")
        return told.code == 0 and json.loads(told.out)["node"]["address"] == address

    await until(there, f"{node} at {address}", within=120)


async def test_a_domain_moves_in_a_cluster_without_ipv4(six: Lab, guest: Guest, tmp_path: Path) -> None:
    for node, address in ADDRESSES.items():
        await six.run(node, ["sh", "-c", ON])
        await six.run(node, ["ip", "address", "add", f"{address}/64", "dev", BRIDGE, "nodad"])
    for node, address in ADDRESSES.items():
        await change(six, node, address)
    for node in ADDRESSES:
        await six.run(node, ["ip", "-4", "address", "flush", "dev", BRIDGE])
    await six.healthy()
    one, two = Node(six, "test1"), Node(six, "test2")
    ramdisk = tmp_path / "initramfs"
    await build_initramfs(ramdisk, kernel=guest.kernel, modules=guest.modules)
    workshop = Workshop(six, guest, ramdisk, tmp_path)

    async def kept_up() -> bool:
        rows = json.loads((await one.result("doctor", "--all", "--json")).out)
        return not [row for row in rows if row["level"] == "bad"]

    await until(kept_up, "doctor finds nothing bad", within=120)
    await workshop.volume(NAME)
    await one.veery("create", workshop.file(NAME), within=180)
    await one.booted(NAME)
    await one.veery("migrate", NAME, "test2", within=180)
    async with two.shell(NAME) as shell:
        await shell.run("echo word >/root/word; sync", within=120)
    rows = json.loads(await one.veery("node", "list", "--json"))
    assert {row["node"]["name"]: row["node"]["address"] for row in rows} == ADDRESSES
    volumes = json.loads(await one.veery("volume", "list", "--json"))
    assert "[fd00:31::3]:3260" in json.dumps(volumes)
    await two.veery("destroy", NAME)
