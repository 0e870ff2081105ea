"""The gates that let a move go on, each with the one fault that it is there for."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cared_nodes import cared_nodes, domains_of
from two_nodes import ADDRESS, UUID, Pair, Side, make_certificates, two_nodes

from veery.cluster import fencing
from veery.cluster import owner as owners
from veery.cluster.keys import NODES, RESERVATIONS
from veery.errors import Failed, Refused
from veery.migrate import wire
from veery.migrate.journal import Line
from veery.migrate.journal import Side as JournalSide
from veery.migrate.phases import Steps
from veery.model.cluster import Reservation
from veery.model.move import MoveSettings, MoveState, Phase
from veery.model.volume import Attachments

END_S = 20.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def connect(source: Side, target: Side) -> wire.Channel:
    """A control connection as the source's sender opens it."""
    port = target.node.relocation_port
    return await wire.open_control(ADDRESS, port, target.node.name, source.context.client_tls, END_S)


async def offer(pair: Pair) -> wire.Offer:
    """What `a` truthfully says of its domain."""
    owner = await owners.read(pair.a.store, "busybox")
    assert owner is not None
    spec, luggage = await pair.a.driver.pack(UUID)
    return wire.Offer(
        move="m1",
        source="a",
        domain="busybox",
        boot=owner.boot,
        owner_revision=owner.revision,
        driver=pair.a.driver.name,
        spec=spec,
        luggage=luggage,
    )


async def give(pair: Pair, node: str, boot: str = "boot") -> None:
    """Make `node` the owner of the domain, without any move."""
    owner = await owners.read(pair.a.store, "busybox")
    assert owner is not None
    await owners.release(pair.a.store, owner)
    await owners.claim(pair.a.store, "busybox", node, boot, None)


async def loaded(pair: Pair, channel: wire.Channel, boot: str = "") -> wire.Ready:
    """Have `b` take in and load the domain of `a`, up to its word that it has everything."""
    said = await offer(pair)
    await channel.send(msgspec.structs.replace(said, boot=boot or said.boot))
    ready = await channel.expect(wire.Ready, END_S)
    stream = await wire.open_stream(ADDRESS, pair.b.node.relocation_port, ready.token, END_S)
    try:
        await pair.a.driver.send(UUID, stream, MoveSettings(), lambda progress: None, peer="b")
    finally:
        stream.close()
    await channel.expect(wire.Loaded, END_S)
    return ready


def line_of(side: JournalSide) -> Line:
    """What the journal has of a move from `a` to `b`."""
    return Line(
        move="m1", side=side, domain="busybox", uuid=UUID, boot="boot", source="a", target="b", owner_revision=1
    )


async def entered(pair: Pair, phase: Phase) -> None:
    """Return once the move has come to `phase` at its source."""
    async with asyncio.timeout(END_S):
        while all(line.phase is not phase for line in pair.a.context.journal.open()):
            await asyncio.sleep(0.005)


# ---- the target


@pytest.mark.parametrize("watching", [True, False])
async def test_a_finish_without_a_commit_lets_nothing_run(tmp_path: Path, certificates: Path, watching: bool) -> None:
    """Safety sentence 1: the word of the source alone proves nothing, nor does a watch that is too old to tell."""
    async with two_nodes(tmp_path, certificates) as pair:
        channel = await connect(pair.a, pair.b)
        ready = await loaded(pair, channel)
        if not watching:
            pair.b.store.compact(ready.reservation + 1)
            await pair.a.store.commit([], [NODES.put("a", pair.a.node)])
            await asyncio.sleep(0.1)
        await channel.send(wire.Finish())
        with pytest.raises(Failed, match="the store names another owner"):
            await channel.expect(wire.Running, END_S)
        await channel.close()
        await pair.a.driver.resume(UUID)
        await pair.check("a")


async def test_an_owner_key_from_before_the_move_lets_nothing_run(tmp_path: Path, certificates: Path) -> None:
    """The owner key named the target before this move began: that is no COMMIT of this one."""
    async with two_nodes(tmp_path, certificates) as pair:
        await give(pair, "b")
        channel = await connect(pair.a, pair.b)
        await loaded(pair, channel, boot="another")
        await channel.send(wire.Finish())
        with pytest.raises(Failed, match="the store names another owner"):
            await channel.expect(wire.Running, END_S)
        await channel.close()
        assert pair.world.running(UUID) == ()
        assert await pair.b.driver.list() == ()


