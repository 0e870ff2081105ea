"""Post-copy on real parts: what breaks while a domain lives on both nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from proof import SETTLE, Life, Proof
from scene import Scene

from veery.host.run import Result
from veery.lab import faults
from veery.lab.services import Lab
from veery.lab.shell import Shell

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(400)]

WRITING = (
    "mkdir -p /t; mount -t tmpfs -o size=40m tmpfs /t; dd if=/dev/urandom of=/t/x bs=64k count=16 2>/dev/null; "
    "(while :; do for i in 0 1 2 3 4 5 6 7 8 9 a b c d e f; do cat /t/x >/t/y$i; done; done) & echo $! >/tmp/busy"
)
RATE = "12M"  # bytes/s: the rest takes some seconds, in the midst of which the fault comes


@dataclass
class Leaving:
    """A domain that runs at `target` by post-copy, its rest still at `source`; `before` is its life there."""

    proof: Proof
    source: str
    target: str
    before: Life
    task: asyncio.Task[Result]

    async def report(self) -> dict[str, object]:
        newest = (await self.proof.lab.json(self.source, "moves", "--json"))[-1]
        told: dict[str, object] = await self.proof.lab.json(self.source, "move", "show", "--json", newest["id"])
        return told


@contextlib.asynccontextmanager
async def leaving(scene: Scene, lab: Lab) -> AsyncIterator[Leaving]:
    proof = await scene.ready()
    source = await proof.settled()
    target = "test2" if source == "test1" else "test1"
    before = await proof.life(source)
    async with Shell(lab.client(source).address, proof.domain) as shell:
        await shell.ready()
        await shell.run(WRITING)
    log = lab.log(source)
    begun = log.stat().st_size

    async def passed() -> bool:
        with log.open("rb") as file:
            file.seek(begun)
            return b"phase=CONFIRM" in file.read()

    words = ("migrate", "--policy", "post-copy", "--rate", RATE, proof.domain, target)
    task = asyncio.create_task(lab.veery(source, *words, check=False, deadline=180))
    try:
        end = time.monotonic() + SETTLE
        while not await passed():
            assert not task.done(), f"it ended before post-copy: {task.result()}"
            assert time.monotonic() < end, "it did not come to post-copy"
            await asyncio.sleep(0.02)
        yield Leaving(proof, source, target, before, task)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def arrived(scene: Scene, move: Leaving, *, anew: bool = False) -> None:
    """It runs at its target alone, the same life or a new one, its disk whole."""
    proof = move.proof
    assert await proof.settled() == move.target
    life = await proof.alive(move.target, after=0 if anew else move.before.count)
    assert (life.boot != move.before.boot) is anew
    if not anew:
        async with Shell(proof.lab.client(move.target).address, proof.domain) as shell:
            await shell.ready()
            await shell.run("kill $(cat /tmp/busy); sleep 0.5; rm -f /t/*; umount /t")
    await scene.stands(move.target)


@pytest.mark.slow
async def test_a_cut_link_is_mended(scene: Scene, lab: Lab) -> None:
    async with leaving(scene, lab) as move:
        await faults.cut(lab, move.target)
        try:
            await asyncio.sleep(8)
            assert not move.task.done(), f"the rest had come before: {move.task.result()}"
        finally:
            await faults.heal(lab, move.target)
        told = await move.task
        assert told.code == 0, told.err
        assert "post-copy: once it runs there it cannot come back" in told.err
        assert "the stream broke" in told.err
        assert "a new stream carries the rest" in told.err
        assert (await move.report())["state"] == "done"
        await arrived(scene, move)


@pytest.mark.slow
async def test_both_daemons_die_and_come_back(scene: Scene, lab: Lab) -> None:
    async with leaving(scene, lab) as move:
        for node in (move.source, move.target):
            await faults.kill(lab, node, "veeryd")
        for node in (move.source, move.target):
            await lab.start(node)
        await move.task
        await arrived(scene, move)


async def test_the_run_is_lost_with_its_source(scene: Scene, lab: Lab) -> None:
    async with leaving(scene, lab) as move:
        await faults.kill(lab, move.source, "qemu-system")
        told = await move.task
        assert told.code != 0
        assert "lost in post-copy" in told.err
        report = await move.report()
        assert (report["state"], report["runs_on"]) == ("lost", move.target)
        move.proof.boots += 1
        await arrived(scene, move, anew=True)
