"""Nodes that die, hang and come back, on real parts: the domain is started elsewhere only after the fence's proof, no
acknowledged record is lost, and no two copies ever write."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from stage import ADDRESS, NAME, Stage

from veery.host.process import Process
from veery.lab import faults

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_power_off(stage: Stage) -> None:
    before = await stage.place(NAME, "test1")
    begun = time.time()
    await faults.power_off(stage.lab, "test1")
    try:
        after = await stage.heard(NAME, but=before.boot)
        assert await stage.owner(NAME) == "test2"
        events = await stage.events(begun)
        order = [(each["what"], each["subject"]) for each in events]
        proven, started = order.index(("fence.done", "node/test1")), order.index(("start", f"domain/{NAME}"))
        assert proven < started, "it was started before the fence was proven"
        assert "no session left" in events[proven]["text"]
        assert after.number > before.number
    finally:
        await faults.power_on(stage.lab, "test1")
    await stage.at_rest()
    assert await stage.owner(NAME) == "test2", "it came home although nobody asked"
    assert stage.copies("test1") == 0
    assert await stage.judged(NAME) == []


async def test_freeze_and_thaw(stage: Stage) -> None:
    """The node hangs, its domain runs elsewhere, it wakes with its old QEMU: which never writes again."""
    before = await stage.place(NAME, "test1")
    await faults.freeze(stage.lab, "test1")
    try:
        after = await stage.heard(NAME, but=before.boot)
        assert stage.copies("test1") == 1, "the old copy was to be there, asleep"
    finally:
        faults.thaw(stage.lab, "test1")
    await stage.at_rest()
    assert stage.copies("test1") == 0, "the old copy was let in again"
    await stage.heard(NAME, boot=after.boot)
    assert await stage.judged(NAME) == []


async def test_quorum_lost(stage: Stage) -> None:
    """Domains run on, nothing is fenced or restarted, the CLI says so at once; on return nothing happens either."""
    before = await stage.place(NAME, "test1")
    begun = time.time()
    frozen: list[Process] = []
    try:
        for node in ("stor", "test2"):
            for member in faults.find(stage.lab, node, "etcd"):
                member.process.send(signal.SIGSTOP)
                frozen.append(member.process)
        await asyncio.sleep(15)
        told = await stage.lab.veery("test1", "cluster", "status", check=False, deadline=20)
        assert (told.code, "quorum : no" in told.out) == (1, True), told.out
        await stage.heard(NAME, boot=before.boot)
    finally:
        for process in frozen:
            process.send(signal.SIGCONT)
    await stage.at_rest()
    await stage.heard(NAME, boot=before.boot)
    assert not [each for each in await stage.events(begun) if each["what"] in ("fence", "start", "release", "end")]


@pytest.mark.slow
async def test_tgtd_killed_without_a_quorum(stage: Stage) -> None:
    """The storage node serves again what it served: the domain runs on, although no record can be read."""
    before = await stage.place(NAME, "test1")
    stopped = [each for node in ("test1", "test2") for each in faults.find(stage.lab, node, "etcd")]
    begun = time.time()
    try:
        await faults.halt(stopped)
        await faults.kill(stage.lab, "stor", "tgtd")
        await stage.heard(NAME, boot=before.boot)
        assert all(not each.process.alive() or each.standing() for each in stopped), "there was a quorum again"
    finally:
        faults.go_on(stopped)
    await stage.at_rest()
    await stage.heard(NAME, boot=before.boot)
    assert not [each for each in await stage.events(begun) if each["what"] in ("fence", "start", "release", "end")]
    assert await stage.judged(NAME) == []


async def test_leader_killed_during_a_recovery(stage: Stage) -> None:
    """The leader dies after it began the fence: the next one finishes what it finds."""
    before = await stage.place(NAME, "test1")
    leader = (await stage.get("/v1/cluster"))["leader"]
    assert leader in ("stor", "test2"), "test1 is to lose its power"
    begun = time.time()
    await faults.power_off(stage.lab, "test1")
    try:
        await stage.until(lambda: stage.did("fence", "node/test1", begun), "the fence begins")
        await faults.kill(stage.lab, leader, "veeryd")
        await stage.until(lambda: _led_by_another(stage, leader), "another leads")
        await stage.lab.start(leader)
        await stage.heard(NAME, but=before.boot)
        assert await stage.owner(NAME) == "test2"
    finally:
        await faults.power_on(stage.lab, "test1")
    await stage.at_rest()
    assert await stage.judged(NAME) == []


async def test_disarmed(stage: Stage) -> None:
    """Nothing is decided while the cluster is disarmed; armed again, it is made up for."""
    before = await stage.place(NAME, "test1")
    await stage.post("/v1/disarm", {"reason": "the switch is replaced"})
    begun = time.time()
    await faults.power_off(stage.lab, "test1")
    try:
        await asyncio.sleep(12)
        assert (await stage.get("/v1/cluster"))["disarmed"].endswith("the switch is replaced")
        assert not await stage.get("/v1/fences")
        assert not await stage.did("fence", "node/test1", begun)
        await stage.post("/v1/arm")
        await stage.heard(NAME, but=before.boot)
    finally:
        await faults.power_on(stage.lab, "test1")
    await stage.at_rest()
    assert await stage.judged(NAME) == []


async def test_a_domain_that_dies_is_started_again(stage: Stage) -> None:
    before = await stage.place(NAME, "test1")
    begun = time.time()
    await faults.kill(stage.lab, "test1", "qemu-system")
    await stage.heard(NAME, but=before.boot)
    assert await stage.did("start.done", f"domain/{NAME}", begun)
    assert not await stage.did("fence", "node/test1", begun)
    assert await stage.judged(NAME) == []


async def _led_by_another(stage: Stage, leader: str) -> bool:
    now = (await stage.get("/v1/cluster", "test2" if leader == "stor" else "stor"))["leader"]
    return now not in ("", leader)


async def test_drain_and_resume(stage: Stage) -> None:
    """Three domains leave a node, nobody notices; the last node is not drained; they come home when asked."""
    lab = stage.lab
    names = {NAME: ADDRESS, "second": "172.16.31.62", "third": "172.16.31.63"}
    boots = {NAME: (await stage.place(NAME, "test1")).boot}
    try:
        await stage.raise_up("second", names["second"], policy="off")
        await stage.raise_up("third", names["third"], policy="migrate-only")
        for name in names:
            boots[name] = (await stage.heard(name)).boot
        planned = await lab.json("stor", "node", "drain", "test1", "--plan", "--json", deadline=120)
        assert {move["domain"]: move["target"] for move in planned["moves"]} == dict.fromkeys(names, "test2")
        assert all(move["gap_ms"] > 0 for move in planned["moves"])
        assert planned["blockers"] == []
        drained = await lab.json("stor", "node", "drain", "test1", "--json", deadline=300)
        assert sorted(drained["moved"]) == sorted(names)
        assert stage.copies("test1") == 0
        last = await lab.veery("stor", "node", "drain", "test2", check=False)
        assert (last.code, "test2 is the last" in last.err) == (1, True), last.err
        refused = await lab.veery("test2", "migrate", "--live", NAME, "test1", check=False)
        assert refused.code == 1, "a drained node took a domain in"
        await lab.veery("stor", "node", "resume", "test1", "--home", deadline=300)
        for name in names:
            assert (await stage.where(name)) == "test1"
            await stage.heard(name, boot=boots[name])
        again = await lab.veery("stor", "node", "resume", "test1", check=False)
        assert (again.code, "not drained" in again.err) == (1, True), again.err
    finally:
        for name in ("second", "third"):
            if name in stage.ledgers:
                await stage.tear_down(name)
    assert await stage.judged(NAME) == []