async def test_an_offer_in_the_name_of_another_node_is_refused(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        channel = await connect(pair.a, pair.b)
        await channel.send(msgspec.structs.replace(await offer(pair), source="c"))
        with pytest.raises(Refused, match="a offers a domain in the name of c"):
            await channel.expect(wire.Ready, END_S)
        await channel.close()
        await pair.check("a")


async def test_a_domain_that_is_on_its_way_is_not_taken_in_twice(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        first, second = await connect(pair.a, pair.b), await connect(pair.a, pair.b)
        await first.send(await offer(pair))
        await first.expect(wire.Ready, END_S)
        await second.send(await offer(pair))
        with pytest.raises(Refused, match="already on its way here"):
            await second.expect(wire.Ready, END_S)
        await second.close()
        first.part("that was all")
        await first.close()
        await pair.check("a")


async def test_a_finish_before_everything_is_loaded_is_an_error(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        channel = await connect(pair.a, pair.b)
        await channel.send(await offer(pair))
        await channel.expect(wire.Ready, END_S)
        await channel.send(wire.Finish())
        with pytest.raises(Failed, match="sent Finish before everything was loaded"):
            await channel.expect(wire.Loaded, END_S)
        await channel.close()
        await pair.check("a")


async def test_the_promise_stands_before_the_source_hears_ready(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        channel = await connect(pair.a, pair.b)
        await channel.send(await offer(pair))
        ready = await channel.expect(wire.Ready, END_S)
        promise = await owners.reservation(pair.a.store, "busybox")
        assert promise is not None
        assert (promise.revision, promise.target) == (ready.reservation, "b")
        channel.part("that was all")
        await channel.close()
        await pair.check("a")


# ---- the source


async def test_a_store_without_a_quorum_is_noticed_before_commit(tmp_path: Path, certificates: Path) -> None:
    """A COMMIT without a quorum gets no answer: the domain would stand until the store is back."""
    async with two_nodes(tmp_path, certificates) as pair:
        pair.a.hold.mkdir(parents=True)
        brake = pair.a.hold / Phase.COMMIT
        brake.touch()
        moving = asyncio.create_task(pair.a.move(pair.b))
        await entered(pair, Phase.COMMIT)
        await asyncio.sleep(0.2)  # until the store's last answer no longer counts as a sign that it answers
        pair.a.store.set_quorum(False)
        brake.unlink()
        async with asyncio.timeout(END_S):
            report = await moving
        assert report.state is MoveState.FAILED
        assert pair.world.running(UUID) == ("a",)
        pair.a.store.set_quorum(True)
        await pair.check("a")


async def test_a_domain_that_belongs_to_another_node_is_not_moved(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        await give(pair, "b")
        report = await pair.a.move(pair.b)
        assert report.state is MoveState.FAILED
        assert "busybox belongs to b, not to a" in report.reason
        assert await pair.b.driver.list() == ()


async def test_a_phase_follows_the_one_before_it(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        context = pair.a.context
        steps = Steps(line_of(JournalSide.SOURCE), context.journal, context.clock, context.hold, lambda phase: None)
        await steps.enter(Phase.BEGIN)
        with pytest.raises(Failed, match="COPY does not follow BEGIN"):
            await steps.enter(Phase.COPY)
        steps.close()


@pytest.mark.parametrize(("node", "boot"), [("a", "boot"), ("b", "another")])
async def test_a_copy_of_an_earlier_run_is_removed(tmp_path: Path, certificates: Path, node: str, boot: str) -> None:
    """A target's daemon died and left half a domain: it goes where the owner key does not name this node and run."""
    async with two_nodes(tmp_path, certificates) as pair:
        await give(pair, node, boot)
        spec, luggage = await pair.a.driver.pack(UUID)
        await pair.b.driver.prepare(spec, Attachments(), luggage, b"", tls=False, peer="a", post_copy=False)
        line = pair.b.context.journal.write(line_of(JournalSide.TARGET))
        pair.b.settler.later(line)
        async with asyncio.timeout(END_S):
            while pair.b.context.journal.open():
                await asyncio.sleep(0.01)
        assert await pair.b.driver.list() == ()
        assert pair.world.running(UUID) == ("a",)


async def test_a_promise_to_another_move_is_left_alone(tmp_path: Path, certificates: Path) -> None:
    """A settler takes away the promise of its own move only."""
    async with two_nodes(tmp_path, certificates) as pair:
        brake = pair.a.hold / Phase.COPY
        pair.a.hold.mkdir(parents=True)
        brake.touch()
        moving = asyncio.create_task(pair.a.move(pair.b))
        await entered(pair, Phase.COPY)
        (line,) = pair.a.context.journal.open()
        async with asyncio.timeout(END_S):
            await pair.a.settler.ask(replace(line, move="another"), deadline=END_S)
        assert await owners.reservation(pair.a.store, "busybox") is not None
        brake.unlink()
        assert (await moving).state is MoveState.DONE
        await pair.check("b")


async def test_a_commit_of_another_promise_is_refused(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        store = pair.a.store
        owner = await owners.read(store, "busybox")
        assert owner is not None
        old = await owners.reserve(store, "busybox", "m1", "a", "b")
        await owners.drop(store, old)
        new = Reservation(domain="busybox", move="m2", source="a", target="b")
        await store.commit([], [RESERVATIONS.put("busybox", new)])
        with pytest.raises(owners.OwnedElsewhere):
            await owners.commit(store, owner, old)
        assert await pair.owner() == "a"


# ---- the wire


async def test_a_message_that_is_too_long_is_refused_before_it_is_read() -> None:
    reader = asyncio.StreamReader()
    channel = wire.Channel(reader, _nowhere(reader), "b")
    reader.feed_data(struct.pack("!I", wire.FRAME_MAX + 1))
    with pytest.raises(Failed, match=f"sent a message of {wire.FRAME_MAX + 1} bytes"):
        await channel.receive(1.0)


async def test_a_problem_is_raised_as_the_error_that_it_carries() -> None:
    reader = asyncio.StreamReader()
    channel = wire.Channel(reader, _nowhere(reader), "b")
    data = msgspec.json.encode(wire.Problem("refused", "no room", "move another"))
    reader.feed_data(struct.pack("!I", len(data)) + data)
    with pytest.raises(Refused, match="no room") as told:
        await channel.expect(wire.Ready, 1.0)
    assert told.value.hint == "move another"


async def test_a_message_out_of_turn_is_an_error() -> None:
    reader = asyncio.StreamReader()
    channel = wire.Channel(reader, _nowhere(reader), "b")
    data = msgspec.json.encode(wire.Running())
    reader.feed_data(struct.pack("!I", len(data)) + data)
    with pytest.raises(Failed, match="sent Running where Ready was due"):
        await channel.expect(wire.Ready, 1.0)


@pytest.mark.parametrize("text", ["VEERY/1 STREAM nothing", "VEERY/2 CONTROL", "VEERY/1 STREAM " + "0" * 31])
def test_a_greeting_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="not a veery relocation greeting"):
        wire.parse_greeting(text.encode().ljust(wire.GREETING_BYTES - 1) + b"\n")


def _nowhere(reader: asyncio.StreamReader) -> asyncio.StreamWriter:
    """A writer whose words reach nobody."""
    protocol = asyncio.StreamReaderProtocol(reader)
    return asyncio.StreamWriter(asyncio.Transport(), protocol, reader, asyncio.get_running_loop())


# ---- a fenced node


async def test_a_fenced_node_lets_nothing_go_on(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        store = cared.pair.a.store
        await cared.a.pause("busybox")
        await store.commit([], [NODES.put("a", cared.pair.a.node)])
        await fencing.begin(store, "a", by="a test", epoch=0.0)
        with pytest.raises(Refused, match="a is fenced"):
            await cared.a.unpause("busybox")
        assert cared.pair.world.running(UUID) == ()


# ---- orders and copies


async def test_another_nodes_domain_does_not_go_on(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:  # no caretaker, which would destroy it
        domains = domains_of(pair.a)
        await domains.pause("busybox")
        await give(pair, "b")
        with pytest.raises(Refused, match="busybox belongs to b, not to a"):
            await domains.unpause("busybox")
        assert pair.world.running(UUID) == ()


async def test_a_domain_that_moves_takes_no_orders(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        pair = cared.pair
        pair.a.hold.mkdir(parents=True)
        brake = pair.a.hold / Phase.COPY
        brake.touch()
        moving = asyncio.create_task(pair.a.move(pair.b))
        await entered(pair, Phase.COPY)
        with pytest.raises(Refused, match="busybox is being moved"):
            await cared.a.pause("busybox")
        with pytest.raises(Refused, match="busybox is on its way here"):
            await cared.b.pause("busybox")
        brake.unlink()
        assert (await moving).state is MoveState.DONE
        await pair.check("b")


async def test_a_paused_copy_of_another_nodes_domain_is_destroyed(tmp_path: Path, certificates: Path) -> None:
    async with cared_nodes(tmp_path, certificates) as cared:
        await cared.a.pause("busybox")
        await give(cared.pair, "b")
        async with asyncio.timeout(END_S):
            while await cared.a.list():
                await asyncio.sleep(0.05)
        assert await cared.pair.owner() == "b"


async def test_a_domain_that_runs_is_not_destroyed_by_an_owner_key_alone(tmp_path: Path, certificates: Path) -> None:
    """A key is taken from a node only under its fence: without one it is the store that is not believed."""
    async with cared_nodes(tmp_path, certificates) as cared:
        await give(cared.pair, "b")
        async with asyncio.timeout(END_S):
            while not cared.trust.restored:
                await asyncio.sleep(0.05)
        assert cared.pair.world.running(UUID) == ("a",)
