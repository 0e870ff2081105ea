"""Daemons killed with SIGKILL in every phase of a move: the domain ends up running on exactly the owner.

A spread of cells runs in `make test`, all of them in `make faults`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from itertools import product

import pytest
import pytest_asyncio
from proof import Proof

from guest_parts import boot_domain, start_counting
from veery.host.run import Result
from veery.lab import faults
from veery.lab.guest import Guest
from veery.lab.services import Lab
from veery.lab.shell import Shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

PHASES = ("BEGIN", "PREPARE", "COPY", "LOADED", "COMMIT", "FINISH", "CONFIRM")
VICTIMS = {"source": ("test1",), "target": ("test2",), "both": ("test1", "test2")}
BEFORE_COMMIT = PHASES[:5]  # held at the entry of COMMIT: nothing is sent yet
SPREAD = {
    ("PREPARE", "target"),
    ("COPY", "source"),
    ("COPY", "target"),
    ("LOADED", "both"),
    ("COMMIT", "source"),
    ("FINISH", "source"),
    ("FINISH", "target"),
    ("CONFIRM", "both"),
}
CELLS = [
    pytest.param(phase, victim, id=f"{victim}-in-{phase}", marks=() if (phase, victim) in SPREAD else pytest.mark.slow)
    for phase, victim in product(PHASES, VICTIMS)
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proof(lab: Lab, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proof]:
    """A domain that counts, on test1; afterwards its disk must be clean."""
    file = await boot_domain(lab, guest, "judged", tmp_path_factory.mktemp("judged"))
    await start_counting(lab, "test1", "judged")
    proof = Proof(lab, "judged", file)
    yield proof
    owner = await proof.settled()
    volume = await lab.json(owner, "volume", "show", "judged", "--json")
    async with Shell(lab.client(owner).address, "judged") as shell:
        await shell.run("kill $(cat /tmp/counter.pid); mount -o remount,ro /; sync")
    await lab.veery(owner, "destroy", "judged")
    checked = await lab.run("stor", ["e2fsck", "-fn", volume["volume"]["path"]], check=False)
    assert checked.code == 0, checked.out
    await lab.veery("test1", "volume", "delete", "judged")


async def _move(lab: Lab) -> Result:
    return await lab.veery("test1", "migrate", "--live", "judged", "test2", deadline=180, check=False)


@pytest.mark.parametrize(("phase", "victim"), CELLS)
async def test_daemon_killed(proof: Proof, phase: str, victim: str) -> None:
    lab = proof.lab
    before = await proof.home("test1")
    hold = proof.hold("test1", phase)
    try:
        moving = asyncio.create_task(_move(lab))
        await proof.held("test1", phase, moving)
        for node in VICTIMS[victim]:
            await faults.kill(lab, node, "veeryd")
    finally:
        hold.unlink()
    if victim == "target":
        await moving
        await lab.start("test2")
    else:
        for node in VICTIMS[victim]:
            await lab.start(node)
        await moving
    where = await proof.settled()
    if phase in BEFORE_COMMIT and victim != "target":
        assert where == "test1", "it was handed over by a daemon that was dead before COMMIT"
    if phase in ("FINISH", "CONFIRM"):
        assert where == "test2", "the owner key said test2"
    await proof.unharmed(before)


async def test_half_domain_killed_in_copy(proof: Proof) -> None:
    """The target's QEMU dies: the copy fails with a reason, the domain runs on, the retry works."""
    lab = proof.lab
    before = await proof.home("test1")
    hold = proof.hold("test2", "COPY")
    try:
        moving = asyncio.create_task(_move(lab))
        await proof.held("test2", "COPY", moving)
        await faults.kill(lab, "test2", "qemu-system")
    finally:
        hold.unlink()
    told = await moving
    assert told.code == 1
    assert "judged runs on test1" in told.err + told.out
    assert await proof.settled() == "test1"
    await proof.unharmed(before)


