"""A node's certificate and the cluster's CA, renewed on the lab's nodes under a running domain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from node_parts import Node, Workshop, scan

from veery.host import tls
from veery.lab.services import Lab

NAME = "newlyn"


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


def held(lab: Lab, node: str) -> tls.Facts:
    return tls.facts((lab.plan.home(node) / "lib/tls/server-cert.pem").read_text())


async def test_a_node_is_renewed_under_a_domain_that_then_moves(lab: Lab, near: Node, far: Node, domain: int) -> None:
    before = held(lab, "test1")
    told = json.loads(await near.veery("node", "renew", "test1", "--json"))
    after = held(lab, "test1")
    assert (told["serial"], after.serial != before.serial) == (after.serial, True)
    assert domain in near.qemus()
    known = (await scan(lab, "certificate/"))["test1"]
    assert (known["serial"], known["former"]) == (after.serial, before.serial)
    assert "renewed recently" in await near.refused("node", "renew", "test1")
    await near.veery("migrate", NAME, "test2")
    assert await far.domain(NAME)
    await far.veery("migrate", NAME, "test1")
    assert await near.domain(NAME)


async def test_no_key_of_the_ca_is_read_in_the_store(lab: Lab, near: Node) -> None:
    assert await scan(lab, "ca/key") == {}
    keys = {node for node in ("stor", "test1", "test2") if (lab.plan.home(node) / "lib/sealing.key").exists()}
    rows: list[dict[str, Any]] = json.loads(await near.veery("node", "list", "--json"))
    assert keys == {row["node"]["name"] for row in rows if "voter" in row["node"]["roles"]} & {"stor", "test1", "test2"}
