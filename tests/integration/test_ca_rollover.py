"""A new CA of the cluster: rolled out, given up and rolled out, on the lab's nodes under a domain that moves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from node_parts import Node, Workshop, scan, until, write

from veery.cluster.renewal import OVERLAP_S
from veery.host import tls
from veery.lab.services import Lab

NAME, NODES = "rollo", ("stor", "test1", "test2")
WITHIN = 180.0  # seconds for all nodes to follow one step; each voter's etcd is restarted in turn

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
async def domain(near: Node, workshop: Workshop) -> AsyncIterator[int]:
    """A domain that runs on `near`; the pid of its QEMU."""
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    before = near.qemus()
    await near.veery("create", workshop.file(NAME, volume=NAME))
    (pid,) = near.qemus() - before
    yield pid
    await workshop.clear(NAME)


async def status(near: Node) -> dict[str, Any]:
    """What `cluster ca` tells; {} while the store does not answer: an etcd is restarted."""
    told = await near.result("cluster", "ca", "--json")
    return dict(json.loads(told.out)) if told.code == 0 else {}


async def reached(near: Node, field: str) -> dict[str, Any]:
    """The status once no node is in the way by `field` any more."""

    async def clear() -> dict[str, Any]:
        seen = await status(near)
        return seen if seen and not seen[field] else {}

    return await until(clear, f"no node is {field}", within=WITHIN)


async def step(near: Node, word: str) -> dict[str, Any]:
    """Order the next step until it is taken: the store may be away for a moment."""

    async def ordered() -> dict[str, Any]:
        told = await near.result("cluster", "ca", word, "--json")
        return dict(json.loads(told.out)) if told.code == 0 else {}

    return await until(ordered, f"cluster ca {word}", within=WITHIN)


async def age(lab: Lab) -> None:
    """Have the store say that every renewal was long ago, so that the former certificates are put out at once."""
    for name, record in (await scan(lab, "certificate/")).items():
        if record["former"]:
            await write(
                lab, f"certificate/{name}", json.dumps(record | {"since": record["since"] - OVERLAP_S}).encode()
            )


def issuers(lab: Lab) -> set[str]:
    """The CAs of the certificates that the nodes have."""
    folders = [lab.plan.home(node) / "lib/tls/server-cert.pem" for node in NODES]
    return {tls.facts(each.read_text()).issuer for each in folders}


def trusted(lab: Lab) -> set[tuple[str, ...]]:
    """The CAs that the nodes trust, as each has them."""
    files = [lab.plan.home(node) / "lib/tls/ca-cert.pem" for node in NODES]
    return {tuple(tls.authority_id(ca) for ca in tls.split(each.read_text())) for each in files}


async def all_signed_by(lab: Lab, ca: str) -> None:
    async def followed() -> bool:
        return issuers(lab) == {ca}

    await until(followed, f"every node has a certificate of {ca}", within=WITHIN)


@pytest.mark.parametrize(
    "words", [("renew",), pytest.param(("renew", "cancel", "renew"), marks=pytest.mark.slow)], ids=["on", "on-off-on"]
)
async def test_a_new_ca_is_rolled_out(lab: Lab, near: Node, far: Node, domain: int, words: tuple[str, ...]) -> None:
    """Straight on; and given up once each node has a certificate of it."""
    await age(lab)  # tests before this one may have renewed a node
    await reached(near, "old")
    old = (await status(near))["signing"]
    assert "one CA" in await near.refused("cluster", "ca", "drop")

    await step(near, "renew")
    seen = await reached(near, "untrusting")
    new = seen["trusted"][1]
    assert (seen["signing"], trusted(lab)) == (old, {(old, new)})
    assert (await step(near, "cancel"))["signing"] == old  # it has not signed yet

    for word in words:
        ca = {"renew": new, "cancel": old}[word]
        assert (await step(near, word))["signing"] == ca
        await all_signed_by(lab, ca)
        assert "certificate of the other CA" in await near.refused("cluster", "ca", "drop")
        await age(lab)
        await reached(near, "old")

    assert domain in near.qemus()
    await near.veery("migrate", NAME, "test2")
    there = far.qemus()
    await step(near, "drop")

    async def alone() -> bool:
        return trusted(lab) == {(new,)}

    await until(alone, "every node trusts the new CA alone", within=WITHIN)
    assert (await reached(near, "untrusting"))["trusted"] == [new]
    assert far.qemus() == there
    await far.veery("migrate", NAME, "test1")
    assert await near.domain(NAME)
