"""A guest that ends by itself while it is moved, under HA: the brain is told what it is told without a move, and
`destroy` works meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from cared_nodes import Cared, cared_nodes
from test_moving_guest import becomes, gone, held_in
from two_nodes import SPEC, UUID, make_certificates

from veery.cluster.keys import POLICIES
from veery.errors import Refused
from veery.model.domain import DomainEnd, OnEvent
from veery.model.ha import HaRecord, Policy
from veery.model.move import Phase

AT_SOURCE = (Phase.BEGIN, Phase.PREPARE, Phase.COPY, Phase.LOADED)
KEPT = replace(SPEC, on_crash=OnEvent.RESTART)  # the brain restarts it, not the node
DESTROYED_S = 10.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def kept(cared: Cared) -> None:
    """Put the domain under the policy restart."""
    await cared.pair.a.store.commit([], [POLICIES.put("busybox", HaRecord(policy=Policy.RESTART))])


async def wanted(cared: Cared) -> bool:
    """Whether the brain is to start it again."""
    record = await POLICIES.get(cared.pair.a.store, "busybox")
    return record is not None and record.wanted


async def ends_in(cared: Cared, phase: str | None, end: DomainEnd) -> None:
    """The guest ends in `phase` of a move, or without a move. Return once the move has ended."""
    pair = cared.pair
    if phase is None:
        pair.a.driver.end(UUID, end)
        return
    move, brake = await held_in(pair, phase)
    if phase == Phase.FINISH:  # it runs nowhere yet
        brake.unlink()
        await pair.a.moves.outcome(move)
    (pair.a if phase in AT_SOURCE else pair.b).driver.end(UUID, end)
    brake.unlink(missing_ok=True)
    await pair.a.moves.outcome(move)


@pytest.mark.parametrize("end", [DomainEnd.POWEROFF, DomainEnd.CRASH, DomainEnd.WATCHDOG])
@pytest.mark.parametrize("phase", [None, *AT_SOURCE, Phase.FINISH, Phase.CONFIRM])
async def test_the_brain_is_told_as_without_a_move(
    tmp_path: Path, certificates: Path, phase: str | None, end: DomainEnd
) -> None:
    """What crashed is given back once and stays wanted: the brain starts it, and counts that, once. What powered
    off is not wanted any more. The node itself starts nothing."""
    async with cared_nodes(tmp_path, certificates, KEPT) as cared:
        await kept(cared)
        await ends_in(cared, phase, end)
        await becomes(lambda: gone(cared))
        await cared.pair.settled()
        assert await wanted(cared) is (end is not DomainEnd.POWEROFF)
        logs = await cared.pair.a.driver.log() + await cared.pair.b.driver.log()
        assert logs.count("started") == 1  # by the fixture
        assert cared.pair.world.twice == []


@pytest.mark.parametrize("end", [DomainEnd.POWEROFF, DomainEnd.CRASH])
@pytest.mark.parametrize("phase", [*AT_SOURCE, Phase.CONFIRM])
async def test_destroy_works_while_its_end_is_answered(
    tmp_path: Path, certificates: Path, phase: str, end: DomainEnd
) -> None:
    async with cared_nodes(
        tmp_path, certificates, replace(SPEC, on_poweroff=OnEvent.PRESERVE, on_crash=OnEvent.PRESERVE)
    ) as cared:
        pair = cared.pair
        await kept(cared)
        _, brake = await held_in(pair, phase)
        side, domains = (pair.a, cared.a) if phase in AT_SOURCE else (pair.b, cared.b)
        side.driver.end(UUID, end)
        async with asyncio.timeout(DESTROYED_S):
            await domains.destroy("busybox")
        brake.unlink()
        await becomes(lambda: gone(cared))
        await pair.settled()
        assert not await wanted(cared)
        with pytest.raises(Refused):
            await domains.destroy("busybox")
