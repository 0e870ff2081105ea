"""Moves between versions: what a target does not know is not sent to it, and who is too old is told so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from two_nodes import ADDRESS, SPEC, Pair, make_certificates, two_nodes

import veery
from newer_parts import intact, plant, planted, read
from veery.cluster import levels, revocation
from veery.cluster import owner as owners
from veery.cluster.admission import Admission
from veery.cluster.keys import ALIVE, LEVEL_KEY, LEVELS
from veery.cluster.store import Put
from veery.config.settings import Relocation
from veery.errors import Refused
from veery.host import tls
from veery.host.tasks import stop
from veery.migrate import versions, wire
from veery.migrate.bandwidth import Paths
from veery.migrate.check import Scout
from veery.migrate.relocation import RelocationServer
from veery.model.cluster import LEVEL, ClusterLevel, Presence
from veery.model.codec import encode, plain
from veery.model.move import Compress, MoveSettings, MoveState, Phase
from veery.model.node import Node
from veery.model.plan import Blocker, Obstacle, Question, Reply


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


OFFER = wire.Offer(move="0a1b2c3d", source="a", domain="busybox", boot="b", owner_revision=1, driver="fake", spec=SPEC)


def test_an_offer_brings_fields_of_a_newer_version_along() -> None:
    raw = json.loads(encode(OFFER))
    raw["spec"] = planted(raw["spec"])
    told = wire.decode(json.dumps(raw).encode())
    assert isinstance(told, wire.Offer)
    assert told.spec == SPEC
    assert intact(plain(told.spec))
    again = wire.decode(encode(told))
    assert isinstance(again, wire.Offer)
    assert intact(json.loads(encode(again))["spec"])
    assert msgspec.json.decode(encode(again), type=wire.Message) == again


def test_too_many_of_them_are_refused() -> None:
    raw = json.loads(encode(OFFER))
    raw["spec"]["blob"] = "x" * (1 << 20)
    with pytest.raises(Refused, match="unknown fields"):
        wire.decode(json.dumps(raw).encode())


def test_messages_of_a_version_without_levels_are_read() -> None:
    ready = wire.decode(b'{"type":"ready","token":"%s","reservation":1,"hypervisor":"10.0.2"}' % (b"0" * 32))
    assert isinstance(ready, wire.Ready)
    assert (ready.level, versions.knows_streams(ready)) == (0, True)
    older = wire.decode(b'{"type":"ready","token":"%s","reservation":1}' % (b"0" * 32))
    assert isinstance(older, wire.Ready)
    assert not versions.knows_streams(older)
    versions.require("b", ready, 0, post_copy=True)
    versions.require("b", older, 0, post_copy=False)
    with pytest.raises(Refused, match="has no post-copy"):
        versions.require("b", older, 0, post_copy=True)
    with pytest.raises(Refused, match="supports level 0, the cluster is at level 1"):
        versions.require("b", ready, 1, post_copy=False)


async def test_a_domain_brings_them_into_its_record(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await plant(pair.a.store)
        assert (await pair.a.move(pair.b)).state is MoveState.DONE
        await pair.check("b")
        assert intact(await read(pair.a.store, "domain/busybox"))
        assert intact(await read(pair.a.store, "owner/busybox"))


async def at(pair: Pair, level: int) -> None:
    await pair.a.store.commit([], [LEVELS.put(LEVEL_KEY, ClusterLevel(level=level))])


async def present(pair: Pair, node: str, level: int, version: str = "") -> None:
    presence = Presence(node=node, started=1.0, version=version, level=level)
    await pair.a.store.commit([], [ALIVE.put(node, presence)])


async def test_both_at_the_level(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await at(pair, LEVEL)
        settings = MoveSettings(compress=Compress.YES)
        report = await pair.a.move(pair.b, settings)
        assert (report.state, bool(report.packed)) == (MoveState.DONE, True)
        await pair.check("b")


async def test_a_target_below_the_level_takes_nothing_in(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await at(pair, LEVEL + 1)
        report = await pair.a.move(pair.b)
        assert report.state is MoveState.FAILED
        assert f"supports level {LEVEL}, the cluster is at level {LEVEL + 1}" in report.reason
        assert "upgrade veery on b" in report.hint
        await pair.check("a")


LOGIN_FAILED = Blocker(kind=Obstacle.STORAGE, reason="wrong name or password", hint="veery target list")


async def test_a_target_present_with_an_older_version_gets_no_offer(tmp_path: Path, certificates: Path) -> None:
    """An older target may fail at something else first. The user is told of the version all the same."""
    async with two_nodes(tmp_path, certificates) as pair:
        await at(pair, LEVEL)
        await present(pair, "b", LEVEL - 1, "0.0.9")
        pair.b.attacher.reasons = (LOGIN_FAILED,)
        report = await pair.a.move(pair.b)
        assert (report.state, report.phase) == (MoveState.FAILED, Phase.BEGIN)
        assert report.reason == (
            f"b cannot take in a domain: its veery supports level {LEVEL - 1}, the cluster is at level {LEVEL} "
            f"(b has veery 0.0.9, this node {veery.__version__})"
        )
        assert report.hint == "upgrade veery on b; veery version -a shows all versions"
        assert "b" not in [line.target for line in pair.a.context.journal.open()]
        await pair.check("a")


async def test_a_target_that_comes_back_with_an_older_version_after_the_first_check_is_refused(
    tmp_path: Path, certificates: Path
) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await present(pair, "b", LEVEL + 1)  # what the source reads; the veery that answers on b has LEVEL
        await at(pair, LEVEL + 1)
        report = await pair.a.move(pair.b)
        assert f"supports level {LEVEL}, the cluster is at level {LEVEL + 1}" in report.reason
        await pair.check("a")


async def test_a_plan_names_the_version_of_a_target_that_cannot_answer(tmp_path: Path, certificates: Path) -> None:
    async def ask(name: str, _: Question) -> Reply:
        raise Refused(f"{name} does not understand the question")

    async with two_nodes(tmp_path, certificates) as pair:
        await at(pair, LEVEL)
        scout = Scout(pair.a.context, pair.a.node, tuple, Paths(), ask)
        reading, settings = await pair.a.reading(), MoveSettings()
        (unknown,) = (await scout.plan(reading, pair.b.node, settings)).blockers
        assert (unknown.kind, unknown.reason) == (
            Obstacle.NODE,
            "b does not say whether it could take busybox: b does not understand the question",
        )
        await present(pair, "b", LEVEL - 1)
        (old,) = (await scout.plan(reading, pair.b.node, settings)).blockers
        assert (old.kind, old.hint) == (Obstacle.VERSION, "upgrade veery on b")
        assert old.reason == f"its veery supports level {LEVEL - 1}, the cluster is at level {LEVEL}"


async def test_an_absent_or_unreadable_presence_is_no_old_version(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await at(pair, LEVEL)
        assert await levels.fault(pair.a.store, "b") == ("", "")
        await pair.a.store.commit([], [Put(ALIVE.key("b"), b"{}")])
        assert await levels.fault(pair.a.store, "b") == ("", "")
        assert (await pair.a.move(pair.b)).state is MoveState.DONE


@contextlib.asynccontextmanager
async def old_target(pair: Pair, certificates: Path) -> AsyncIterator[tuple[Node, list[bytes]]]:
    """A target of a version that knows neither levels nor packed streams; its record, and how streams to it begin."""
    begun: list[bytes] = []

    async def take(channel: wire.Channel) -> None:
        said = await channel.receive(20)
        assert isinstance(said, wire.Offer)
        promise = await owners.reserve(pair.b.store, said.domain, said.move, "a", "b", revision=said.owner_revision)
        with server.expect() as (token, arrival):
            await channel.send(wire.Ready(token=token, reservation=promise.revision))
            stream = await arrival
            stream.setblocking(False)
            begun.append(await asyncio.get_running_loop().sock_recv(stream, 1))

    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        port = free.getsockname()[1]
    own = revocation.certificate((certificates / "b" / "server-cert.pem").read_text())
    admission = Admission(pair.b.store, tls.Shown("b", own.serial), certificates / "certificates.json")
    context = tls.server_context(certificates / "b")
    server = RelocationServer(
        "b", ADDRESS, Relocation(port=port), context, take, admission=admission, member=lambda address: True
    )
    server.bind()
    serving = asyncio.create_task(server.run())
    try:
        yield replace(pair.b.node, relocation_port=port), begun
    finally:
        await stop(serving)


@pytest.mark.parametrize("level", [0, 1])
async def test_an_old_target_gets_a_plain_stream_or_none(tmp_path: Path, certificates: Path, level: int) -> None:
    """It takes no notice of what it does not know: it would read a packed stream as a plain one."""
    async with two_nodes(tmp_path, certificates) as pair, old_target(pair, certificates) as (node, begun):
        await at(pair, level)
        settings = MoveSettings(compress=Compress.YES)
        moves = pair.a.moves
        report = await moves.outcome(moves.start(await pair.a.reading(), node, settings))
        assert report.state is MoveState.FAILED
        assert ("supports level 0, the cluster is at level 1" in report.reason) == bool(level)
        assert begun == ([] if level else [b"{"]), "the fake driver's stream is JSON"
        await pair.check("a")


def test_level_of_the_wire_is_a_number_that_can_be() -> None:
    with pytest.raises(Refused):
        wire.decode(encode({**json.loads(encode(OFFER)), "level": -1}))
