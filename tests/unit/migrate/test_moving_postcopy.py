"""Whole moves by post-copy between two nodes with fake drivers: COMMIT before it runs there, and the rest follows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from two_nodes import UUID, Pair, make_certificates, two_nodes

from veery.cluster.keys import NODES
from veery.errors import Failed, Refused
from veery.migrate.journal import Line
from veery.model.domain import DomainEnd, DomainState
from veery.model.move import MoveSettings, MoveState, Phase

POST_COPY = MoveSettings(policy="post-copy", bandwidth=64 << 20)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def know_each_other(pair: Pair) -> None:
    for side in (pair.a, pair.b):
        await pair.a.store.commit([], [NODES.put(side.node.name, side.node)])


def busy(pair: Pair) -> None:
    """It writes faster than it can be copied."""
    pair.a.driver.writes(UUID, 60 << 20)


def held(folder: Path, phase: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / phase
    path.touch()
    return path


async def entered(pair: Pair, phase: Phase) -> Line:
    async with asyncio.timeout(30):
        while True:
            for line in pair.a.context.journal.open():
                if line.phase is phase:
                    return line
            await asyncio.sleep(0.005)


async def state(pair: Pair) -> str:
    return (await pair.b.reading()).state.value


async def test_it_leaves_before_all_is_sent(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await know_each_other(pair)
        busy(pair)
        brake = held(pair.a.hold, "COMMIT")
        moving = asyncio.create_task(pair.a.move(pair.b, POST_COPY))
        line = await entered(pair, Phase.COMMIT)
        assert line.post_copy
        assert pair.world.running(UUID) == ()
        assert await state(pair) == "incoming"
        assert await pair.owner() == "a"
        release = pair.a.driver.hang("drain")
        brake.unlink()
        await entered(pair, Phase.CONFIRM)
        assert pair.world.running(UUID) == ("b",)
        assert await pair.owner() == "b"
        assert "is being settled" in pair.b.moves.busy("busybox")  # it cannot go on from there yet
        assert not pair.b.moves.busy("busybox", arriving=True)  # and yet be ended
        release()
        report = await moving
        assert (report.state, report.reason, report.runs_on) == (MoveState.DONE, "", "b")
        assert any("the rest follows" in remark.text for remark in report.story)
        await pair.check("b")
        assert (await pair.b.move(pair.a, POST_COPY)).state is MoveState.DONE  # it writes no more: no post-copy
        await pair.check("a")


async def test_what_fits_goes_without_post_copy(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair.a.hold, "COMMIT")
        moving = asyncio.create_task(pair.a.move(pair.b, POST_COPY))
        assert not (await entered(pair, Phase.COMMIT)).post_copy
        brake.unlink()
        report = await moving
        assert not any("the rest follows" in remark.text for remark in report.story)
        await pair.check("b")


@pytest.mark.parametrize("phase", ["COPY", "LOADED"])
async def test_cancelled_before_commit_it_stays(tmp_path: Path, certificates: Path, phase: str) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        busy(pair)
        brake = held(pair.a.hold, phase)
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, POST_COPY)
        await entered(pair, Phase(phase))
        report = await pair.a.moves.cancel(move)
        brake.unlink()
        assert (report.state, report.runs_on) == (MoveState.CANCELLED, "a")
        await pair.check("a")


async def test_past_commit_it_is_not_cancelled(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await know_each_other(pair)
        busy(pair)
        release = pair.a.driver.hang("drain")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, POST_COPY)
        await entered(pair, Phase.CONFIRM)
        with pytest.raises(Refused, match="past COMMIT"):
            await pair.a.moves.cancel(move)
        release()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")


async def test_a_broken_stream_is_replaced_until_it_holds(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await know_each_other(pair)
        busy(pair)
        release = pair.a.driver.hang("drain")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, POST_COPY)
        notes = []

        async def listen() -> None:
            async for progress in pair.a.moves.follow(move):
                notes.append(progress.note)

        listening = asyncio.create_task(listen())
        await entered(pair, Phase.CONFIRM)
        behind = pair.a.driver._domains[UUID].behind
        assert behind is not None
        behind.close()
        pair.b.driver.fail("rejoin", Failed("not yet"))
        release()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")
        await listening
        assert any("the stream broke" in note for note in notes)
        assert any("the stream is not replaced yet: not yet" in note for note in notes)
        assert any("a new stream carries the rest" in note for note in notes)


async def test_a_source_that_dies_takes_the_run_with_it(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await know_each_other(pair)
        busy(pair)
        release = pair.a.driver.hang("drain")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, POST_COPY)
        await entered(pair, Phase.CONFIRM)
        pair.a.driver.crash_process(UUID)
        release()
        report = await pair.a.moves.outcome(move)
        assert (report.state, report.runs_on) == (MoveState.LOST, "b")
        assert "lost in post-copy" in report.reason
        async with asyncio.timeout(30):
            ended = await anext(pair.b.driver.events().__aiter__())
        assert (ended.uuid, ended.end) == (UUID, DomainEnd.DIED)  # the caretaker answers with on_crash
        await pair.settled()
        assert (await pair.owner(), pair.world.running(UUID), pair.world.twice) == ("b", (), [])


async def test_daemons_that_begin_anew_see_it_through(tmp_path: Path, certificates: Path) -> None:
    """Both lines stand in the journals from FINISH on; who comes back goes on with them."""
    async with two_nodes(tmp_path, certificates) as pair:
        await know_each_other(pair)
        busy(pair)
        brake = held(pair.a.hold, "CONFIRM")
        moving = pair.a.moves.start(await pair.a.reading(), pair.b.node, POST_COPY)
        await entered(pair, Phase.CONFIRM)
        task = pair.a.moves._running[moving].task
        assert task is not None
        task.cancel()
        await asyncio.wait({task})
        brake.unlink()
        assert pair.world.running(UUID) == ("b",)
        assert (await pair.a.reading()).state is DomainState.PAUSED
        (line,) = pair.a.context.journal.open()
        assert (line.phase, line.post_copy) == (Phase.CONFIRM, True)
        pair.a.settler.recall()
        await pair.check("b")


async def test_a_kernel_without_userfaultfd_is_told_before(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.b.driver.able = replace(pair.b.driver.able, post_copy="the kernel gives no userfaultfd: no")
        report = await pair.a.move(pair.b, POST_COPY)
        assert report.state is MoveState.FAILED
        assert "no post-copy: the kernel gives no userfaultfd" in report.reason
        assert (await pair.a.move(pair.b)).state is MoveState.DONE
        await pair.check("b")
