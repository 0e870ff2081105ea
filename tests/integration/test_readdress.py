"""A node's address changed in service: a voter under a running domain, and a storage node."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable

import pytest
from node_parts import Node, Workshop, scan, set_up, until

from veery.host import tls
from veery.lab import faults
from veery.lab.plan import BRIDGE, PREFIX
from veery.lab.services import Lab

NAME = "wanderer"
NEW = {"test2": "172.16.41.2", "stor": "172.16.41.3"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


async def ip(lab: Lab, node: str, *words: str) -> None:
    await lab.run(node, ["ip", "address", *words, "dev", BRIDGE])


@contextlib.asynccontextmanager
async def second_address(lab: Lab, node: str) -> AsyncIterator[None]:
    """The node has a second address; taking the first away leaves it."""
    await lab.run(node, ["sh", "-c", f"echo 1 >/proc/sys/net/ipv4/conf/{BRIDGE}/promote_secondaries"])
    await ip(lab, node, "add", f"{NEW[node]}/{PREFIX}")
    try:
        yield
    finally:
        await ip(lab, node, "del", f"{NEW[node]}/{PREFIX}")


async def settled(lab: Lab, asked: Node, node: str, address: str) -> None:
    """The node is at `address` in the others' eyes, and its daemon is reached there."""

    async def there() -> bool:
        result = await asked.beyond(node, "node", "show", node, "--json")
        return result.code == 0 and json.loads(result.out)["node"]["address"] == address

    await until(there, f"{node} at {address}", within=90)
    await lab.healthy()


async def free_to_go(near: Node, node: str, address: str) -> None:
    """Nothing stands in the way of the change; voters get over an address that was taken away within seconds."""

    async def free() -> bool:
        return (await near.result("node", "readdress", node, address, "--plan")).code == 0

    await until(free, f"{node} may change to {address}", within=90)


async def members(lab: Lab, near: Node) -> set[str]:
    """What etcd's members are reached at."""
    process = faults.find(lab, "test1", "etcd")
    assert process
    folder = lab.plan.home("test1") / "lib/tls"
    argv = ["etcdctl", "--endpoints", "https://127.0.0.1:2379", "--cacert", folder / "ca-cert.pem"]
    argv += ["--cert", folder / "server-cert.pem", "--key", folder / "server-key.pem", "member", "list", "-w", "json"]
    told = json.loads((await lab.run("test1", ["env", "ETCDCTL_API=3", *argv])).out)
    return {url for row in told["members"] for url in row["peerURLs"]}


def unpinned(text: str) -> str:
    return "\n".join(row for row in text.splitlines() if not row.startswith("address = ")) + "\n"


async def test_a_voter_changes_its_address_under_a_domain(lab: Lab, near: Node, far: Node, workshop: Workshop) -> None:
    old, new = lab.plan.node("test2").address, NEW["test2"]
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    await far.veery("create", workshop.file(NAME))
    assert "not an address of the machine" in await near.refused("node", "readdress", "test2", new)
    async with second_address(lab, "test2"):
        told = await near.result("node", "readdress", "test2", new, "--plan")
        assert (told.code, "relocation.address" in told.out) == (1, True), told.out
        async with set_up(lab, "test2", unpinned):
            await lab.healthy()
            await free_to_go(near, "test2", new)
            (before,) = far.qemus()
            await near.veery("node", "readdress", "test2", new, within=300)
            await settled(lab, near, "test2", new)
            assert far.qemus() == {before}
            assert f"https://{new}:2380" in await members(lab, near)
            assert f"https://{old}:2380" not in await members(lab, near)
            held = tls.facts((lab.plan.home("test2") / "lib/tls/server-cert.pem").read_text())
            assert {old, new} <= set(held.addresses)
            assert (await scan(lab, "node/"))["test2"]["former"] == [old]

            await ip(lab, "test2", "del", f"{old}/{PREFIX}")  # the domain's disk comes back by the new one

            async def forgotten() -> bool:
                return not (await scan(lab, "node/"))["test2"]["former"]

            await until(forgotten, "the former address is dropped", within=90)
            async with far.shell(NAME) as shell:
                await shell.run("echo still here >/root/word; sync", within=120)
            await far.veery("migrate", NAME, "test1", within=120)
            await near.veery("migrate", NAME, "test2", within=120)
            assert far.qemus()

            await ip(lab, "test2", "add", f"{old}/{PREFIX}")
            await free_to_go(near, "test2", old)
            await near.veery("node", "readdress", "test2", old, within=300)
            await settled(lab, near, "test2", old)
            assert f"https://{old}:2380" in await members(lab, near)
    await workshop.clear(NAME)
    await lab.healthy()


