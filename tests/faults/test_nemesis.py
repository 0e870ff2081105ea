"""The nemesis: faults drawn from a seed, alone and in pairs that overlap, with moves going on. All rounds run in
`make faults`, one alone with `make faults SEED=17`; without it a spread of twelve."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nemesis import DOMAINS, FULL, Kind, Order, Round, Strike, draw, may_be_fenced, may_boot, overlap, struck
from rounds import Outcome, Rounds
from stage import Stage
from strikes import Nemesis
from whole import Whole, needless, whole

from veery.lab import ledger
from veery.lab.guest import Guest
from veery.lab.ledger import Collector, Ledger
from veery.lab.services import Lab

SLICE = (3, 7, 11, 16, 19, 23, 29, 31, 38, 58, 61, 76)  # with two hypervisors: other rounds than those of FULL
THREE = ("test1", "test2", "test3")
MOVED = 120.0  # seconds for one order to move, with faults on its way
ALL = bool(os.environ.get("VEERY_ROUNDS"))  # make faults


# ---- the plan


def test_a_seed_is_one_round_and_the_next_is_another() -> None:
    assert [draw(seed, THREE) for seed in FULL] == [draw(seed, THREE) for seed in FULL]
    assert len({draw(seed, THREE).story() for seed in FULL}) == len(FULL)


def test_the_rounds_of_make_faults_have_it_all() -> None:
    rounds = [draw(seed, THREE) for seed in FULL]
    kinds = Counter(strike.kind for each in rounds for strike in each.strikes)
    assert sum(kinds.values()) >= 200
    assert set(kinds) == set(Kind) and min(kinds.values()) >= 8, kinds
    alone = {each.strikes[0].kind for each in rounds if len(each.strikes) == 1}
    assert len(alone) >= len(Kind) - 3, alone
    assert all(overlap(*each.strikes) for each in rounds if len(each.strikes) == 2)
    assert all(each.moves for each in rounds)
    assert {strike.direction for each in rounds for strike in each.strikes} == {"both", "in", "out"}


@pytest.mark.parametrize("hypervisors", [THREE, THREE[:2]])
def test_nothing_strikes_where_something_else_has_struck_it_dead(hypervisors: tuple[str, ...]) -> None:
    for seed in range(500):
        drawn = draw(seed, hypervisors)
        for one, two in itertools.combinations(drawn.strikes, 2):
            if {one.kind, two.kind} & {Kind.POWER, Kind.FREEZE}:
                assert not struck(one) & struck(two), drawn.story()
        assert all(struck(each) <= {"stor", "leader", *hypervisors} for each in drawn.strikes)


def test_the_rounds_of_make_test_have_every_kind() -> None:
    drawn = [strike.kind for seed in SLICE for strike in draw(seed, THREE[:2]).strikes]
    assert set(drawn) == set(Kind)


def test_what_a_fault_may_cost() -> None:
    def strike(kind: Kind, node: str, lasts: float) -> Strike:
        return Strike(kind=kind, node=node, at=0.0, lasts=lasts)

    cut = strike(Kind.CUT, "test1", 10.0)
    assert may_be_fenced([cut]) == {"test1"}
    assert may_be_fenced([strike(Kind.CUT, "test1", 2.0)]) == frozenset()
    for kind in (Kind.CUT_CLUSTER, Kind.CUT_STORAGE, Kind.MEMBER, Kind.QUORUM, Kind.TARGET, Kind.DISK, Kind.CLOCK):
        assert may_be_fenced([strike(kind, "test1", 14.0)]) == frozenset(), kind
    assert may_boot([strike(Kind.QEMU, "test2", 0.0)]) == {"test2"}
    assert may_be_fenced([strike(Kind.QUORUM, "test2", 9.0), cut]) == {"test1"}


# ---- the rounds, for real


@asynccontextmanager
async def _lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """One of three hypervisors for `make faults`, else the one that all tests share."""
    if not ALL:
        yield request.getfixturevalue("lab")
        return
    lab = await Lab.up(f"t{os.getpid()}n", hypervisors=len(THREE))
    try:
        yield lab
    finally:
        await lab.down()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nemesis(
    request: pytest.FixtureRequest, guest: Guest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Nemesis]:
    """Three ledgers under the policy `restart`; afterwards their disks are judged once more."""
    folder = tmp_path_factory.mktemp("nemesis")
    async with _lab(request) as lab:
        ramdisk = ledger.initramfs(guest, folder / "initramfs")
        collector = await Collector.start(lab, folder)
        made = Nemesis(Stage(lab, guest, ramdisk, folder, collector), folder)
        try:
            await made.furnish()
            for node, (name, address) in zip(itertools.cycle(made.hypervisors), DOMAINS.items(), strict=False):
                await _raise_up(made.stage, name, address, node)
            yield made
            for name in DOMAINS:
                await made.stage.tear_down(name)
        except BaseException:
            await made.mend()
            await made.stage.clear()
            raise
        finally:
            await collector.stop()
            await made.leave()


async def _raise_up(stage: Stage, name: str, address: str, node: str) -> None:
    """A ledger with room for some hours."""
    made = stage.ledgers[name] = Ledger(name, address, size=32 if ALL else 8)
    await made.make(stage.lab, stage.guest, stage.ramdisk, stage.folder, node=node, pause=0.25)
    await stage.post(f"/v1/ha/{name}", {"policy": "restart"})
    await stage.collector.next(name, deadline=90)


@pytest.fixture(scope="module")
def rounds() -> Rounds:
    """Where the outcomes go, and those of an earlier run that this one goes on with."""
    path = os.environ.get("VEERY_ROUNDS", "")
    return Rounds(Path(path) if path else None)


def _seeds() -> list[int]:
    if seed := os.environ.get("VEERY_SEED"):
        return [int(seed)]
    return list(FULL if ALL else SLICE)


@pytest.mark.timeout(600)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("seed", _seeds())
async def test_round(nemesis: Nemesis, rounds: Rounds, seed: int) -> None:
    if rounds.good(seed) and not os.environ.get("VEERY_SEED"):
        pytest.skip("good in the run that this one goes on with")
    drawn = draw(seed, nemesis.hypervisors)
    nemesis.story, nemesis.begun = [drawn.story()], time.monotonic()
    try:
        outcome = await _play(nemesis, drawn)
    except BaseException as error:
        told = [error, *getattr(error, "exceptions", ())]
        why = "; ".join(f"{type(each).__name__}: {each}" for each in told)[:600]
        rounds.add(seed, Outcome(struck=tuple(each.kind for each in drawn.strikes), bad=why))
        print("\n".join([*nemesis.story, f"again, alone: make faults SEED={seed}"]))
        await nemesis.mend()
        raise
    rounds.add(seed, outcome)


async def _play(nemesis: Nemesis, drawn: Round) -> Outcome:
    """One round: all whole, strikes and moves, all mended, all whole again, and nothing lost."""
    stage = nemesis.stage
    before = await whole(stage, nemesis.hypervisors)
    heard = {name: len(stage.collector.heard(name)) for name in DOMAINS}
    fences = await _fences(stage)
    nemesis.begun = time.monotonic()
    touched = {name: {node} for name, node in before.where.items()}
    orders = [asyncio.create_task(_move(nemesis, order, touched)) for order in drawn.moves]
    try:
        strikes = await nemesis.strike(drawn.strikes)
        nemesis.tell("all is mended")
        await nemesis.mend()
        moved = sum(await asyncio.gather(*orders))
    finally:
        for order in orders:
            order.cancel()
        await asyncio.gather(*orders, return_exceptions=True)
    after = await whole(stage, nemesis.hypervisors)
    nemesis.tell("all is whole")
    for name, node in after.where.items():
        touched[name].add(node)
    fenced = {row["subject"].removeprefix("node/") for row in await _fences(stage) if row not in fences}
    wrong = [f"{node} was fenced" for node in sorted(fenced - may_be_fenced(strikes))]
    wrong += needless(before, after, touched=touched, bootable=may_boot(strikes))
    for name in DOMAINS:
        wrong += [f"{name}: {each}" for each in await stage.judged(name)]
        await stage.post(f"/v1/ha/{name}", {"policy": "restart"})  # its tries are forgotten: the next round is another
    assert not wrong, wrong
    return Outcome(
        struck=tuple(each.kind for each in strikes),
        fenced=tuple(sorted(fenced)),
        moves=moved,
        booted=sum(after.boots[name] != before.boots[name] for name in DOMAINS),
        silent=round(max(_silence(stage, name, heard[name]) for name in DOMAINS), 1),
        seconds=round(time.monotonic() - nemesis.begun, 1),
    )


async def _move(nemesis: Nemesis, order: Order, touched: dict[str, set[str]]) -> bool:
    """Somebody moves a domain, whatever goes on; whether it went well."""
    await asyncio.sleep(order.at)
    (source,) = touched[order.domain]
    target = next(node for node in (order.to, *nemesis.hypervisors) if node != source)
    touched[order.domain].add(target)
    told = await nemesis.lab.veery(source, "migrate", "--live", order.domain, target, deadline=MOVED, check=False)
    said = (told.err.strip() or "it is there").splitlines()
    nemesis.tell(f"move {order.domain} from {source} to {target}: {said[-1] if told.code == 0 else said[0]}")
    return told.code == 0


async def _fences(stage: Stage) -> list[dict[str, Any]]:
    """Every fence that was begun, as far back as is told."""
    return [row for row in await stage.events(0.0) if row["what"] == "fence"]


def _silence(stage: Stage, name: str, after: int) -> float:
    """The longest time between two acknowledgements since the one numbered `after`."""
    times = [record.at for record in stage.collector.heard(name)[max(0, after - 1) :]]
    return max((later - sooner for sooner, later in itertools.pairwise(times)), default=0.0)


def test_needless_restarts_are_told() -> None:
    before = Whole({"one": "test1", "two": "test2"}, {"one": "a", "two": "b"})
    after = Whole({"one": "test2", "two": "test2"}, {"one": "c", "two": "d"})
    touched = {"one": {"test1", "test2"}, "two": {"test2"}}
    assert needless(before, after, touched=touched, bootable=["test1"]) == [
        "two was booted anew on test2; it had been on test2"
    ]
    assert needless(before, before, touched=touched, bootable=[]) == []
