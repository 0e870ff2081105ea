"""Whole moves between two nodes with fake drivers: every way they can end, and what is then true."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as HPhase
from hypothesis import strategies as st
from two_nodes import UUID, Pair, dead_line, make_certificates, two_nodes

from veery.cluster import owner as owners
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host.clock import Clock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.migrate.journal import Side
from veery.migrate.settle import Settler
from veery.model.move import MoveProgress, MoveSettings, MoveState, Phase
from veery.model.plan import Blocker, Obstacle


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def entered(pair: Pair, phase: Phase) -> None:
    """Return once the move has come to `phase` at its source."""
    async with asyncio.timeout(20):
        while all(line.phase is not phase for line in pair.a.context.journal.open()):
            await asyncio.sleep(0.005)


def held(pair: Pair, phase: str) -> Path:
    pair.a.hold.mkdir(parents=True, exist_ok=True)
    path = pair.a.hold / phase
    path.touch()
    return path


async def test_there_and_back(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        there = await pair.a.move(pair.b)
        await pair.check("b")
        assert there.state is MoveState.DONE
        assert list(there.phases) == [phase.value for phase in Phase]
        assert there.bytes == 64 << 20
        assert (await pair.b.move(pair.a)).state is MoveState.DONE
        await pair.check("a")
        assert [report.id for report in pair.a.moves.list()] == [there.id]
        assert (pair.a.attacher.announced, pair.b.attacher.announced) == (1, 1)


async def test_a_paused_domain_stays_paused(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await pair.a.driver.pause(UUID)
        assert (await pair.a.move(pair.b)).state is MoveState.DONE
        await pair.settled()
        assert pair.world.running(UUID) == ()
        await pair.b.driver.unpause(UUID)
        await pair.check("b")


async def test_every_blocker_is_told_at_once(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.b.attacher.reasons = (
            Blocker(kind=Obstacle.NETWORK, reason="there is no bridge xenbr7", hint="make it"),
            Blocker(kind=Obstacle.VOLUME, reason="there is no volume v9", hint="make it"),
        )
        report = await pair.a.move(pair.b)
        assert report.state is MoveState.FAILED
        assert "xenbr7" in report.reason
        assert "v9" in report.reason
        await pair.check("a")


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("step", ["prepare", "receive", "send", "copy"])
async def test_a_failed_step_is_undone(tmp_path: Path, certificates: Path, side: str, step: str) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        hit = (step in ("prepare", "receive")) == (side == "b")
        getattr(pair, side).driver.fail(step, Failed("a fault", hint="mend it"))
        report = await pair.a.move(pair.b)
        if hit:
            assert report.state is MoveState.FAILED
            assert "a fault" in report.reason
        await pair.check("a" if hit else "b")
        if hit:  # a retry right after works
            assert (await pair.a.move(pair.b)).state is MoveState.DONE
            await pair.check("b")


@pytest.mark.parametrize("done", [True, False])
async def test_commit_without_an_answer_is_settled_by_the_store(tmp_path: Path, certificates: Path, done: bool) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, "COMMIT")
        moving = asyncio.create_task(pair.a.move(pair.b))
        await entered(pair, Phase.COMMIT)
        pair.a.store.lose_next_answer(done=done)
        brake.unlink()
        report = await moving
        assert report.state is (MoveState.DONE if done else MoveState.FAILED)
        await pair.check("b" if done else "a")


async def test_store_away_at_commit_undoes(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, "COMMIT")
        moving = asyncio.create_task(pair.a.move(pair.b))
        await entered(pair, Phase.COMMIT)
        pair.a.store.set_available(False)
        brake.unlink()
        assert (await moving).state is MoveState.FAILED
        assert pair.world.running(UUID) == ("a",)
        pair.a.store.set_available(True)
        await pair.check("a")


async def test_a_bug_in_one_move_ends_no_other(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.driver.fail("send", RuntimeError("nobody thought of this"))
        report = await pair.a.move(pair.b)
        assert (report.state, report.reason) == (MoveState.FAILED, "RuntimeError: nobody thought of this")
        await pair.check("a")
        assert (await pair.a.move(pair.b)).state is MoveState.DONE
        await pair.check("b")


async def test_a_listener_that_is_slow_hears_the_end(tmp_path: Path, certificates: Path) -> None:
    """What it has not heard is bounded."""
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, "COPY")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        await entered(pair, Phase.COPY)
        following = pair.a.moves.follow(move)
        await anext(following)
        waiting = asyncio.create_task(anext(following))  # its queue is there from here on
        await asyncio.sleep(0)
        for number in range(200):
            pair.a.moves._running[move].publish(MoveProgress(phase=Phase.COPY, note=str(number)))
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await waiting
        async with asyncio.timeout(10):
            heard = [progress async for progress in following]
        assert 0 < len(heard) < 100
        await pair.check("b")


class Stuck(FakeDriver):
    """Lets a domain run on at the second try, once `free` is set."""

    def __init__(self, name: str, world: World, clock: Clock) -> None:
        super().__init__(name, world, clock)
        self.tried, self.free = 0, asyncio.Event()

    async def resume(self, uuid: str) -> None:
        """As Driver.resume."""
        self.tried += 1
        if self.tried == 1:
            raise Failed("not now")
        await self.free.wait()
        await super().resume(uuid)


async def test_a_domain_that_does_not_run_on_yet_stays_in_the_journal(tmp_path: Path, certificates: Path) -> None:
    """A daemon that is killed meanwhile would otherwise leave it paused for good."""
    async with two_nodes(tmp_path, certificates, make=Stuck) as pair:
        brake = held(pair, "LOADED")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        await entered(pair, Phase.LOADED)
        await pair.a.moves.cancel(move)
        brake.unlink()
        assert [line.move for line in pair.a.context.journal.open()] == [move]
        pair.a.driver.free.set()
        await pair.check("a")


async def test_a_domain_that_cannot_be_let_run_on_is_tried_again(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, "LOADED")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        await entered(pair, Phase.LOADED)
        for _ in range(2):
            pair.a.driver.fail("resume", Failed("not now"))
        report = await pair.a.moves.cancel(move)
        brake.unlink()
        assert report.state in {MoveState.CANCELLED, MoveState.FAILED}
        await pair.check("a")


@pytest.mark.parametrize("phase", ["BEGIN", "PREPARE", "COPY", "LOADED"])
async def test_cancel_before_commit(tmp_path: Path, certificates: Path, phase: str) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, phase)
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        await entered(pair, Phase(phase))
        report = await pair.a.moves.cancel(move)
        brake.unlink()
        assert report.state is MoveState.CANCELLED
        assert report.runs_on == "a"
        await pair.check("a")


@pytest.mark.parametrize("phase", ["COPY", "LOADED"])
async def test_nothing_is_left_there_when_a_cancelled_move_is_told(
    tmp_path: Path, certificates: Path, phase: str
) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, phase)
        pair.b.attacher.tidying = 0.3
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        await entered(pair, Phase(phase))
        assert (await pair.a.moves.cancel(move)).state is MoveState.CANCELLED
        assert await pair.b.driver.list() == ()
        assert pair.b.attacher.attached == 0
        assert not pair.b.context.journal.open()
        brake.unlink()
        assert (await pair.a.move(pair.b)).state is MoveState.DONE


async def test_a_target_that_never_tidies_up_is_not_waited_for(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, "LOADED")
        pair.b.attacher.tidying = 60
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        await entered(pair, Phase.LOADED)
        async with asyncio.timeout(30):
            assert (await pair.a.moves.cancel(move)).state is MoveState.CANCELLED
        brake.unlink()
        assert pair.world.running(UUID) == ("a",)


async def test_cancel_after_commit_is_refused(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, "FINISH")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        await entered(pair, Phase.FINISH)
        with pytest.raises(Refused, match="past COMMIT"):
            await pair.a.moves.cancel(move)
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")


async def test_the_timeout_ends_a_slow_copy(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        report = await pair.a.move(pair.b, MoveSettings(bandwidth=1 << 20, timeout=0.2))
        assert report.state is MoveState.FAILED
        assert "0.2 s" in report.reason
        await pair.check("a")


async def test_a_second_move_is_refused(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        release = pair.a.driver.hang("copy")
        reading = await pair.a.reading()
        move = pair.a.moves.start(reading, pair.b.node, MoveSettings())
        await entered(pair, Phase.COPY)
        with pytest.raises(Refused, match="is being moved"):
            pair.a.moves.start(reading, pair.b.node, MoveSettings())
        release()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")


async def test_a_half_domain_that_dies_before_commit_is_not_handed_over(tmp_path: Path, certificates: Path) -> None:
    """Its memory is whole at the source: there it runs on, though the target had loaded everything."""
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, "COMMIT")
        moving = asyncio.create_task(pair.a.move(pair.b))
        await entered(pair, Phase.COMMIT)
        pair.b.driver.crash_process(UUID)
        async with asyncio.timeout(20):
            while pair.b.context.journal.open():
                await asyncio.sleep(0.005)
        brake.unlink()
        report = await moving
        assert report.state is MoveState.FAILED
        assert "ended on b before it was handed over" in report.reason
        await pair.check("a")


async def test_a_domain_that_ends_while_it_is_moved_is_said_to_run_nowhere(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, "COPY")
        moving = asyncio.create_task(pair.a.move(pair.b))
        await entered(pair, Phase.COPY)
        pair.a.driver.crash_process(UUID)
        brake.unlink()
        report = await moving
        assert report.state is MoveState.FAILED
        assert report.reason == "busybox ended on a while it was moved"
        assert report.runs_on == ""
        await pair.settled()
        assert pair.world.running(UUID) == ()


async def test_the_target_that_fails_to_finish_does_so_later(tmp_path: Path, certificates: Path) -> None:
    """The owner is the target: nothing may bring the source's copy back to life; the target tries again."""
    async with two_nodes(tmp_path, certificates) as pair:
        pair.b.driver.fail("finish", Failed("not now"))
        report = await pair.a.move(pair.b)
        assert report.state is MoveState.DONE
        await pair.check("b")


