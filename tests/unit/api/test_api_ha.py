"""Orders to the brain over the API."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from api_parts import serving

from veery.api.ha import REASON_MAX, HaRoutes
from veery.api.server import AUTHOR_MAX
from veery.cluster.keys import DISARM, DISARMED
from veery.cluster.memory import MemoryStore
from veery.host.clock import RealClock
from veery.model.ha import Disarmed, Rules
from veery.node.ha_service import HaService
from veery.node.peers import Peers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon lets root in")


class Api:
    """The API of one node on a unix socket, used by root."""

    def __init__(self, session: aiohttp.ClientSession, store: MemoryStore) -> None:
        self.session, self.store = session, store

    async def disarmed(self, order: Any) -> Disarmed:
        """Disarm the cluster by `order`; the record."""
        async with self.session.post("http://x/v1/disarm", json=order) as response:
            assert response.status == 200, await response.text()
        record = await DISARM.get(self.store, DISARMED)
        assert record is not None
        return record


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    store, clock = MemoryStore(RealClock()), RealClock()
    nothing: Any = SimpleNamespace()

    def table(peers: Peers) -> list[web.RouteDef]:
        service = HaService("a", store, records=store, brain=None, rules=Rules(), peers=peers, clock=clock)
        return HaRoutes(service, nothing, peers=peers, node_cache=nothing).table()

    async with serving(tmp_path, store, table) as session:
        yield Api(session, store)


async def test_a_reason_is_kept_as_it_is(api: Api) -> None:
    record = await api.disarmed({"by": "anna", "reason": "der Switch wird getauscht (Übung)"})
    assert (record.by.partition("@")[0], record.reason) == ("anna", "der Switch wird getauscht (Übung)")
    record = await api.disarmed({})
    assert (record.by.partition("@")[0], record.reason) == ("root", "")


async def test_a_reason_is_cut_and_made_printable(api: Api) -> None:
    """It is in a record, and in the reason of every note until `veery arm`."""
    reason = "a\x1b[31mb\n" + "x" * 90_000
    record = await api.disarmed({"by": reason, "reason": reason})
    assert len(record.reason) == REASON_MAX
    assert record.reason.isprintable()
    assert len(record.by.partition("@")[0]) == AUTHOR_MAX
    assert record.reason.startswith("a?[31mb?xxx")


@pytest.mark.parametrize("reason", [["x" * 90_000], {"a": "\x00" * 20_000}, 7])
async def test_a_reason_that_is_no_text_is_refused(api: Api, reason: Any) -> None:
    async with api.session.post("http://x/v1/disarm", json={"reason": reason}) as response:
        told = await response.json()
    assert (response.status, told["field"]) == (400, "reason")
    assert await DISARM.get(api.store, DISARMED) is None
