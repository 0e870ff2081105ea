"""The nodes' health over the API: at the node itself, and through another."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from veery.api.health import HealthRoutes
from veery.api.server import ApiServer, answer
from veery.cluster import revocation
from veery.cluster.admission import Admission
from veery.cluster.keys import CERTIFICATES, HEALTH_MOVES, HEALTHS
from veery.cluster.memory import MemoryStore
from veery.config.settings import HealthSettings
from veery.errors import Refused
from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source
from veery.host import tls
from veery.host.clock import RealClock
from veery.host.tasks import stop
from veery.model.node import Node, Role
from veery.model.verdict import HealthMove, HealthRecord, MoveOutcome, MovePromise, MoveResult, NodeVerdict
from veery.node.health import Health
from veery.node.peers import Peers

AT = {"a": "127.0.0.1", "b": "127.0.0.2"}
WAIT_S = 60.0


async def _awake(_: web.Request) -> web.Response:
    """What a node is asked first, to see that it answers at all."""
    return answer({})


class Failing:
    """A sensor that finds its disk failed."""

    name = "smart"

    def read(self, source: Source) -> str:
        return "FAILED"

    def judge(self, series: Series[str]) -> Iterator[Sign]:
        yield sign(self.name, "sda", Level.BAD, series.last, "the disk says that it fails")


class Pair:
    """The APIs of two nodes; the disk of b fails."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ports = folder, dict.fromkeys(AT, 0)
        authority = tls.make_ca("lab", epoch=time.time())
        for name, address in AT.items():
            now, request = time.time(), tls.make_request(name)
            cert = tls.sign(authority, request.cert, name=name, addresses=[address], epoch=now)
            tls.write_folder(folder / name, ca=authority.cert, node=tls.KeyPair(cert, request.key))
        self.peers = {name: Peers(tls.client_context(folder / name), self.find) for name in AT}
        self.store, self.apis, self.tasks = MemoryStore(RealClock()), list[ApiServer](), list[asyncio.Task[None]]()

    async def find(self, name: str) -> Node:
        if name not in AT:
            raise Refused(f"no node {name!r}", hint="veery node list")
        return Node(name=name, address=AT[name], roles=(Role.VOTER,), api_port=self.ports[name])

    async def open(self) -> None:
        for name in AT:
            record = revocation.certificate((self.folder / name / "server-cert.pem").read_text())
            await self.store.commit([], [CERTIFICATES.put(name, record)])
        for name, address in AT.items():
            own = tls.Shown(name, revocation.certificate((self.folder / name / "server-cert.pem").read_text()).serial)
            admission = Admission(self.store, own, self.folder / f"{name}.json")
            settings = HealthSettings(root=str(self.folder / "sensors"), pace=0.001)
            sensors = [Failing()] if name == "b" else []
            health = Health(name, self.store, RealClock(), self.folder / name, settings, sensors=sensors)
            routes = HealthRoutes(name, health, self.store, peers=self.peers[name])
            tables = [routes.table(), [web.get("/v1/ca", _awake)]]
            api = ApiServer(name, self.peers[name], tables, admission=admission, member=lambda _: True)
            with socket.socket() as free:
                free.bind((address, 0))
                self.ports[name] = free.getsockname()[1]
            api.bind(address, self.ports[name])
            await api.open(self.folder / name / "api.sock", tls.server_context(self.folder / name))
            self.apis.append(api)
            self.tasks += [asyncio.create_task(admission.run()), asyncio.create_task(health.run())]
        async with asyncio.timeout(WAIT_S):
            while (await HEALTHS.get(self.store, "b") or HealthRecord()).verdict is not NodeVerdict.EVACUATE:
                await asyncio.sleep(0.05)

    async def close(self) -> None:
        for peers in self.peers.values():
            await peers.close()
        for api in self.apis:
            await api.close()
        await stop(*self.tasks)

    async def ask(self, name: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """As the command line on node `name` asks."""
        way = aiohttp.UnixConnector(str(self.folder / name / "api.sock"))
        async with (
            aiohttp.ClientSession(connector=way) as session,
            session.request(method, f"http://veery{path}", json=body) as response,
        ):
            return response.status, await response.json()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    made = Pair(tmp_path)
    await made.open()
    yield made
    await made.close()


async def test_the_health_of_any_node_is_asked_at_any_node(pair: Pair) -> None:
    for asked in AT:
        status, found = await pair.ask(asked, "GET", "/v1/nodes/b/health")
        assert status == 200, found
        assert (found["node"], found["record"]["verdict"]) == ("b", "evacuate")
        assert found["record"]["signs"][0]["sentence"] == "the disk says that it fails"
        assert [each["sensor"] for each in found["sensors"]] == ["smart"]
    status, found = await pair.ask("a", "GET", "/v1/verdicts")
    assert (status, found["b"]["verdict"]) == (200, "evacuate")


async def test_the_moves_that_verdicts_caused_are_told_by_any_node(pair: Pair) -> None:
    promised, ended = MovePromise(gap_ms=100.0, total_ms=2000.0), MoveOutcome(result=MoveResult.DONE, total_ms=2100.0)
    record = HealthMove(
        at=1.0, domain="web", source="b", target="a", reason="smart sda: it fails", promised=promised, outcome=ended
    )
    await pair.store.commit([], [HEALTH_MOVES.put("1", record)])
    for asked in AT:
        status, (found,) = await pair.ask(asked, "GET", "/v1/verdicts/moves")
        assert (status, found["domain"], found["promised"]["gap_ms"]) == (200, "web", 100.0)
        assert found["outcome"] == {"result": "done", "paused_ms": None, "total_ms": 2100.0, "error": ""}


async def test_an_operator_says_well_through_another_node(pair: Pair) -> None:
    status, record = await pair.ask("a", "POST", "/v1/nodes/b/well", {"sensor": "smart", "by": "anna"})
    assert (status, record["verdict"]) == (200, "well")
    async with asyncio.timeout(WAIT_S):
        while (await HEALTHS.get(pair.store, "b") or HealthRecord()).verdict is not NodeVerdict.WELL:
            await asyncio.sleep(0.05)
    _, found = await pair.ask("b", "GET", "/v1/nodes/b/health")
    assert any("anna" in each["text"] and "smart is well" in each["text"] for each in found["history"])


async def test_the_name_in_an_order_is_cut_and_made_printable(pair: Pair) -> None:
    """health.json has a bound: two long names would have made veeryd forget all facts at its next start."""
    name = "an\x1b[31mna\n" + "x" * 900_000
    status, _ = await pair.ask("b", "POST", "/v1/nodes/b/well", {"by": name})
    assert status == 200
    _, found = await pair.ask("b", "GET", "/v1/nodes/b/health")
    (text,) = [each["text"] for each in found["history"] if "says that the node is well" in each["text"]]
    assert text.startswith("an?[31mna?xxx")
    assert len(text) < 200


@pytest.mark.parametrize("body", [{"sensor": 7}, {"sensor": "nothing"}, []])
async def test_a_bad_word_is_refused(pair: Pair, body: Any) -> None:
    status, found = await pair.ask("b", "POST", "/v1/nodes/b/well", body)
    assert status in (400, 409)
    assert found["error"]["kind"] == "refused"


async def test_what_a_node_sent_on_is_not_sent_on_again(pair: Pair) -> None:
    with pytest.raises(Refused, match="this is b, not 'c'"):
        await pair.peers["a"].call("b", "GET", "/v1/nodes/c/health", deadline=WAIT_S)


async def test_an_order_that_another_node_does_not_know_names_its_veery(pair: Pair) -> None:
    with pytest.raises(Refused, match="the veery on b does not know this order: POST /v1/unheard") as refused:
        await pair.peers["a"].call("b", "POST", "/v1/unheard?of=1", {})
    assert refused.value.hint == "upgrade veery on b; veery version -a shows all versions"
