"""The relocation port of a real receiver (fake driver, store in memory) against frames of all kinds, as a node of the
cluster and as a stranger. The domain stays where it is, and nothing is left at the target."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
import pytest
from fuzz_node import Watch, open_descriptors
from fuzz_values import shaped, spoilt
from hypothesis import given
from hypothesis import strategies as st
from plenty import KEPT, plenty
from two_nodes import SPEC, UUID, Pair, make_certificates, two_nodes

from veery.cluster import owner as owners
from veery.errors import Failed, Refused
from veery.host import tls
from veery.migrate import wire
from veery.model import codec

T = TypeVar("T")

KINDS = get_args(wire.Message)
LISTEN_S = 0.04
"""For so long an answer is waited for before the next frame, and before the caller leaves."""
SLACK = 6
RIGHT = {
    "type": "offer",
    "move": "0a1b2c3d",
    "source": "a",
    "domain": "busybox",
    "boot": "boot",
    "owner_revision": 1,
    "driver": "fake",
    "spec": msgspec.to_builtins(SPEC),
    "luggage": {"started": 1.0},
}
messages = st.one_of(st.sampled_from(KINDS).flatmap(shaped), st.just(RIGHT), *(shaped(kind) for kind in KINDS))
jsons = spoilt(messages).map(lambda value: json.dumps(value).encode())
bytes_of = st.one_of(
    jsons, jsons, jsons, st.binary(max_size=60), st.sampled_from([b"[" * 50_000, b"\xff" * 9, b'"', b""])
)
framed = bytes_of.map(lambda data: struct.pack("!I", len(data)) + data)
LENGTHS = st.sampled_from([0, 1, wire.FRAME_MAX, wire.FRAME_MAX + 1, (1 << 32) - 1, 1 << 16])
frames = st.one_of(
    framed,
    framed,
    framed,
    st.binary(max_size=40),
    st.builds(lambda n, data: struct.pack("!I", n) + data, LENGTHS, bytes_of),
)


class Nodes:
    """Both nodes in a loop of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.certificates, self.watch = folder, make_certificates(folder / "tls"), Watch()
        logging.getLogger().addHandler(self.watch)
        self._started: Future[Pair] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="two nodes")
        self._thread.start()
        self.pair = self._started.result(60)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)
        logging.getLogger().removeHandler(self.watch)

    def run(self, work: Coroutine[Any, Any, T], within: float = 90) -> T:
        """The result of `work` in the nodes' loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(within)

    def descriptors(self, most: int = 0) -> int:
        """As FuzzedNode.descriptors, once no move is open."""
        self.run(self.pair.settled())
        self.run(asyncio.sleep(1.0))
        return open_descriptors(most)

    def quiet(self) -> None:
        """Fail if the log has a traceback."""
        found, self.watch.found = self.watch.found, []
        assert not found, found[0]

    async def _main(self) -> None:
        self.loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with two_nodes(self.folder / "nodes", self.certificates) as pair:
            self._started.set_result(pair)
            await self._over.wait()

    async def say(self, said: list[bytes]) -> None:
        """A control connection of node `a` to node `b`: each of `said`, and what is answered in between."""
        node = self.pair.b.node
        context = tls.client_context(self.certificates / "a")
        with contextlib.suppress(Failed):
            channel = await wire.open_control(node.address, node.relocation_port, "b", context, 30)
            try:
                for data in said:
                    await channel.pour(data)
                    with contextlib.suppress(TimeoutError):
                        await channel.receive(LISTEN_S)
            finally:
                await channel.close()

    def shout(self, data: bytes) -> bytes:
        """What is answered to a stranger."""
        node, answered = self.pair.b.node, b""
        with (
            contextlib.suppress(OSError),  # cut off, or turned away
            socket.create_connection((node.address, node.relocation_port), timeout=60) as caller,
        ):
            caller.sendall(data)
            caller.shutdown(socket.SHUT_WR)
            while piece := caller.recv(65536):
                answered += piece
        return answered


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("frames"))
    yield made
    made.close()


def unharmed(nodes: Nodes) -> None:
    """The domain runs at `a` alone, and `b` has nothing of it."""
    nodes.run(nodes.pair.check("a"))
    assert nodes.pair.world.running(UUID) == ("a",)


def test_any_frames_of_a_node_end_in_answers(nodes: Nodes) -> None:
    owner = nodes.run(owners.read(nodes.pair.a.store, "busybox"))
    assert owner is not None
    RIGHT["owner_revision"] = owner.revision
    before = nodes.descriptors()

    @plenty(100)
    @given(st.lists(frames, min_size=1, max_size=4))
    def tried(said: list[bytes]) -> None:
        nodes.run(nodes.say(said))
        nodes.quiet()

    tried()
    assert nodes.descriptors(before + SLACK) <= before + SLACK
    unharmed(nodes)


greetings = st.sampled_from(
    [wire.greeting(), wire.greeting("0" * 32), wire.greeting()[:30], b"VEERY/1 STREAM " + b"g" * 48]
)


def test_any_bytes_of_a_stranger_end_at_the_door(nodes: Nodes) -> None:
    before = nodes.descriptors()

    @plenty(150)
    @given(st.lists(greetings | st.binary(max_size=100), min_size=1, max_size=3).map(b"".join))
    def tried(data: bytes) -> None:
        rest = nodes.shout(data).removeprefix(b"OK\n")
        assert rest == b"" or rest.startswith((b"NO ", b"\x15\x03", b"\x16\x03"))
        nodes.quiet()

    tried()
    assert nodes.descriptors(before + SLACK) <= before + SLACK
    unharmed(nodes)


@plenty(700)
@given(
    bytes_of
    | st.builds(
        lambda data, at, more: data[:at] + more + data[at + 1 :], jsons, st.integers(0, 500), st.binary(max_size=3)
    )
)
def test_any_message_is_read_or_refused(data: bytes) -> None:
    try:
        message = wire.decode(data)
    except Refused as error:
        assert "\n" not in error.message
        assert len(error.message) <= wire.SAID_MAX
        return
    assert wire.decode(codec.encode(message)) == message  # as wire.send does: unknown fields of a spec are kept


@pytest.mark.parametrize("path", sorted(KEPT.glob("frames-*.json")), ids=lambda path: path.stem)
def test_frames_that_were_once_mishandled(nodes: Nodes, path: Path) -> None:
    for said in json.loads(path.read_text()):
        nodes.run(nodes.say([bytes.fromhex(each) for each in said]))
        nodes.quiet()
    unharmed(nodes)
