"""Bodies that describe domains: what no domain file could describe is refused before anything is ordered."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from api_parts import serving
from test_api_server import ADDRESS

from veery.api.domains import DomainRoutes
from veery.cluster.memory import MemoryStore
from veery.host.clock import RealClock
from veery.model.codec import plain
from veery.model.domain import Adjustment, DiskSpec, DomainReading, DomainSpec, DomainState, VifSpec
from veery.model.node import Node, Role
from veery.node.peers import Peers

UUID = "6f3c1a52-9d7e-4b7c-8c55-0d5a4a3c1b2e"
SPEC = DomainSpec(name="web", kernel="/boot/vmlinuz", xl=(("vncpasswd", '"secret"'), ("cap", "50")))
READING = DomainReading(
    name="web", uuid=UUID, domid=1, state=DomainState.RUNNING, memory=64, vcpus=1, cpu_seconds=0.0, started=0.0
)
HOME = Node(name="a", address=ADDRESS, roles=(Role.HYPERVISOR,))
QUESTION = {
    "domain": "web",
    "source": "a",
    "driver": "qemu",
    "spec": {**plain(SPEC), "uuid": UUID},
    "luggage": '{"machine":"pc-q35-9.0"}',
    "home": plain(HOME),
}
HOSTILE = ("../x", "/etc", "a,b", "a\nb", "a\x1b[31m", "a\x00", "x" * 100_000)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon lets root in")


class Orders:
    """Stands where domains and devices are: notes what it is asked to do."""

    node = "a"

    def __init__(self) -> None:
        self.given: list[Any] = []

    async def create(self, spec: DomainSpec, *, paused: bool = False, force: bool = False) -> DomainReading:
        self.given.append(spec)
        return READING

    async def find(self, ref: str) -> DomainReading:
        return READING

    async def spec(self, ref: str) -> DomainSpec:
        return SPEC

    async def owner(self, name: str) -> None:
        return None

    async def attach_disk(self, ref: str, disk: DiskSpec) -> None:
        self.given.append(disk)

    async def attach_vif(self, ref: str, vif: VifSpec) -> VifSpec:
        self.given.append(vif)
        return vif

    async def warnings(self, ref: str) -> tuple[str, ...]:
        return ()

    def disk_warnings(self, disk: DiskSpec) -> tuple[str, ...]:
        return ()

    def vif_warnings(self, made: VifSpec, asked: VifSpec) -> tuple[str, ...]:
        return ()

    async def reply(self, question: Any) -> dict[str, Any]:
        self.given.append(question)
        return {}


class Api:
    """An API on a unix socket, used by root."""

    def __init__(self, session: aiohttp.ClientSession, orders: Orders) -> None:
        self.session, self.orders = session, orders

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.session.post(f"http://x{path}", json=body) as response:
            return response.status, await response.json()

    async def refuses(self, path: str, body: Any) -> None:
        status, told = await self.post(path, body)
        assert 400 <= status < 500, told
        assert told["error"]["kind"] == "refused"
        assert told["error"]["message"].isprintable()
        assert len(told["error"]["message"]) < 1000
        assert self.orders.given == []


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    orders: Any = Orders()
    near: Any = SimpleNamespace()

    def table(peers: Peers) -> list[web.RouteDef]:
        return DomainRoutes(orders, orders, orders, near, near, peers=peers, store=near).table()

    async with serving(tmp_path, MemoryStore(RealClock()), table) as session:
        yield Api(session, orders)


async def test_a_good_body_is_ordered(api: Api) -> None:
    assert (await api.post("/v1/domains", {"spec": plain(SPEC)}))[0] == 200
    assert (await api.post("/v1/domains/web/disks", {"disk": {"vdev": "xvdb", "volume": "data"}}))[0] == 200
    assert (await api.post("/v1/domains/web/vifs", {"vif": {"bridge": "xenbr0"}}))[0] == 200
    assert (await api.post("/v1/question", QUESTION))[0] == 200
    assert len(api.orders.given) == 4


@pytest.mark.parametrize("value", HOSTILE)
async def test_hostile_bodies(api: Api, value: str) -> None:
    for field in ("name", "uuid"):
        await api.refuses("/v1/domains", {"spec": {**plain(SPEC), field: value}})
    for field in ("vdev", "volume", "backend", "backendtype", "specification"):
        await api.refuses("/v1/domains/web/disks", {"disk": {"vdev": "xvda", "target": "/x", field: value}})
    for field in ("mac", "vifname", "bridge", "model", "type", "gatewaydev"):
        await api.refuses("/v1/domains/web/vifs", {"vif": {field: value}})
    for field in ("machine", "cpu"):
        await api.refuses("/v1/question", {**QUESTION, "luggage": json.dumps({field: value})})
    await api.refuses("/v1/question", {**QUESTION, "spec": {**plain(SPEC), "uuid": value}})


@pytest.mark.parametrize("number", [-1, 0, 1 << 40, 1 << 63, "many", None, 1.5])
async def test_numbers(api: Api, number: Any) -> None:
    for field in ("memory", "vcpus"):
        await api.refuses("/v1/domains", {"spec": {**plain(SPEC), field: number}})


async def test_passwords_are_not_shown(api: Api) -> None:
    async with api.session.get("http://x/v1/domains/web") as response:
        text = await response.text()
    assert "secret" not in text
    assert '["cap","50"]' in text
    assert "secret" not in str(await api.post("/v1/domains", {"spec": plain(SPEC)}))


async def test_an_adjustment_is_read_strictly(api: Api) -> None:
    adjusted: list[Any] = []

    async def adjust(ref: str, change: Any) -> None:
        adjusted.append((ref, change))

    api.orders.adjust = adjust  # type: ignore[attr-defined]
    for body in ({}, {"vcpus": "2"}, {"maxmem": 1.5}, {"hard": ["0"]}, {"weight": True}):
        await api.refuses("/v1/domains/web/adjust", body)
    assert adjusted == []
    assert (await api.post("/v1/domains/web/adjust", {"vcpu": 1, "hard": "0-1"}))[0] == 200
    assert adjusted == [("web", Adjustment(vcpu=1, hard="0-1"))]
