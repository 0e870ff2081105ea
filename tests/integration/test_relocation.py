"""The relocation server against strangers, garbage and its own kind, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veery.cluster import revocation
from veery.cluster.admission import Admission
from veery.cluster.keys import CERTIFICATES
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete, Put
from veery.config.settings import Relocation
from veery.errors import Failed, Refused
from veery.host import tls
from veery.host.clock import RealClock
from veery.host.tasks import stop
from veery.migrate import wire
from veery.migrate.relocation import STRANGERS, RelocationServer, allowed
from veery.model.cluster import Certificate

ADDRESS = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def certificates(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """A CA and a certificate for each of `names`."""
    now = time.time()
    authority = tls.make_ca("test", epoch=now)
    made = {}
    for name in names:
        request = tls.make_request(name)
        cert = tls.sign(authority, request.cert, name=name, addresses=[ADDRESS], epoch=now)
        made[name] = folder / name
        tls.write_folder(made[name], ca=authority.cert, node=tls.KeyPair(cert, request.key))
    return made


def shown(folder: Path) -> tls.Shown:
    """The certificate in `folder`, as another end of a connection sees it."""
    name = folder.name
    return tls.Shown(name, revocation.certificate((folder / "server-cert.pem").read_text()).serial)


def record(name: str, folder: Path) -> Put:
    """What the store knows of a node's certificate."""
    return CERTIFICATES.put(name, revocation.certificate((folder / "server-cert.pem").read_text()))


class Running:
    """A relocation server in a thread of its own; its receiver answers every offer with a Problem."""

    def __init__(self, folders: dict[str, Path], hosts_allow: str = "", members: tuple[str, ...] = ()) -> None:
        """Each of `folders` is a node's; `members` are the addresses from which nodes call."""
        self.port, self.folders = free_port(), folders
        self.peers: list[str] = []
        self.lost: list[str] = []
        self.store = MemoryStore(RealClock())
        state = folders["test2"].parent / "certificates.json"
        state.unlink(missing_ok=True)
        self.admission = Admission(self.store, shown(folders["test2"]), state)
        self.server = RelocationServer(
            "test2",
            ADDRESS,
            Relocation(port=self.port, hosts_allow=hosts_allow),
            tls.server_context(folders["test2"]),
            self.taken,
            admission=self.admission,
            member=lambda address: address in members,
        )
        self.server.bind()
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        self.loop = self._started.result(10)

    async def taken(self, channel: wire.Channel) -> None:
        self.peers.append(channel.peer)
        try:
            await channel.receive(30)
        except Failed as error:
            self.lost.append(error.message)
            raise
        await channel.send(wire.Problem("refused", "no room", "try elsewhere"))

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        await self.store.commit([], [record(name, folder) for name, folder in self.folders.items()])
        following = asyncio.create_task(self.admission.run())
        self._started.set_result(asyncio.get_running_loop())
        with contextlib.suppress(asyncio.CancelledError):
            await self.server.run()
        await stop(following)

    def commit(self, *operations: Put | Delete) -> None:
        """Change the store."""
        asyncio.run_coroutine_threadsafe(self.store.commit([], operations), self.loop).result(10)

    def close(self) -> None:
        assert self._task is not None
        self.loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)

    def speak(self, data: bytes) -> bytes:
        """Send `data`, say no more, and return all that is answered."""
        with socket.create_connection((ADDRESS, self.port), timeout=20) as caller:
            answered = b""
            with contextlib.suppress(OSError):  # a reset, as of one who is turned away
                caller.sendall(data)
                caller.shutdown(socket.SHUT_WR)
                while piece := caller.recv(4096):
                    answered += piece
            return answered

    async def offer(self, name: str = "test1") -> None:
        """A whole conversation as node `name`; raises what the server says."""
        channel = await wire.open_control(ADDRESS, self.port, "test2", tls.client_context(self.folders[name]), 10)
        try:
            await channel.send(wire.Finish())
            await channel.expect(wire.Ready, 10)
        finally:
            await channel.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return certificates(tmp_path_factory.mktemp("tls"), ("test1", "test2"))


