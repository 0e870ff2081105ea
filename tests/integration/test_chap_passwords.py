"""The nodes' CHAP passwords in a lab of its own, with a hypervisor that has no vote: test3."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from node_parts import Node, aside, until

from veery.cluster.initiators import FILE
from veery.lab import guest
from veery.lab.services import Lab
from veery.lab.stored import records

VOLUME = "data"


@pytest.fixture(scope="module")
def three() -> Iterator[Lab]:
    made: Lab = aside(Lab.up(f"c{os.getpid()}", hypervisors=3))
    try:
        aside(_furnish(made))
        yield made
    finally:
        aside(made.down())


async def _furnish(lab: Lab) -> None:
    await lab.veery("test1", "volume", "create", VOLUME, "8M", deadline=90)


def _own(lab: Lab, node: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.plan.home(node) / "lib" / FILE).read_text())
    return found


async def _reach(lab: Lab, node: str, *password: str) -> int:
    argv = [sys.executable, "-m", "veery.lab.reach", lab.plan.settings(node), VOLUME, *password]
    return (await lab.run(node, argv, check=False, deadline=60)).code


async def test_a_node_without_a_vote_reads_no_other_nodes_password_and_its_disks_log_in(three: Lab) -> None:
    nodes = [node.name for node in three.plan.nodes]
    passwords = {name: _own(three, name)["password"] for name in nodes}
    assert len(set(passwords.values())) == len(nodes)
    seen = await records(three.plan, node="test3")
    assert {f"chap/{name}" for name in nodes} <= set(seen)
    assert not [(key, name) for key, value in seen.items() for name in nodes if passwords[name] in json.dumps(value)]
    held = three.plan.home("test3") / "lib"
    files = [path for path in held.rglob("*") if path.is_file()]
    others = [passwords[name] for name in nodes if name != "test3"]
    assert not [path for path in files for each in others if each.encode() in path.read_bytes()]
    assert {name for name in nodes if (three.plan.home(name) / "lib/chap.key").exists()} == {"stor", "test1", "test2"}

    for name in ("test1", "test3"):
        assert await _reach(three, name) == 0
        assert await _reach(three, name, "wrong-password-1") == 1
    file = three.plan.folder / "held"
    file.write_text(f'name = "held"\nmemory = 64\nkernel = "{_kernel()}"\ndisk = [ "volume={VOLUME},xvda,w" ]\n')
    await three.veery("test3", "create", "-p", str(file), deadline=120)
    try:

        async def session() -> bool:
            (target,) = [one for one in await Node(three, "stor").targets() if one["iqn"].endswith(f":{VOLUME}")]
            return any(each["initiator"] == _own(three, "test3")["iqn"] for each in target["sessions"])

        await until(session, "the domain's disk has a session")
    finally:
        await three.veery("test3", "destroy", "held", deadline=60)


async def test_a_node_that_lost_its_credentials_gets_new_ones(three: Lab) -> None:
    former = _own(three, "test3")["password"]
    (three.plan.home("test3") / "lib" / FILE).unlink()

    async def again() -> bool:
        try:
            return bool(_own(three, "test3")["password"] != former) and await _reach(three, "test3") == 0
        except FileNotFoundError:
            return False

    await until(again, "test3 has a new password, and its targets know it", within=60)
    assert await _reach(three, "test3", former) == 1


async def test_a_session_under_another_nodes_name_is_closed_and_told(three: Lab) -> None:
    """tgtd lets test3 in as test1, with test3's own account: the storage node's daemon sees where it comes from."""
    iqn, own = _own(three, "test1")["iqn"], _own(three, "test3")
    reads = [word for _ in range(400) for word in ("-c", "read 0 4k", "-c", "sleep 100")]
    holder = await asyncio.create_subprocess_exec(
        *map(str, three.enter("test3", ["qemu-io", *await _words(three, iqn, own["user"], own["password"]), *reads])),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        async def told() -> bool:
            rows = await records(three.plan, "event/")
            return any(row["what"] == "foreign-session" and row["subject"] == "test3" for row in rows.values())

        await until(told, "an event tells of test3")
        log = three.log("stor").read_text()
        assert "test3 logged in to" in log
    finally:
        holder.kill()
        await holder.wait()
    rows = json.loads((await Node(three, "stor").result("doctor", "--json")).out)
    (row,) = [row for row in rows if row["what"] == "iSCSI sessions"]
    assert (row["level"], row["told"]) == ("bad", "test3 logged in as test1")


async def test_a_node_comes_and_goes(three: Lab) -> None:
    """What a forgotten node knew opens nothing, and the records go with it."""
    iqn, former = _own(three, "test3")["iqn"], _own(three, "test3")["password"]
    (daemon,) = [one for one in three.members("test3") if one.program == "veeryd"]
    await daemon.process.stop(grace=0)

    async def forgotten() -> bool:
        return (await Node(three, "test1").result("node", "forget", "test3")).code == 0

    await until(forgotten, "test3 is forgotten", within=90)
    assert not [key for key in await records(three.plan, "chap") if key.endswith("/test3")]

    async def shut() -> bool:
        return all(iqn not in one["acl"] and "test3" not in one["accounts"] for one in await _targets(three))

    await until(shut, "no target lets it in", within=60)
    assert await _reach_as(three, "test3", iqn, "test3", former) == 1


async def _targets(lab: Lab) -> list[dict[str, Any]]:
    return await Node(lab, "stor").targets()


async def _words(lab: Lab, iqn: str, user: str, password: str) -> list[str]:
    """QEMU's words for the volume, with any name and account."""
    (target,) = [one for one in await _targets(lab) if one["iqn"].endswith(f":{VOLUME}")]
    address = (
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=172.16.31.3:3260,file.target={target['iqn']},"
        f"file.lun=1,file.user={user},file.password-secret=chap,file.initiator-name={iqn}"
    )
    secret = f"secret,id=chap,data={password}"
    return ["--object", secret, "--image-opts", address]


async def _reach_as(lab: Lab, node: str, iqn: str, user: str, password: str) -> int:
    """Log in from `node`, with any name and account."""
    argv = ["qemu-img", "info", *await _words(lab, iqn, user, password)]
    return (await lab.run(node, argv, check=False, deadline=60)).code


def _kernel() -> str:
    found = guest.find()
    assert found is not None
    return str(found.kernel)
