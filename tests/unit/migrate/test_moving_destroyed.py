"""`destroy` of a domain that moves, or whose move is not settled: it works at once, unless another node owns it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cared_nodes import Cared, cared_nodes
from test_moving_guest import becomes, gone, held_in
from two_nodes import make_certificates

from veery.cluster.keys import ALIVE
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.migrate.settle import Settler
from veery.model.cluster import Presence
from veery.model.move import MoveState


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def nothing_left(cared: Cared) -> None:
    await becomes(lambda: gone(cared))
    await cared.pair.settled()
    assert cared.pair.world.twice == []


async def lives(cared: Cared, node: str) -> None:
    await cared.pair.a.store.commit([], [ALIVE.put(node, Presence(node=node, started=0.0))])


@pytest.mark.parametrize("phase", ["BEGIN", "PREPARE", "COPY", "LOADED"])
async def test_before_commit_it_cancels_the_move(tmp_path: Path, certificates: Path, phase: str) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        move, brake = await held_in(cared.pair, phase)
        await cared.a.destroy("busybox")
        brake.unlink()
        assert await cared.a.list() == ()
        assert cared.pair.a.moves.report(move).state is MoveState.CANCELLED
        await nothing_left(cared)


async def test_past_commit_the_hint_names_the_owner_and_works(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        await lives(cared, "b")
        move, brake = await held_in(cared.pair, "FINISH")
        with pytest.raises(Refused) as caught:
            await cared.a.destroy("busybox")
        assert caught.value.hint == "veery --node b destroy busybox"
        await cared.b.destroy("busybox")
        brake.unlink()
        await cared.pair.a.moves.outcome(move)
        await nothing_left(cared)


async def test_half_a_domain_belongs_to_its_source(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        await lives(cared, "a")
        _, brake = await held_in(cared.pair, "LOADED")
        with pytest.raises(Refused) as caught:
            await cared.b.destroy("busybox")
        assert caught.value.hint == "veery --node a destroy busybox"
        await cared.a.destroy("busybox")
        brake.unlink()
        await nothing_left(cared)


async def test_a_copy_whose_owner_is_dead_is_destroyed(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        _, brake = await held_in(cared.pair, "FINISH")  # and b has no lease
        await cared.a.destroy("busybox")
        assert await cared.a.list() == ()
        brake.unlink()
        await cared.pair.check("b")


async def test_what_cannot_be_let_run_on_is_destroyed(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "LOADED")
        for _ in range(100):
            pair.a.driver.fail("resume", Failed("not now"))
        await pair.a.moves.cancel(move)
        brake.unlink()
        with pytest.raises(Refused) as caught:
            await cared.a.unpause("busybox")
        assert "is being settled" in caught.value.message
        assert "veery destroy busybox" in caught.value.hint
        await cared.a.destroy("busybox")
        await nothing_left(cared)


async def test_a_hypervisor_that_does_not_answer_does_not_keep_it(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        _, brake = await held_in(cared.pair, "COPY")
        go_on = cared.pair.a.driver.hang("resume")
        async with asyncio.timeout(20):
            await cared.a.destroy("busybox")
        assert await cared.a.list() == ()
        brake.unlink()
        go_on()
        await nothing_left(cared)


async def test_with_the_store_away_the_doubt_is_told(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "COMMIT")
        pair.a.store.set_available(False)
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.FAILED
        with pytest.raises(OutcomeUnknown):
            await cared.a.destroy("busybox")
        assert await cared.a.list() == ()
        pair.a.store.set_available(True)
        await nothing_left(cared)


# ---- moves that are not settled are told


async def test_what_a_settling_waits_for_is_told(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        move, brake = await held_in(pair, "LOADED")
        for _ in range(100):
            pair.a.driver.fail("resume", Failed("its QEMU says no"))
        await pair.a.moves.cancel(move)
        brake.unlink()
        settler: Settler = pair.a.settler

        async def told() -> bool:
            return bool(settler.troubles(after=0.0))

        await becomes(told)
        (trouble,) = settler.troubles(after=0.0)
        assert move in trouble
        assert "busybox" in trouble
        assert "its QEMU says no" in trouble
        assert settler.troubles(after=60.0) == ()
        await cared.a.destroy("busybox")
        await nothing_left(cared)
        assert settler.troubles(after=0.0) == ()