@pytest.mark.parametrize("phase", ["PREPARE", "COPY", "LOADED"])
async def test_cancelled_by_its_user(proof: Proof, phase: str) -> None:
    lab = proof.lab
    before = await proof.home("test1")
    hold = proof.hold("test1", phase)
    try:
        moving = asyncio.create_task(_move(lab))
        await proof.held("test1", phase, moving)
        moves = await lab.json("test1", "moves", "--json")
        running = [move["id"] for move in moves if move["state"] == "running"]
        await lab.veery("test1", "move", "cancel", running[0])
    finally:
        hold.unlink()
    told = await moving
    assert told.code == 1
    assert "cancelled" in told.err + told.out
    assert await proof.settled() == "test1"
    await proof.unharmed(before)


async def test_a_second_move_of_one_domain_is_refused(proof: Proof) -> None:
    lab = proof.lab
    before = await proof.home("test1")
    hold = proof.hold("test1", "COPY")
    try:
        moving = asyncio.create_task(_move(lab))
        await proof.held("test1", "COPY", moving)
        second = await lab.veery("test1", "migrate", "judged", "test2", check=False)
        destroyed = await lab.veery("test1", "destroy", "judged", check=False)
        elsewhere = await lab.veery("test2", "destroy", "judged", check=False)
    finally:
        hold.unlink()
    assert (second.code, destroyed.code, elsewhere.code) == (1, 1, 1)
    assert "is being moved" in second.err
    assert "is being moved" in destroyed.err
    assert "on its way here" in elsewhere.err
    assert (await moving).code == 0
    assert await proof.settled() == "test2"
    await proof.unharmed(before)


async def test_link_cut_for_good_in_copy(proof: Proof) -> None:
    """No event comes from anywhere: our own deadlines notice. etcd keeps its quorum without test2."""
    lab = proof.lab
    before = await proof.home("test1")
    hold = proof.hold("test1", "COPY")
    try:
        moving = asyncio.create_task(_move(lab))
        await proof.held("test1", "COPY", moving)
        await faults.cut(lab, "test2")
        hold.unlink()
        told = await moving
        assert told.code == 1
        assert "judged runs on test1" in told.err + told.out
        rows = await proof.lab.json("test1", "list", "-l")
        assert rows
    finally:
        hold.unlink(missing_ok=True)
        await faults.heal(lab, "test2")
    assert await proof.settled() == "test1"
    await proof.unharmed(before)


async def test_quorum_lost_before_commit(proof: Proof) -> None:
    """etcd does not answer when COMMIT is due: the move is undone, the domain runs on where it was."""
    lab = proof.lab
    before = await proof.home("test1")
    hold = proof.hold("test1", "COMMIT")
    frozen = []
    try:
        moving = asyncio.create_task(_move(lab))
        await proof.held("test1", "COMMIT", moving)
        for node in ("stor", "test2"):
            for member in faults.find(lab, node, "etcd"):
                member.process.send(signal.SIGSTOP)
                frozen.append(member.process)
        await asyncio.sleep(0.5)  # until the store's last answer no longer counts as a sign that it answers
        hold.unlink()
        told = await moving
        assert told.code == 1
        rows = await proof.readings()
        assert rows["test1"]["state"] in ("running", "blocked"), told.err[-400:]
    finally:
        hold.unlink(missing_ok=True)
        for process in frozen:
            process.send(signal.SIGCONT)
    assert await proof.settled() == "test1"
    await proof.unharmed(before)


async def test_target_powered_off_after_commit_and_back(proof: Proof) -> None:
    """Past COMMIT the domain is the target's: when the target loses its power then, the domain is gone with it,
    as any domain of a node that loses its power; no second copy ever runs at the source."""
    lab = proof.lab
    await proof.home("test1")
    hold = proof.hold("test1", "FINISH")
    try:
        moving = asyncio.create_task(_move(lab))
        await proof.held("test1", "FINISH", moving)
        await faults.power_off(lab, "test2")
    finally:
        hold.unlink()
    await moving
    for _ in range(20):
        found = await asyncio.to_thread(lab.client("test1").get, "/v1/domains")
        states = [row["state"] for row in found["domains"] if row["name"] == "judged"]
        assert not set(states) & {"running", "blocked"}, "the source let it run again after COMMIT"
        await asyncio.sleep(0.2)
    await faults.power_on(lab, "test2")
    end = asyncio.get_running_loop().time() + 60
    while await proof.keys("owner/") and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.3)
    assert await proof.keys("owner/") == {}
    assert await proof.readings() == {}
    await lab.veery("test1", "create", str(proof.file))
    await start_counting(lab, "test1", "judged")
