"""A guest that ends by itself while it is moved: who answers for it, when, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cared_nodes import Cared, cared_nodes
from two_nodes import SPEC, UUID, Pair, make_certificates, two_nodes

from veery.cluster import owner as owners
from veery.errors import Failed
from veery.host import tasks
from veery.migrate.settle import Settler
from veery.model.domain import DomainEnd, OnEvent
from veery.model.move import MoveSettings, MoveState, Phase

BEFORE_COMMIT = ("BEGIN", "PREPARE", "COPY", "LOADED")
SLOW = MoveSettings(bandwidth=32 << 20)
RESTART = replace(SPEC, on_crash=OnEvent.RESTART, on_poweroff=OnEvent.RESTART, on_watchdog=OnEvent.RESTART)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def becomes(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await look():
            await asyncio.sleep(0.02)


async def held_in(pair: Pair, phase: str, settings: MoveSettings = SLOW) -> tuple[str, Path]:
    """A move that waits in `phase` at its source, and what holds it there."""
    pair.a.hold.mkdir(parents=True, exist_ok=True)
    brake = pair.a.hold / phase
    brake.touch()
    move = pair.a.moves.start(await pair.a.reading(), pair.b.node, settings)
    async with asyncio.timeout(20):
        while all(line.phase.value != phase for line in pair.a.context.journal.open()):
            await asyncio.sleep(0.005)
    return move, brake


async def gone(cared: Cared) -> bool:
    """Neither node has it, and its name is free."""
    here = await cared.a.list() + await cared.b.list()
    return not here and await cared.pair.owner() == ""


@pytest.mark.parametrize("end", [DomainEnd.POWEROFF, DomainEnd.CRASH, DomainEnd.WATCHDOG])
@pytest.mark.parametrize("phase", BEFORE_COMMIT)
async def test_an_end_before_commit_is_answered_at_the_source(
    tmp_path: Path, certificates: Path, phase: str, end: DomainEnd
) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, phase)
        pair.a.driver.end(UUID, end)
        brake.unlink()
        report = await pair.a.moves.outcome(move)
        assert report.state is MoveState.FAILED
        assert "while it was moved" in report.reason
        assert report.runs_on == ""
        await becomes(lambda: gone(cared))
        await pair.settled()
        assert pair.world.twice == []
        assert await owners.reservation(pair.a.store, "busybox") is None


async def test_a_copy_ends_soon_after_its_guest(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "COPY", MoveSettings(bandwidth=1 << 20))  # a minute's copy
        brake.unlink()
        pair.a.driver.hang("copy")
        await asyncio.sleep(0.1)
        pair.a.driver.end(UUID, DomainEnd.POWEROFF)
        async with asyncio.timeout(20):
            report = await pair.a.moves.outcome(move)
        assert report.reason == "busybox shut down on a while it was moved"
        await becomes(lambda: gone(cared))


@pytest.mark.parametrize("policy", ["balanced", "must-finish", "post-copy"])
async def test_a_crash_is_restarted_once(tmp_path: Path, certificates: Path, policy: str) -> None:
    async with cared_nodes(tmp_path, certificates, RESTART) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "LOADED", MoveSettings(policy=policy))
        pair.a.driver.end(UUID, DomainEnd.CRASH)
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.FAILED

        async def runs() -> bool:
            return pair.world.running(UUID) == ("a",)

        await becomes(runs)
        await pair.settled()
        await asyncio.sleep(1.2)  # a second answer would come with the caretaker's next try
        assert (await pair.a.driver.log()).count("started") == 2  # by the fixture, and once more
        await pair.check("a")


@pytest.mark.parametrize("end", [DomainEnd.POWEROFF, DomainEnd.CRASH, DomainEnd.WATCHDOG])
async def test_an_end_that_the_source_did_not_see_is_answered_at_the_target(
    tmp_path: Path, certificates: Path, end: DomainEnd
) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "COPY")
        pair.a.driver.end(UUID, end, seen=False)
        brake.unlink()
        report = await pair.a.moves.outcome(move)
        assert (report.state, report.runs_on) == (MoveState.DONE, "b")
        await becomes(lambda: gone(cared))
        await pair.settled()


async def test_an_end_that_the_source_did_not_see_restarts_at_the_target(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates, RESTART) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "COPY")
        pair.a.driver.end(UUID, DomainEnd.CRASH, seen=False)
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE

        async def runs() -> bool:
            return pair.world.running(UUID) == ("b",)

        await becomes(runs)
        await pair.check("b")
        assert (await pair.b.driver.log()).count("started") == 1


@pytest.mark.parametrize("policy", ["balanced", "post-copy"])
@pytest.mark.parametrize("phase", ["PREPARE", "COPY", "CONFIRM"])
async def test_a_reboot_during_a_move_is_a_new_start_there_too(
    tmp_path: Path, certificates: Path, phase: str, policy: str
) -> None:
    """What the domain was packed with was written down before the guest rebooted."""
    async with cared_nodes(tmp_path, certificates, replace(SPEC, on_reboot=OnEvent.RESTART)) as cared:
        pair = cared.pair
        before = (await pair.a.reading()).started
        move, brake = await held_in(pair, phase, replace(SLOW, policy=policy))
        await asyncio.sleep(0.01)  # another time of the clock
        (pair.b if phase == "CONFIRM" else pair.a).driver.end(UUID, DomainEnd.REBOOT)
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")
        first = (await pair.b.reading()).started
        assert first > before
        assert (await pair.b.move(pair.a, MoveSettings())).state is MoveState.DONE
        await pair.check("a")
        assert (await pair.a.reading()).started == first, "a move is no boot"


@pytest.mark.parametrize("policy", ["balanced", "post-copy"])
@pytest.mark.parametrize("journal", ["readable", "unreadable"])
async def test_a_reboot_is_known_after_the_target_was_killed(
    tmp_path: Path, certificates: Path, journal: str, policy: str
) -> None:
    """The target's daemon is killed after COMMIT. The next one never hears Finish; it reads the owner key."""
    async with two_nodes(tmp_path, certificates) as pair:
        before = (await pair.a.reading()).started
        move, brake = await held_in(pair, "COPY", replace(SLOW, policy=policy))
        await asyncio.sleep(0.01)  # another time of the clock
        pair.a.driver.end(UUID, DomainEnd.REBOOT)
        first = (await pair.a.reading()).started
        assert first > before
        (pair.a.hold / "FINISH").touch()
        brake.unlink()
        await becomes(lambda: _owned_by(pair, "b"))
        if journal == "unreadable":
            (line,) = (tmp_path / "b" / "journal").glob("*.target.json")
            line.write_bytes(bytes(300))
        settler = Settler(pair.b.context)  # that of the next daemon
        settler.recall()
        await settler.recall_illegible()
        settling = asyncio.create_task(settler.run())
        try:
            await becomes(lambda: _runs_on(pair, "b"))
            assert (await pair.b.reading()).started == first
        finally:
            await tasks.stop(settling)
            (pair.a.hold / "FINISH").unlink()
            await pair.a.moves.outcome(move)
        assert pair.world.twice == []