async def test_the_source_that_fails_to_destroy_its_copy_does_so_later(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.driver.fail("destroy", Failed("not now"))
        report = await pair.a.move(pair.b)
        assert report.state is MoveState.DONE
        assert "not yet removed" in report.reason
        await pair.check("b")


async def test_the_journal_of_a_dead_source_is_settled(tmp_path: Path, certificates: Path) -> None:
    """A daemon that died in COPY left a line and a paused copy: the next one lets the domain run on."""
    async with two_nodes(tmp_path, certificates) as pair:
        owner_revision = (await pair.a.store.get("owner/busybox")).revision  # type: ignore[union-attr]
        line = dead_line(Side.SOURCE, Phase.COPY, owner_revision=owner_revision)
        pair.a.context.journal.write(line)
        pair.a.settler.recall()
        assert pair.a.settler.busy("busybox")
        await pair.check("a")


@pytest.mark.parametrize("phase", [Phase.COPY, Phase.COMMIT])
async def test_a_source_whose_journal_cannot_be_read_obeys_the_owner_key(
    tmp_path: Path, certificates: Path, phase: Phase
) -> None:
    """Its daemon is killed in `phase`, and the file is full of NUL bytes. The domain is not known from it: the move's
    promise is taken away, and the domain runs on where the key says."""
    async with two_nodes(tmp_path, certificates) as pair:
        promise = await owners.reserve(pair.a.store, "busybox", "m1", source="a", target="b")

        folder = tmp_path / "a" / "journal"
        folder.mkdir(parents=True)
        (folder / "m1.source.json").write_bytes(bytes(300))
        if phase is Phase.COMMIT:
            owner = await owners.read(pair.a.store, "busybox")
            assert owner is not None
            await owners.commit(pair.a.store, owner, promise)
        pair.a.settler.recall()
        await pair.a.settler.recall_illegible()
        assert pair.a.settler.busy("busybox")
        async with asyncio.timeout(30):
            while pair.a.settler.busy("busybox"):
                await asyncio.sleep(0.01)
        assert await owners.reservation(pair.a.store, "busybox") is None
        assert await pair.owner() == ("a" if phase is Phase.COPY else "b")
        if phase is Phase.COPY:
            await pair.check("a")


async def test_a_half_domain_whose_journal_cannot_be_read_obeys_the_owner_key(
    tmp_path: Path, certificates: Path
) -> None:
    """The target was killed between COMMIT and FINISH: the key names it, so it lets the domain run."""
    async with two_nodes(tmp_path, certificates) as pair:
        brake = held(pair, Phase.FINISH.value)
        moving = asyncio.create_task(pair.a.move(pair.b))
        async with asyncio.timeout(30):
            while await pair.owner() != "b":
                await asyncio.sleep(0.002)
        (other,) = (tmp_path / "b" / "journal").glob("*.target.json")
        other.write_bytes(bytes(300))
        settler = Settler(pair.b.context)  # as the next life of the daemon has it
        settler.recall()
        await settler.recall_illegible()
        running = asyncio.create_task(settler.run())
        try:
            async with asyncio.timeout(30):
                while pair.world.running(UUID) != ("b",):
                    await asyncio.sleep(0.01)
        finally:
            running.cancel()
            brake.unlink(missing_ok=True)
            await moving
        assert pair.world.twice == []


NO_SHRINKING = [HPhase.explicit, HPhase.generate]  # a story that hangs costs half a minute each time
FAULTS = st.sampled_from(
    [None, ("a", "send"), ("a", "copy"), ("b", "prepare"), ("b", "receive"), ("b", "finish"), ("a", "destroy")]
)
LOST = st.sampled_from([None, ("a", True), ("a", False), ("b", True), ("b", False)])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), phases=NO_SHRINKING)
@given(fault=FAULTS, lost=LOST, at=st.sampled_from(list(Phase)[1:6]), cancel=st.booleans())
def test_whatever_happens_it_runs_once_and_on_its_owner(
    tmp_path_factory: pytest.TempPathFactory, certificates: Path, fault: tuple[str, str] | None,
    lost: tuple[str, bool] | None, at: Phase, cancel: bool,
) -> None:  # fmt: skip
    async def story() -> None:
        async with two_nodes(tmp_path_factory.mktemp("story"), certificates) as pair:
            if fault:
                getattr(pair, fault[0]).driver.fail(fault[1], Failed("a fault"))
            brake = held(pair, at.value)
            moving = asyncio.create_task(pair.a.move(pair.b))
            while not moving.done() and all(line.phase is not at for line in pair.a.context.journal.open()):
                await asyncio.sleep(0.002)
            if lost:
                getattr(pair, lost[0]).store.lose_next_answer(done=lost[1])
            if cancel:
                for report in pair.a.moves.list():
                    if report.state is MoveState.RUNNING:
                        try:
                            await pair.a.moves.cancel(report.id)
                        except (Refused, OutcomeUnknown):
                            pass
            brake.unlink()
            await moving
            await pair.settled()
            owner = await pair.owner()
            assert owner in ("a", "b")
            await pair.check(owner)

    asyncio.run(story())