@pytest.fixture(scope="module")
def running(folders: dict[str, Path]) -> Iterator[Running]:
    server = Running(folders)
    yield server
    server.close()


GREETINGS = st.sampled_from([wire.greeting(), wire.greeting("0" * 32), wire.greeting()[:40], b"GET / HTTP/1.1\r\n\r\n"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=300), st.builds(lambda a, b: a + b, GREETINGS, st.binary(max_size=300))))
def test_garbage_never_gets_further_than_its_greeting(running: Running, data: bytes) -> None:
    before = list(running.peers)
    answered = running.speak(data)
    # Nothing, a plain refusal, or OK and then only TLS records (an alert), never a message.
    rest = answered.removeprefix(b"OK\n")
    assert rest == b"" or rest.startswith((b"NO ", b"\x15\x03", b"\x16\x03"))
    assert running.peers == before


def test_after_all_that_a_node_is_served(running: Running) -> None:
    with pytest.raises(Refused, match="no room") as caught:
        asyncio.run(running.offer())
    assert caught.value.hint == "try elsewhere"
    assert running.peers[-1] == "test1"


def test_either_end_notices_a_machine_that_went_silent(running: Running, folders: dict[str, Path]) -> None:
    """The kernel asks (ss(8) shows its timer), so a power cut at the other end is no wait of minutes."""

    async def call() -> list[str]:
        context = tls.client_context(folders["test1"])
        channel = await wire.open_control(ADDRESS, running.port, "test2", context, 10)
        found = f"( sport = :{running.port} or dport = :{running.port} )"
        try:
            for _ in range(100):
                shown = await asyncio.create_subprocess_exec(
                    "ss", "-Htno", "state", "established", found, stdout=asyncio.subprocess.PIPE
                )
                rows = (await shown.communicate())[0].decode().splitlines()
                if all("timer:(keepalive," in row for row in rows):
                    break
                await asyncio.sleep(0.04)  # what was sent last is not answered yet
            return rows
        finally:
            await channel.close()

    rows = asyncio.run(call())
    assert len(rows) == 2
    assert all("timer:(keepalive," in row for row in rows), rows


def test_a_certificate_of_another_ca_is_turned_away(running: Running, tmp_path: Path) -> None:
    strangers = certificates(tmp_path, ("test1",))
    before = list(running.peers)

    async def call() -> None:
        context = tls.client_context(strangers["test1"])
        channel = await wire.open_control(ADDRESS, running.port, "test2", context, 10)
        await channel.send(wire.Finish())
        await channel.receive(10)

    with pytest.raises((Refused, Failed)):
        asyncio.run(call())
    assert running.peers == before


def test_a_server_that_is_another_node_is_not_trusted(running: Running, folders: dict[str, Path]) -> None:
    async def call() -> None:
        await wire.open_control(ADDRESS, running.port, "test9", tls.client_context(folders["test1"]), 10)

    with pytest.raises(Refused, match="is not test9"):
        asyncio.run(call())


def test_who_was_put_out_is_cut_and_comes_in_no_more(folders: dict[str, Path]) -> None:
    server = Running(folders)

    async def stay() -> None:
        channel = await wire.open_control(ADDRESS, server.port, "test2", tls.client_context(folders["test1"]), 10)
        try:
            async with asyncio.timeout(10):
                while not server.peers:
                    await asyncio.sleep(0.02)
            begun = time.monotonic()
            server.commit(Delete(CERTIFICATES.key("test1")))
            with pytest.raises(Failed, match="closed the connection"):
                await channel.receive(10)
            assert time.monotonic() - begun < 10
        finally:
            await channel.close()

    try:
        asyncio.run(stay())
        server.peers.clear()
        with pytest.raises((Refused, Failed)):
            asyncio.run(server.offer())
        # the name has joined anew: the old certificate stays out
        server.commit(CERTIFICATES.put("test1", Certificate(serial="abc", ends=time.time() + 3600)))
        with pytest.raises((Refused, Failed)):
            asyncio.run(server.offer())
        assert server.peers == []
        # while the store is away what was known last stays in force
        server.commit(record("test1", folders["test1"]))
        with pytest.raises(Refused, match="no room"):
            asyncio.run(server.offer())
        server.store.set_available(False)
        with pytest.raises(Refused, match="no room"):
            asyncio.run(server.offer())
    finally:
        server.close()