async def test_a_reboot_is_known_to_a_target_that_gives_up_after_commit(tmp_path: Path, certificates: Path) -> None:
    """It has failed to act on Finish, as it does where the source is killed. The owner key tells it the time."""
    async with two_nodes(tmp_path, certificates) as pair:
        move, brake = await held_in(pair, "COPY")
        await asyncio.sleep(0.01)  # another time of the clock
        pair.a.driver.end(UUID, DomainEnd.REBOOT)
        first = (await pair.a.reading()).started
        pair.b.driver.fail("finish", Failed("not now"))
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")
        assert (await pair.b.reading()).started == first


async def _owned_by(pair: Pair, node: str) -> bool:
    return await pair.owner() == node


async def _runs_on(pair: Pair, node: str) -> bool:
    return pair.world.running(UUID) == (node,)


@pytest.mark.parametrize("phase", ["FINISH", "CONFIRM"])
async def test_an_end_after_commit_is_answered_at_the_target(tmp_path: Path, certificates: Path, phase: str) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, phase)
        if phase == "FINISH":  # it runs nowhere yet
            brake.unlink()
            await pair.a.moves.outcome(move)
        pair.b.driver.end(UUID, DomainEnd.POWEROFF)
        brake.unlink(missing_ok=True)
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await becomes(lambda: gone(cared))
        await pair.settled()


