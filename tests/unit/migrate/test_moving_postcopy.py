"""Whole moves by post-copy between two nodes with fake drivers: COMMIT before it runs there, and the rest follows."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from two_nodes import UUID, Pair, make_certificates, two_nodes

from veery.cluster.keys import NODES
from veery.errors import Failed, Refused
from veery.host.clock import Clock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.migrate import postcopy, wire
from veery.migrate.journal import Line, Side
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


class Steps:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        """As Clock."""
        return self.time

    def epoch(self) -> float:
        """As Clock."""
        return self.time

    async def sleep(self, seconds: float) -> None:
        """As Clock."""
        self.time += seconds
        await asyncio.sleep(0)


class Waiting(FakeDriver):
    """A target whose memory is whole at `whole_at` of its clock `steps`; `lost`: when it was given up."""

    def __init__(self, name: str, world: World, clock: Clock) -> None:
        super().__init__(name, world, clock)
        self.steps, self.whole_at, self.lost = Steps(), float("inf"), 0.0

    async def finish(self, uuid: str, *, paused: bool = False, started: float = 0.0) -> None:
        """As Driver.finish."""

    async def whole(self, uuid: str) -> bool:
        """As PostCopier.whole."""
        return self.steps.time >= self.whole_at

    async def lose(self, uuid: str) -> None:
        """As PostCopier.lose."""
        self.lost = self.steps.time


@pytest.mark.parametrize("arrives", [True, False])
async def test_gone_is_believed_once_it_has_held(tmp_path: Path, certificates: Path, arrives: bool) -> None:
    """The source's copy also goes when all of its memory has arrived, which the target may see a moment later."""
    async with two_nodes(tmp_path, certificates, make=Waiting) as pair:
        await know_each_other(pair)
        await pair.a.driver.destroy(UUID)
        driver = pair.b.driver
        if arrives:
            driver.whole_at = postcopy.ASK_INTERVAL_S + postcopy.GRACE_S - 0.5
        async with asyncio.timeout(60):
            await postcopy.await_rest(replace(pair.b.context, clock=driver.steps), line_of("a"), 0.0)
        if arrives:
            assert driver.lost == 0.0
        else:
            assert driver.lost > postcopy.ASK_INTERVAL_S + postcopy.GRACE_S


async def called(pair: Pair) -> wire.Channel:
    """A control connection from `a` to `b`."""
    node = pair.b.node
    return await wire.open_control(node.address, node.relocation_port, "b", pair.a.context.client_tls, 20)


def line_of(source: str) -> Line:
    """What the journal of `b` has of a post-copy from `source`."""
    return Line(
        move="m1",
        side=Side.TARGET,
        domain="busybox",
        uuid=UUID,
        boot="boot",
        source=source,
        target="b",
        owner_revision=1,
        post_copy=True,
    )


@pytest.mark.parametrize("message", [wire.Mend, wire.Ask])
async def test_a_node_that_has_no_part_in_a_move_is_told_nothing(
    tmp_path: Path, certificates: Path, message: type[wire.Mend] | type[wire.Ask]
) -> None:
    """Over such a connection it could read the memory of the domain, or write it."""
    async with two_nodes(tmp_path, certificates) as pair:
        line = pair.b.context.journal.write(line_of("c"))
        channel = await called(pair)
        await channel.send(message("m1", UUID))
        with pytest.raises(Failed, match="closed the connection"):
            await channel.expect((wire.Mending, wire.Told), 20)
        await channel.close()
        pair.b.context.journal.strike(line)


@pytest.mark.parametrize("settled", [True, False])
async def test_a_target_that_has_everything_takes_no_new_stream(
    tmp_path: Path, certificates: Path, settled: bool
) -> None:
    """The source would otherwise try to replace the stream for ever."""
    async with two_nodes(tmp_path, certificates) as pair:
        assert (await pair.a.move(pair.b)).state is MoveState.DONE
        line = line_of("a")
        if not settled:
            pair.b.context.journal.write(line)
        channel = await called(pair)
        await channel.send(wire.Mend("m1", UUID))
        assert await channel.expect((wire.Mending, wire.Told), 20) == wire.Told("here")
        await channel.close()
        pair.b.context.journal.strike(line)


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
