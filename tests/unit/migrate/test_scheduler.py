"""The row of moves: how many at once, and who switches over next. And whole moves side by side, on fake drivers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from two_nodes import SPEC, UUID, Pair, make_certificates, two_nodes

from veery.cluster import owner as owners
from veery.config.settings import MoveLimits
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.host.tasks import stop
from veery.migrate import scheduler
from veery.migrate.scheduler import CopyScheduler, Places, Stage, choose
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainSpec, DomainState
from veery.model.move import MoveReport, MoveSettings, MoveState, Tuning
from veery.model.volume import Attachments
from veery.node.evacuation import spread

MIB = 1 << 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def test_turns_are_given_one_at_a_time_in_order() -> None:
    row = CopyScheduler(RealClock(), 3)
    first, second, third = (row.join(name) for name in "abc")
    queued = row.join("queued")
    for each in (first, second, third):
        await each.prepare()
        await each.copy()
    assert not first.alone
    second.ready()
    assert row.holder is None  # the others still copy, and would lengthen its gap
    first.ready()
    third.ready()
    assert second.mine
    second.close()
    assert first.mine
    first.close()
    first.close()
    assert third.mine
    assert third.alone
    third.close()
    assert row.members == [queued]
    assert row.holder is None


def waits(work: asyncio.Task[None]) -> bool:
    return not work.done()


async def turned(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_one_copies_and_one_more_makes_ready() -> None:
    row = CopyScheduler(RealClock(), 1)
    first, second, third = (row.join(name) for name in "abc")
    await first.prepare()
    preparing = [asyncio.create_task(each.prepare()) for each in (third, second)]
    await turned()
    assert all(map(waits, preparing))
    await first.copy()
    await turned()
    assert all(map(waits, preparing))  # a promise of their targets could grow old
    first.near()
    await preparing[1]  # first come, first served
    copying = asyncio.create_task(second.copy())
    await turned()
    assert waits(preparing[0])
    assert waits(copying)
    first.close()
    await copying
    second.near()
    await preparing[0]
    assert second.alone


async def test_one_that_does_not_get_on_does_not_keep_the_others() -> None:
    row = CopyScheduler(RealClock(), 1)
    first, second = row.join("a"), row.join("b")
    for each in (first, second):
        if each is second:
            first.linger()
        await each.prepare()
        await each.copy()
        if each is first:
            each.take()
    assert not second.alone
    assert not first.mine
    second.ready()
    assert second.mine


async def test_one_whose_target_is_full_does_not_keep_the_others() -> None:
    row = CopyScheduler(RealClock(), 1)
    first, second = row.join("a"), row.join("b")
    await first.prepare()
    waiting = asyncio.create_task(second.prepare())
    await turned()
    assert waits(waiting)
    first.aside()
    await waiting
    await second.copy()


async def test_who_waits_for_a_place_may_leave() -> None:
    row = CopyScheduler(RealClock(), 1)
    first, second, third = (row.join(name) for name in "abc")
    await first.prepare()
    left, waiting = (asyncio.create_task(each.prepare()) for each in (second, third))
    await turned()
    left.cancel()
    second.close()
    first.close()
    await waiting
    assert third.stage is Stage.PREPARING


async def test_who_waits_long_enough_waits_no_more_for_the_others() -> None:
    row = CopyScheduler(RealClock(), 2)
    ready, slow = row.join("ready"), row.join("slow")
    ready.ready_since = 10.0
    assert choose(row.members, 10.0 + scheduler.PATIENCE_S - 0.1) is None
    assert choose(row.members, 10.0 + scheduler.PATIENCE_S) is ready
    slow.close()
    assert choose(row.members, 10.1) is ready


async def test_places_are_limited_by_node_and_by_link() -> None:
    places = Places(out=3, link=2)
    for target in ("b", "b", "c"):
        await places.take(target)
    more = {target: asyncio.create_task(places.take(target)) for target in ("b", "d")}
    left = asyncio.create_task(places.take("b"))
    await asyncio.sleep(0)
    left.cancel()
    places.leave("c")
    await more["d"]  # who waits for the busy link does not stand in its way
    assert not more["b"].done()
    places.leave("b")
    await more["b"]
    for target in ("b", "b", "d"):
        places.leave(target)
    assert places.free("b")


def test_domains_are_spread_by_memory() -> None:
    chosen = spread([("small", 100), ("big", 900), ("middle", 500)], {"b": 1000, "c": 800})
    assert chosen == {"big": "b", "middle": "c", "small": "c"}


async def with_more(pair: Pair, count: int) -> list[DomainSpec]:
    """More domains on `a`, besides the one that is there."""
    specs = [replace(SPEC, name=f"more{index}", uuid=UUID[:-2] + f"{index:02}") for index in range(count)]
    for spec in specs:
        await owners.claim(pair.a.store, spec.name, "a", "boot", DomainRecord(spec=spec))
        pair.a.attacher.attached += 1
        await pair.a.driver.start(spec, Attachments())
    return [SPEC, *specs]


async def all_moved(pair: Pair, settings: MoveSettings) -> list[MoveReport]:
    moves = [pair.a.moves.start(reading, pair.b.node, settings) for reading in await pair.a.driver.list()]
    return [await pair.a.moves.outcome(move) for move in moves]


async def test_many_at_once_switch_over_one_after_the_other(
    tmp_path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.moves._turns.copies = 5
        names = {spec.uuid: spec.name for spec in await with_more(pair, 4)}
        reports = await all_moved(pair, MoveSettings(bandwidth=512 * MIB))
        assert [report.state for report in reports] == [MoveState.DONE] * 5
        assert pair.world.twice == []
        full = pair.a.moves.report(reports[0].id)
        assert full.samples
        assert all(not report.samples for report in pair.a.moves.list())
    words = [
        dict(word.split("=", 1) for word in record.getMessage().split() if "=" in word) for record in caplog.records
    ]
    steps = [
        names[said["uuid"]] if record.getMessage().endswith("switches over") else f"{said['domain']} runs there"
        for record, said in zip(caplog.records, words, strict=True)
        if record.getMessage().endswith("switches over") or said.get("phase") == "CONFIRM"
    ]
    assert len(steps) == 10
    for stopped, runs in zip(steps[::2], steps[1::2], strict=True):
        assert runs == f"{stopped} runs there", steps  # nobody else stood still meanwhile


async def test_a_driver_that_cannot_hold_a_copy_is_not_asked_to(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.driver.holds = False
        pair.a.moves._turns.copies = 5
        await with_more(pair, 4)
        reports = await all_moved(pair, MoveSettings(bandwidth=512 * MIB))
        assert [report.state for report in reports] == [MoveState.DONE] * 5
        told = [remark.text for report in reports for remark in report.story]
        assert not any("turn" in text for text in told), told
        assert pair.a.moves._turns.holder is None


async def test_a_queue_that_shows_itself(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await with_more(pair, 2)
        pair.a.moves._places.out = 1
        release = pair.a.driver.hang("copy")
        readings = await pair.a.driver.list()
        moves = [pair.a.moves.start(reading, pair.b.node, MoveSettings()) for reading in readings]
        await asyncio.sleep(0.05)
        states = [pair.a.moves.report(move).state for move in moves]
        assert states == [MoveState.RUNNING, MoveState.QUEUED, MoveState.QUEUED]
        assert (await pair.a.moves.cancel(moves[1])).state is MoveState.CANCELLED
        release()
        ended = [(await pair.a.moves.outcome(move)).state for move in moves]
        assert ended == [MoveState.DONE, MoveState.CANCELLED, MoveState.DONE]
        assert pair.world.running(readings[1].uuid) == ("a",)


async def test_the_target_lets_in_so_many(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates, limits=MoveLimits(into=1)) as pair:
        await with_more(pair, 2)
        half: list[int] = []

        async def look() -> None:
            while True:
                readings = await pair.b.driver.list()
                half.append(sum(reading.state is DomainState.INCOMING for reading in readings))
                await asyncio.sleep(0.001)

        looking = asyncio.create_task(look())
        reports = await all_moved(pair, MoveSettings(bandwidth=512 * MIB))
        await stop(looking)
        assert [report.state for report in reports] == [MoveState.DONE] * 3
        assert max(half) <= 1


@pytest.mark.parametrize(("policy", "state"), [("gentle", "failed"), ("balanced", "done"), ("must-finish", "done")])
async def test_a_writer_under_each_policy(tmp_path: Path, certificates: Path, policy: str, state: str) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.driver.writes(UUID, 300 * MIB)
        report = await pair.a.move(pair.b, MoveSettings(policy=policy, bandwidth=128 * MIB, downtime=20))
        assert report.state == state, report.reason
        await pair.check("a" if state == "failed" else "b")
        if policy == "gentle":
            assert "no progress" in report.reason
            assert max(item.downtime for item in report.samples) == 20
        else:
            assert any("limit" in each.text for each in report.story), report.story


async def test_must_finish_keeps_its_bound(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.driver.writes(UUID, 90000 * MIB)
        settings = MoveSettings(policy="must-finish", bandwidth=64 * MIB, timeout=4.0)
        report = await pair.a.move(pair.b, settings)
        assert report.state is MoveState.DONE, report.reason
        assert any("stopped" in each.text for each in report.story)
        await pair.check("b")


async def test_a_copy_is_changed_on_its_way(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings(bandwidth=2 * MIB))
        async with asyncio.timeout(20):
            while pair.a.moves.report(move).phase != "COPY":
                await asyncio.sleep(0.01)
            while True:
                try:
                    await pair.a.moves.change(move, Tuning(bandwidth=0, downtime=80))
                    break
                except Refused:
                    await asyncio.sleep(0.01)
        with pytest.raises(Refused):
            await pair.a.moves.change("nosuch", Tuning(bandwidth=0))
        report = await pair.a.moves.cancel(move)
        assert any("bandwidth unlimited, limit 80 ms" in each.text for each in report.story)
        await pair.check("a")


async def test_an_unknown_policy_is_refused_at_once(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        with pytest.raises(Refused, match="no policy"):
            pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings(policy="hurried"))


async def test_an_order_hears_of_the_arrival_and_not_of_a_move_that_failed(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        heard: list[str] = []

        async def arrived() -> None:
            heard.append((await owners.read(pair.a.store, SPEC.name)).node)  # type: ignore[union-attr]
            raise Refused("and what it raises is only logged")

        slow, fast = MoveSettings(bandwidth=2 * MIB), MoveSettings()
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, slow, arrived=arrived)
        async with asyncio.timeout(20):
            while pair.a.moves.report(move).phase != "COPY":
                await asyncio.sleep(0.01)
        assert (await pair.a.moves.cancel(move)).state is MoveState.CANCELLED
        assert heard == []
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, fast, arrived=arrived)
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        assert heard == ["b"]
