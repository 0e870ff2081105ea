"""A guest that powers off or panics by itself while its domain moves: the node that ends up as the owner answers
on_poweroff or on_crash, once; `destroy` works; nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from node_parts import Node, Workshop, aside, scan, until

from veery.host.run import Result
from veery.lab.services import Lab
from veery.model.move import Phase

NAME = "skua"
RATE = "2M"  # bytes a second: the copy lasts longer than the test
PATIENCE_S = 180.0  # for the brain, which waits longer before each start
PANIC, POWEROFF = "echo c >/proc/sysrq-trigger", "poweroff -f"
NOTHING = {"taps": set(), "qemus": set(), "homes": set(), "owners": {}}


@pytest.fixture(scope="module")
def made(near: Node, workshop: Workshop) -> Iterator[Workshop]:
    aside(workshop.clear(NAME))
    aside(workshop.volume(NAME))
    yield workshop
    aside(workshop.clear(NAME))


@pytest.fixture
async def skua(made: Workshop, near: Node, far: Node) -> AsyncIterator[Workshop]:
    """The workshop, with a volume for one domain, which runs nowhere."""
    yield made
    for node in (near, far):
        await node.result("destroy", NAME)


def answers(lab: Lab) -> list[str]:
    """The nodes whose daemons have answered an end of the domain's, one entry an answer, in the order of time."""
    found = []
    for node in ("test1", "test2"):
        rows = lab.log(node).read_text(errors="replace").splitlines()
        found += [(row.split()[0], node) for row in rows if f"domain={NAME} end=" in row and " answer=" in row]
    return [node for _, node in sorted(found)]


async def types(node: Node, command: str) -> None:
    """Have the guest end itself."""
    async with node.shell(NAME) as shell:
        shell.type(f"{command}\n")
        await shell.expect("Kernel panic|reboot: Power down|has ended|moved to")


async def answered_once(lab: Lab, before: int, node: str) -> None:
    """Return once `node` has answered the end, and see that nobody else has, nor twice."""
    assert await answerer(lab, before) == node
    assert answers(lab)[before:] == [node]


async def answerer(lab: Lab, before: int) -> str:
    """The node that has answered the newest end, once one has; `before` so many answers were given earlier."""

    async def told() -> str:
        return "".join(answers(lab)[before : before + 1])

    return await until(told, "the end is answered")


async def copies(near: Node) -> None:
    """Return once memory of the domain flows."""

    async def flows() -> bool:
        client = near.lab.client(near.name)
        rows = await asyncio.to_thread(client.get, "/v1/moves")
        moves = [row["id"] for row in rows if row["state"] == "running"]
        if not moves:
            return False
        samples = (await asyncio.to_thread(client.get, f"/v1/moves/{moves[0]}"))["samples"]
        return bool(samples) and samples[-1]["transferred"] > 1 << 20

    await until(flows, "memory flows")


@contextlib.asynccontextmanager
async def moving(near: Node, far: Node, *words: str) -> AsyncIterator[asyncio.Task[Result]]:
    """The domain on its way from `near` to `far`, for the while."""
    task = asyncio.create_task(near.result("migrate", "-q", *words, NAME, far.name, within=240))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def held(lab: Lab, node: str, phase: Phase) -> Iterator[Path]:
    """Who enters `phase` on `node` waits while the file is there."""
    brake = lab.plan.home(node) / "run" / "hold" / phase
    brake.parent.mkdir(exist_ok=True)
    brake.touch()
    try:
        yield brake
    finally:
        brake.unlink(missing_ok=True)
        brake.parent.rmdir()


async def runs_anew(node: Node, before: int) -> None:
    """Return once the domain runs on `node` as another run than the one with the id `before`."""

    async def anew() -> bool:
        row = await node.domain(NAME)
        return row.get("state") in ("running", "blocked") and row["domid"] != before

    await until(anew, f"{NAME} runs anew on {node.name}")


async def nothing_left(near: Node, far: Node) -> None:
    """Return once neither node has anything of the domain but its record."""

    async def nothing() -> bool:
        left = [await node.traces() for node in (near, far)]
        clean = all({key: each[key] for key in NOTHING} == NOTHING for each in left)
        journals = [path for node in (near, far) for path in (near.lab.plan.home(node.name) / "lib/journal").glob("*")]
        return clean and not journals and not await scan(near.lab, "reservation/")

    await until(nothing, "nothing of it is left")


