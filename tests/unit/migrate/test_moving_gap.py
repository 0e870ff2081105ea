"""What a target needs to hear before it lets a domain run: the store's news and the source's word, both."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from two_nodes import UUID, make_certificates, two_nodes

from veery.cluster import owner as owners
from veery.model.move import MoveSettings, MoveState


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def test_the_store_alone_does_not_let_it_run(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.hold.mkdir(parents=True)
        brake = pair.a.hold / "FINISH"
        brake.touch()
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        async with asyncio.timeout(20):
            while (await owners.read(pair.b.store, "busybox")).node != "b":  # type: ignore[union-attr]
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)
        assert pair.world.running(UUID) == ()
        brake.unlink()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")


async def test_a_watch_that_is_too_old_is_made_up_for_by_a_read(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        release = pair.a.driver.hang("copy")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, MoveSettings())
        async with asyncio.timeout(20):
            while (promise := await owners.reservation(pair.b.store, "busybox")) is None:
                await asyncio.sleep(0.005)
        pair.b.store.compact(promise.revision + 1)
        release()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE
        await pair.check("b")