async def test_a_storage_node_changes_its_address_while_no_volume_is_used(
    lab: Lab, near: Node, workshop: Workshop
) -> None:
    old, new = lab.plan.node("stor").address, NEW["stor"]
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    await near.veery("create", workshop.file(NAME))
    async with second_address(lab, "stor"):

        async def refused_for_use() -> bool:  # the voters may still get over an address that another test took away
            told = await near.result("node", "readdress", "stor", new)
            assert told.code == 1, told.out
            return f"{NAME} on test1" in told.err

        await until(refused_for_use, "refused while a domain uses a volume", within=90)
        assert (await scan(lab, "volume/"))[NAME]["portal"] == f"{old}:3260"
        await near.veery("destroy", NAME)
        await free_to_go(near, "stor", new)
        (before,) = faults.find(lab, "stor", "tgtd")
        await near.veery("node", "readdress", "stor", new, within=300)
        await settled(lab, near, "stor", new)
        try:
            assert (await scan(lab, "volume/"))[NAME]["portal"] == f"{new}:3260"

            async def starts() -> bool:
                return (await near.result("create", workshop.file(NAME))).code == 0

            await until(starts, "a domain starts on the volume", within=90)
            assert faults.find(lab, "stor", "tgtd")[0].process == before.process
            await near.veery("destroy", NAME)
        finally:
            await free_to_go(near, "stor", old)
            await near.veery("node", "readdress", "stor", old, within=300)
            await settled(lab, near, "stor", old)
    await workshop.clear(NAME)
    await lab.healthy()


async def test_a_hypervisor_becomes_a_storage_node_and_none_again(
    lab: Lab, near: Node, far: Node, workshop: Workshop
) -> None:
    await workshop.clear(NAME, "here")
    await workshop.volume(NAME)
    await near.veery("node", "storage", "on", "test2")

    async def made() -> bool:
        return (await near.result("volume", "create", "here", "8M", "--on", "test2")).code == 0

    try:
        await until(made, "a volume is made on test2", within=90)
        assert (await scan(lab, "volume/"))["here"]["node"] == "test2"
        assert (await scan(lab, "volume/"))["here"]["portal"] == f"{lab.plan.node('test2').address}:3260"
        assert "it holds volume here" in await near.refused("node", "storage", "off", "test2")
        await near.veery("create", workshop.file(NAME, disk=[f"volume={NAME},xvda,w", "volume=here,xvdb,w"]))
        async with near.shell(NAME) as shell:
            await shell.run("echo word >/dev/xvdb; sync", within=120)
        await near.veery("destroy", NAME)
        assert faults.find(lab, "test2", "tgtd")
    finally:
        await workshop.clear(NAME, "here")
        await near.veery("node", "storage", "off", "test2")

    async def ended() -> bool:
        return not any(each.program.startswith("tgtd") for each in lab.members("test2"))

    await until(ended, "tgtd of test2 ends", within=90)
    await lab.healthy()
    assert "test2 is not a storage node" in await near.refused("volume", "create", "here", "8M", "--on", "test2")


def on_storage(address: str) -> Callable[[str], str]:
    """The settings of a node with `address` on the storage network."""

    def change(text: str) -> str:
        row = f'[storage]\naddress = "{address}"\n'
        return text.replace("[storage]\n", row) if "[storage]\n" in text else f"{text}\n{row}"

    return change


async def packets(near: Node) -> tuple[str, str]:
    """What doctor says of the path to the storage node."""
    rows = json.loads((await near.result("doctor", "--json")).out)
    (row,) = (row for row in rows if row["what"] == "packets to stor")
    return row["level"], row["told"]


async def test_disks_have_a_network_of_their_own(lab: Lab, near: Node, workshop: Workshop) -> None:
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    for node, address in (("stor", "10.20.0.3"), ("test1", "10.20.0.1")):
        await ip(lab, node, "add", f"{address}/24")
    try:
        async with set_up(lab, "stor", on_storage("10.20.0.3")), set_up(lab, "test1", on_storage("10.20.0.1")):
            await lab.healthy()

            async def rerouted() -> bool:
                return bool((await scan(lab, "volume/"))[NAME]["portal"] == "10.20.0.3:3260")

            await until(rerouted, "the volume is reached on the storage network", within=90)
            await near.veery("create", workshop.file(NAME))
            (target,) = (each for each in await near.targets() if each["iqn"].endswith(f":{NAME}"))
            sources = {connection["address"] for each in target["sessions"] for connection in each["connections"]}
            assert sources == {"10.20.0.1"}
            assert await packets(near) == ("ok", "1500 bytes reach 10.20.0.3")
            await lab.run("stor", ["ip", "link", "set", "eth0", "mtu", "1400"])
            try:
                level, told = await packets(near)
                assert (level, "packets of 1500 bytes do not" in told) == ("bad", True), told
            finally:
                await lab.run("stor", ["ip", "link", "set", "eth0", "mtu", "1500"])
            await workshop.clear(NAME)
    finally:
        for node, address in (("stor", "10.20.0.3"), ("test1", "10.20.0.1")):
            await ip(lab, node, "del", f"{address}/24")
    await lab.healthy()