def test_idle_strangers_do_not_keep_members_out(folders: dict[str, Path]) -> None:
    server = Running(folders, members=(ADDRESS,))
    idle: list[socket.socket] = []
    try:
        for number in range(200):  # each address may have some, all of them not more than their share
            caller = socket.create_connection((ADDRESS, server.port), 10, source_address=(f"127.0.1.{number % 40}", 0))
            idle.append(caller)
        with pytest.raises(Refused, match="no room"):
            asyncio.run(server.offer())
        turned_away = 0
        for caller in idle:
            caller.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                with contextlib.suppress(ConnectionError):
                    caller.recv(1)
                turned_away += 1
        assert turned_away >= 200 - STRANGERS
    finally:
        for caller in idle:
            caller.close()
        server.close()


def test_an_address_not_allowed_is_told_so(folders: dict[str, Path]) -> None:
    server = Running(folders, hosts_allow=r"172\.16\.31\.[12] ^test1$")
    try:
        with pytest.raises(Refused, match=r"127\.0\.0\.1 is not in relocation\.hosts_allow of test2"):
            asyncio.run(server.offer())
        assert server.peers == []
    finally:
        server.close()


def test_a_port_in_use_is_refused_with_a_hint(folders: dict[str, Path]) -> None:
    with socket.socket() as other:
        other.bind((ADDRESS, 0))
        other.listen()
        port = other.getsockname()[1]
        context = tls.server_context(folders["test2"])

        async def never(channel: wire.Channel) -> None:
            raise AssertionError(channel.peer)

        none = Admission(MemoryStore(RealClock()), shown(folders["test2"]), folders["test2"] / "none.json")
        server = RelocationServer(
            "test2", ADDRESS, Relocation(port=port), context, never, admission=none, member=lambda _: False
        )
        with pytest.raises(Refused, match="in use") as caught:
            server.bind()
        assert "relocation.port" in caught.value.hint


def test_nobody_there_is_refused(folders: dict[str, Path]) -> None:
    async def call() -> None:
        await wire.open_control(ADDRESS, free_port(), "test2", tls.client_context(folders["test1"]), 10)

    with pytest.raises(Refused, match="refused") as caught:
        asyncio.run(call())
    assert "veeryd" in caught.value.hint


@pytest.mark.parametrize(
    ("patterns", "address", "name", "expected"),
    [
        ("", "10.0.0.1", "", True),
        (r"^localhost$ ^.*\.example\.org$", "10.0.0.1", "a.example.org", True),
        (r"^localhost$", "10.0.0.1", "localhost.evil", False),
        (r"10\.0\.0\.1", "10.0.0.11", "", True),
        (r"10\.0\.0\.1$", "10.0.0.11", "", False),
        ("172.16.31.", "172.16.31.1", "", True),
        ("16.31.", "172.16.31.1", "", False),
        (r"10\.0\.0\..*", "10.0.0.11", "", True),
    ],
)
def test_hosts_allow_matches_from_the_beginning_as_xend_did(
    patterns: str, address: str, name: str, expected: bool
) -> None:
    assert allowed(patterns, address, name) is expected


def test_a_pattern_that_is_no_pattern_is_refused() -> None:
    with pytest.raises(Refused, match="hosts_allow"):
        RelocationServer(
            "a",
            ADDRESS,
            Relocation(hosts_allow="(("),
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            admission=None,  # type: ignore[arg-type]
            member=lambda _: False,
        )
