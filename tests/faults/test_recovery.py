"""A store without a majority, made again under a running domain: of one voter's data, and of a copy."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from stage import NAME, PATIENCE, Stage

from veery.host.process import Process
from veery.lab import faults
from veery.lab.plan import NAMESPACES

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

DOG_S = 15
ALL = ("stor", "test1", "test2")
DONE = ("fence", "fence.done", "release", "start", "end")  # what the brain does only where something was lost


async def burn(stage: Stage, nodes: Sequence[str]) -> None:
    """The data folders of these voters are gone, and their etcds with them."""
    for node in nodes:
        folder = stage.lab.plan.home(node) / "lib/etcd"
        folder.rename(folder.with_name("burnt"))
        await faults.kill(stage.lab, node, "etcd")
        shutil.rmtree(folder.with_name("burnt"))


async def without_quorum(stage: Stage, node: str) -> None:
    async def lost() -> bool:
        return not (await stage.get("/v1/cluster", node))["quorum"]

    await stage.until(lost, "the quorum is lost")


async def planned(stage: Stage, node: str, verb: str, *words: str) -> None:
    """Return when nothing stands in the way of `veery cluster VERB`.

    Of a recovery: requests fail as soon as most members are gone; the last member takes its leader for alive until its
    election timeout has passed, and for so long its word is trusted."""
    said = ""

    async def ready() -> bool:
        nonlocal said
        plan = await stage.lab.veery(node, "cluster", verb, "--plan", *words, check=False, deadline=60)
        said = f"{plan}"
        return plan.code == 0

    try:
        await stage.until(ready, f"nothing stands in the way of: cluster {verb}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {said}") from None


async def adopt(stage: Stage, node: str, *words: str) -> str:
    """What is printed."""
    await planned(stage, node, "adopt", *words)
    yes = ["--yes"] if words else []
    return (await stage.lab.veery(node, "cluster", "adopt", *words, *yes, deadline=120)).out


async def vote_again(stage: Stage, by: str, nodes: Sequence[str]) -> None:
    """`node vote on` for each, once it has given up its old vote and serves again."""
    for node in nodes:

        async def given(node: str = node) -> bool:
            told = await stage.lab.veery(by, "node", "vote", "on", node, check=False, deadline=150)
            assert "no role" not in told.err
            return told.code == 0

        await stage.until(given, f"{node} has a vote", within=2 * PATIENCE)

    async def all_vote() -> bool:
        told = {row["node"]["name"]: row["node"]["roles"] for row in await stage.get("/v1/nodes", by)}
        members = [row for row in await stage.get("/v1/doctor", by) if row["what"] == "store"]
        built = [(await stage.get("/v1/host", name))["node"]["roles"] for name in ALL]  # veeryd starts anew by its vote
        everybody = all("voter" in roles for roles in (*(told[name] for name in ALL), *built))
        return everybody and [row["level"] for row in members] == ["ok"] * 3

    await stage.until(all_vote, "all three vote")


async def unbroken(stage: Stage, boot: str, begun: float) -> None:
    """The domain runs on in the same boot, its disk is whole, and nothing was fenced, ended or started."""
    await stage.at_rest()
    await stage.heard(NAME, boot=boot)
    assert not [each for each in await stage.events(begun) if each["what"] in DONE]
    assert await stage.judged(NAME) == []


async def test_two_of_three_voters_lost_their_data(stage: Stage) -> None:
    before, begun = await stage.place(NAME, "test1"), time.time()
    qemu = faults.find(stage.lab, "test1", "qemu-system")
    refused = await stage.lab.veery("test2", "cluster", "recover", check=False)
    assert (refused.code != 0, "nothing to recover" in refused.err) == (True, True), refused.err

    await burn(stage, ("stor", "test1"))
    await without_quorum(stage, "test2")
    await planned(stage, "test2", "recover")
    refused = await stage.lab.veery("stor", "cluster", "recover", check=False)
    assert "has no data of the store" in refused.err, refused.err

    await stage.lab.veery("test2", "cluster", "recover", deadline=200)
    status = await stage.lab.veery("test1", "cluster", "status", check=False)
    assert "not trusted" in status.out + status.err, status
    await adopt(stage, "test2")
    await vote_again(stage, "test2", ("stor", "test1"))
    assert await stage.owner(NAME) == "test1"
    assert faults.find(stage.lab, "test1", "qemu-system") == qemu
    await unbroken(stage, before.boot, begun)


@pytest.mark.slow
async def test_a_voter_that_was_away_gives_its_old_store_up(stage: Stage) -> None:
    """One voter's data is gone and one voter is off. The one that was off comes back with its data, and the old store
    has no chance: it asks the others, puts its data aside, and is let in again."""
    before, begun = await stage.place(NAME, "test1"), time.time()
    await faults.power_off(stage.lab, "test2")
    try:
        await burn(stage, ("stor",))
        await without_quorum(stage, "test1")
        await asyncio.sleep(15)
        await stage.heard(NAME, boot=before.boot)  # its guard heard all along that the store is down for all
        plan = await stage.lab.veery("test1", "cluster", "recover", "--plan", check=False)
        assert (plan.code, "voter test2 does not answer" in plan.out) == (1, True), plan
        await stage.lab.veery("test1", "cluster", "recover", "--lost", "test2", "--yes", deadline=200)
        await adopt(stage, "test1", "--lost", "test2")
    finally:
        await faults.power_on(stage.lab, "test2")

    async def aside() -> bool:
        return not (await stage.get("/v1/recovery", "test2"))["voter"]

    await stage.until(aside, "test2 gives its member up")
    assert list((stage.lab.plan.home("test2") / "lib").glob("etcd.before-*"))
    await vote_again(stage, "test1", ("stor", "test2"))
    await stage.at_rest()
    await stage.heard(NAME, boot=before.boot)
    assert not [each for each in await stage.events(begun) if each["subject"] == f"domain/{NAME}"]
    assert await stage.judged(NAME) == []


@contextlib.asynccontextmanager
async def watchdog(stage: Stage, node: str, folder: Path) -> AsyncIterator[Path]:
    """A watchdog that ends `node` when it is not fed for DOG_S; what it did is written to the file that is given."""
    lab, socket, log = stage.lab, folder / "dog", folder / "dog.log"
    argv = [sys.executable, "-m", "veery.lab.softdog", socket, NAMESPACES / lab.plan.namespace(node)]
    dog = Process.spawn(argv, log_file=log)
    settings = lab.plan.settings(node)
    before = settings.read_text()
    try:
        rows = f'[guard]\nend = 4.0\n[watchdog]\ndevice = "{socket}"\ntimeout = {DOG_S}\n'
        settings.write_text(f"presence_ttl = 4\n{before}\n{rows}")
        await restart(stage, node)

        async def armed() -> bool:
            return "armed" in log.read_text()

        await stage.until(armed, "the watchdog is armed")
        yield log
    finally:
        settings.write_text(before)
        await restart(stage, node)
        await dog.stop(grace=0)


async def restart(stage: Stage, node: str) -> None:
    """End veeryd of `node` in good order, and start it."""
    if any(one.program == "veeryd" for one in stage.lab.members(node)):
        (daemon,) = faults.find(stage.lab, node, "veeryd")
        daemon.process.send(signal.SIGTERM)
        await daemon.process.gone()
    await stage.lab.start(node)
    await stage.at_rest()


@pytest.mark.slow
async def test_all_voters_lost_their_data_and_there_is_a_copy(stage: Stage, tmp_path: Path) -> None:
    """The copy is older than a move: the owner key comes from what runs where. A watchdog is fed all the time."""
    before = await stage.place(NAME, "test1")
    copy = tmp_path / "store.db"
    await stage.lab.run("stor", ["veery", "cluster", "backup", str(copy)])
    await stage.lab.veery("test1", "migrate", "--live", NAME, "test2", deadline=120)
    begun = time.time()
    async with watchdog(stage, "test2", tmp_path) as fed:
        await burn(stage, ALL)
        await without_quorum(stage, "stor")
        await asyncio.sleep(2 * DOG_S)
        await stage.lab.veery("stor", "cluster", "recover", "--from", str(copy), deadline=200)
        await asyncio.sleep(2 * DOG_S)  # nobody has to hurry
        told = await adopt(stage, "stor")
        assert f"{NAME} runs on test2: the store says test1" in told
        await vote_again(stage, "stor", ("test1", "test2"))
        assert await stage.owner(NAME) == "test2"
        await unbroken(stage, before.boot, begun)
        assert "fired" not in fed.read_text()