async def test_an_end_while_memory_is_copied(skua: Workshop, near: Node, far: Node, lab: Lab) -> None:
    """The move is undone and the source answers: a panic starts the domain anew, a poweroff leaves it for `destroy`."""
    await near.veery("create", skua.file(NAME, on_crash="restart", on_poweroff="preserve"))
    for command, how in ((PANIC, "crashed"), (POWEROFF, "shut down")):
        await near.booted(NAME)
        before, answered = (await near.domain(NAME))["domid"], len(answers(lab))
        async with moving(near, far, "--rate", RATE) as move:
            await copies(near)
            await types(near, command)
            told = await move
        assert told.code == 1, told
        assert f"{NAME} {how} on test1 while it was moved" in told.err
        if command == PANIC:
            await runs_anew(near, before)
        else:
            await answered_once(lab, answered, "test1")
            await near.veery("destroy", NAME)
        assert await far.domain(NAME) == {}
        await answered_once(lab, answered, "test1")
    await nothing_left(near, far)


async def test_an_end_after_the_hand_over(skua: Workshop, near: Node, far: Node, lab: Lab) -> None:
    """The domain runs at the target and the source has not removed its copy yet: the target answers."""
    await near.veery("create", skua.file(NAME, on_poweroff="destroy"))
    await near.booted(NAME)
    answered = len(answers(lab))
    with held(lab, "test1", Phase.CONFIRM) as brake:
        async with moving(near, far) as move:

            async def runs() -> bool:
                return (await far.domain(NAME)).get("state") in ("running", "blocked")

            await until(runs, f"{NAME} runs on test2")
            await types(far, POWEROFF)
            await far.gone(NAME)
            brake.unlink()
            told = await move
    assert told.code == 0, told
    await answered_once(lab, answered, "test2")
    await nothing_left(near, far)


class Brain:
    """What HA knows of the domain."""

    def __init__(self, near: Node, far: Node, lab: Lab) -> None:
        self.near, self.far, self.lab = near, far, lab

    async def told(self) -> dict[str, Any]:
        """Its node, and how often the brain has started it in a row."""
        return dict(await asyncio.to_thread(self.lab.client("stor", deadline=30).get, f"/v1/ha/{NAME}"))

    async def runs(self, tries: int) -> Node:
        """Return once it runs, after so many starts by the brain; where."""

        async def node() -> str:
            told = await self.told()
            name = str(told["node"]) if told["tries"] == tries else ""
            rows = [await each.domain(NAME) for each in (self.near, self.far) if each.name == name]
            return name if any(row.get("state") in ("running", "blocked") for row in rows) else ""

        name = await until(node, f"it runs, started {tries} times by the brain", within=PATIENCE_S)
        return self.near if name == self.near.name else self.far

    async def given_back(self) -> None:
        """Return once no node owns it."""

        async def free() -> bool:
            return not (await self.told())["node"]

        await until(free, "no node owns it", within=PATIENCE_S)


@pytest.mark.slow
async def test_under_ha_an_end_counts_as_without_a_move(skua: Workshop, near: Node, far: Node, lab: Lab) -> None:
    """The brain starts what has panicked, at rest and in a move, and counts each start. What has powered off is not
    started again, and costs no try."""
    brain = Brain(near, far, lab)
    await near.veery("create", skua.file(NAME, on_crash="restart", on_poweroff="destroy"))
    await near.veery("ha", "set", NAME, "restart")
    try:
        here = await brain.runs(0)
        await here.booted(NAME)
        await types(here, PANIC)
        here = await brain.runs(1)
        for command in (PANIC, POWEROFF):
            await here.booted(NAME)
            async with moving(here, far if here is near else near, "--rate", RATE) as move:
                await copies(here)
                await types(here, command)
                told = await move
            assert told.code == 1, told
            assert "while it was moved" in told.err
            if command == PANIC:
                here = await brain.runs(2)
        await brain.given_back()
        assert "no: a user stopped it" in await near.veery("ha", "show", NAME)
        assert (await brain.told())["tries"] == 2
        await nothing_left(near, far)
    finally:
        await near.veery("ha", "set", NAME, "off")