@pytest.mark.parametrize("phase", ["BEGIN", "PREPARE", "COPY", "CONFIRM"])
async def test_a_reboot_in_place_is_no_end(tmp_path: Path, certificates: Path, phase: str) -> None:
    """The same run goes on, the move goes on, and no node starts the domain."""
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, phase)
        (pair.b if phase == "CONFIRM" else pair.a).driver.end(UUID, DomainEnd.REBOOT)
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")
        logs = await pair.a.driver.log() + await pair.b.driver.log()
        assert logs.count("started") == 1  # by the fixture


FULL = "disk-xvda: No space left on device"


@pytest.mark.parametrize("policy", ["balanced", "must-finish", "post-copy"])
@pytest.mark.parametrize("phase", ["BEGIN", "PREPARE", "COPY"])
async def test_a_disk_error_during_a_move_does_not_pause_it_there(
    tmp_path: Path, certificates: Path, phase: str, policy: str
) -> None:
    """It stands at the source; at the target it goes on, where it tries the disk again. Nobody answers an end."""
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, phase, replace(SLOW, policy=policy))
        pair.a.driver.disk_fails(UUID, FULL)
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")


@pytest.mark.parametrize("policy", ["balanced", "post-copy"])
async def test_a_domain_that_its_disk_has_stopped_goes_on_where_it_is_moved_to(
    tmp_path: Path, certificates: Path, policy: str
) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        pair.a.driver.disk_fails(UUID, FULL)
        (reading,) = await cared.a.list()
        assert (reading.state.value, reading.held) == ("paused", False)
        report = await pair.a.move(pair.b, MoveSettings(policy=policy))
        assert report.state is MoveState.DONE, report.reason
        await pair.check("b")


async def test_a_domain_that_a_user_paused_stays_paused_though_its_disk_failed(
    tmp_path: Path, certificates: Path
) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        pair.a.driver.disk_fails(UUID, FULL)
        await cared.a.pause("busybox")
        assert (await pair.a.move(pair.b, MoveSettings())).state is MoveState.DONE
        (reading,) = await cared.b.list()
        assert (reading.state.value, reading.held) == ("paused", True)


async def test_an_unpause_says_that_the_disk_has_failed_again(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        cared.pair.a.driver.disk_fails(UUID, FULL, times=2)
        with pytest.raises(Failed, match="stopped it again") as raised:
            await cared.a.unpause("busybox")
        assert FULL in raised.value.message
        assert raised.value.hint.endswith("veery --node a unpause busybox")
        await cared.a.unpause("busybox")
        await cared.pair.check("a")


async def test_a_disk_error_after_the_hand_over_leaves_it_at_the_target(tmp_path: Path, certificates: Path) -> None:
    """Post-copy: it stands there while its memory follows; let go, it runs."""
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "CONFIRM", replace(SLOW, policy="post-copy"))
        pair.b.driver.disk_fails(UUID, FULL)
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.settled()
        (reading,) = await cared.b.list()
        assert (reading.state.value, reading.reason) == ("paused", FULL)
        await cared.b.unpause("busybox")
        await pair.check("b")


async def test_a_move_that_is_undone_lets_a_domain_go_on_that_its_disk_has_stopped(
    tmp_path: Path, certificates: Path
) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "LOADED")
        pair.a.driver.disk_fails(UUID, FULL)
        await pair.a.moves.cancel(move)
        brake.unlink(missing_ok=True)
        assert (await pair.a.moves.outcome(move)).state is not MoveState.DONE
        await pair.check("a")


async def test_preserve_keeps_what_crashed(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates, replace(SPEC, on_crash=OnEvent.PRESERVE)) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "COPY")
        pair.a.driver.end(UUID, DomainEnd.CRASH)
        brake.unlink()
        await pair.a.moves.outcome(move)
        await asyncio.sleep(1.2)
        (reading,) = await cared.a.list()
        assert reading.state.value == "crashed"
        await cared.a.destroy("busybox")
        assert await gone(cared)


# ---- a move that is cancelled past COMMIT is reported as it ended


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("policy", ["balanced", "post-copy"])
async def test_cancelled_past_commit_is_reported_as_it_ended(
    tmp_path: Path, certificates: Path, times: int, policy: str
) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, Phase.FINISH.value, MoveSettings(policy=policy))
        (task,) = (task for task in asyncio.all_tasks() if task.get_name() == f"move {move}")
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0.05)
        brake.unlink()
        await asyncio.wait({task})
        report = pair.a.moves.report(move)
        assert (report.state, report.runs_on) == (MoveState.DONE, "b")
        await pair.check("b")
