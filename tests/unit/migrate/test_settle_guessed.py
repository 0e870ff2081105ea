"""A journal file that cannot be read may stand for a move in doubt: the owner key alone says what becomes of its
domain."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from two_nodes import UUID, Pair, Side, make_certificates, two_nodes

from veery.cluster import owner as owners
from veery.hypervisor.base import ALONE
from veery.model.domain import DomainState
from veery.model.move import MoveSettings
from veery.model.volume import Attachments

END_S = 60.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def recall(side: Side, folder: Path, name: str) -> None:
    """The daemon of `side` starts with an unreadable journal file `name`; returns when all is settled."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"\nno line\n")
    side.settler.recall()
    await side.settler.recall_illegible()
    assert side.settler.busy("busybox")
    async with asyncio.timeout(END_S):
        while side.settler.busy("busybox"):
            await asyncio.sleep(0.01)


async def half_moved(pair: Pair, move: str = "m1") -> None:
    """Half a domain at `b`, promised to it for `move`."""
    await owners.reserve(pair.a.store, "busybox", move, "a", "b")
    spec, luggage = await pair.a.driver.pack(UUID)
    await pair.b.driver.prepare(spec, Attachments(), luggage, b"", tls=False, peer="a", post_copy=False)


async def test_a_half_that_another_node_owns_does_not_run(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await half_moved(pair)
        await recall(pair.b, tmp_path / "b" / "journal", "m1.target.json")
        assert await owners.reservation(pair.a.store, "busybox") is None  # no COMMIT can succeed any more
        assert (await pair.b.reading()).state is DomainState.INCOMING  # the caretaker destroys it
        assert pair.world.running(UUID) == ("a",)


async def test_the_promise_of_a_move_that_can_be_read_stands(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await half_moved(pair, "m2")
        await recall(pair.b, tmp_path / "b" / "journal", "m1.target.json")
        promise = await owners.reservation(pair.a.store, "busybox")
        assert promise is not None
        assert promise.move == "m2"


async def loaded(pair: Pair) -> None:
    """All of the domain is at `b`, and it stands on both nodes."""
    await half_moved(pair)
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        settings = MoveSettings(tls=False)
        await asyncio.gather(
            pair.a.driver.send(UUID, near, settings, lambda progress: None, peer="b", means=ALONE),
            pair.b.driver.receive(UUID, far),
        )
    assert pair.world.running(UUID) == ()


async def test_a_stopped_source_that_owns_its_domain_lets_it_run_on(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await loaded(pair)
        await recall(pair.a, tmp_path / "a" / "journal", "m1.source.json")
        assert await owners.reservation(pair.a.store, "busybox") is None
        assert pair.world.running(UUID) == ("a",)


async def test_the_target_that_owns_the_domain_lets_it_run_and_the_source_does_not(
    tmp_path: Path, certificates: Path
) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await loaded(pair)
        owner, promise = await owners.read(pair.a.store, "busybox"), await owners.reservation(pair.a.store, "busybox")
        assert owner is not None
        assert promise is not None
        await owners.commit(pair.a.store, owner, promise)
        await recall(pair.a, tmp_path / "a" / "journal", "m1.source.json")
        assert pair.world.running(UUID) == ()
        await recall(pair.b, tmp_path / "b" / "journal", "m1.target.json")
        assert pair.world.running(UUID) == ("b",)
