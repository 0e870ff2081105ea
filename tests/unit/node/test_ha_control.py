"""What the brain asks of a move's source: the forecast, the order, and the figures of the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from veery.cluster.memory import MemoryStore
from veery.errors import Failed
from veery.host.clock import RealClock
from veery.model.codec import plain
from veery.model.move import MoveReport, MoveSettings, MoveState, Phase
from veery.model.plan import Forecast, Plan
from veery.model.verdict import MoveOutcome, MovePromise, MoveResult
from veery.node.ha_control import PeerControl

FORECAST = Forecast(converges=True, total_ms=2000.0, gap_ms=120.0, bytes=1, rounds=2, rate=1.0, dirty_rate=0.0)
REPORT = MoveReport(
    id="5f0c3a",
    domain="web",
    source="a",
    target="b",
    state=MoveState.DONE,
    phase=Phase.CONFIRM,
    started=1.0,
    total_ms=2100.04,
    downtime_ms=30.0,
    rounds=3,
    phases={"BEGIN": 5.0, "COPY": 1900.0, "LOADED": 10.0, "COMMIT": 8.0, "FINISH": 12.0, "CONFIRM": 40.0},
)


class Peers:
    """A source that gives the answers that it is told."""

    def __init__(self, *events: dict[str, Any], plan: Plan | None = None) -> None:
        self.events, self.plan, self.orders = events, plan, list[tuple[str, Any]]()

    async def call(self, name: str, method: str, path: str, body: Any = None, *, deadline: float = 30.0) -> Any:
        self.orders.append((path, body))
        return plain(self.plan)

    async def open(self, name: str, method: str, path: str, *, json: Any = None) -> Any:
        self.orders.append((path, json))
        return self._response()

    @asynccontextmanager
    async def _response(self) -> AsyncIterator[Any]:
        lines = [json.dumps(each).encode() + b"\n" for each in self.events]

        async def readline() -> bytes:
            return lines.pop(0) if lines else b""

        yield SimpleNamespace(status=200, content=SimpleNamespace(readline=readline))


def _control(peers: Any) -> PeerControl:
    return PeerControl(MemoryStore(RealClock()), peers, {})


def _plan(forecast: Forecast | None) -> Plan:
    return Plan(domain="web", source="a", target="b", settings=MoveSettings(), possible=True, forecast=forecast)


@pytest.mark.parametrize("urgent", [False, True])
async def test_the_source_makes_the_forecast(urgent: bool) -> None:
    peers = Peers(plan=_plan(FORECAST))
    assert await _control(peers).forecast("web", "a", "b", urgent=urgent) == MovePromise(gap_ms=120.0, total_ms=2000.0)
    [(path, body)] = peers.orders
    assert path == "/v1/domains/web/plan"
    assert body["quick"] is urgent
    assert body["settings"] == ({"policy": "must-finish"} if urgent else {})


async def test_a_copy_that_would_not_end_promises_nothing() -> None:
    endless = Forecast(converges=False, total_ms=1, gap_ms=1, bytes=1, rounds=1, rate=1, dirty_rate=1, why="too busy")
    assert await _control(Peers(plan=_plan(endless))).forecast("web", "a", "b") == MovePromise(why="too busy")
    assert (await _control(Peers(plan=_plan(None))).forecast("web", "a", "b")).why == "the source gives no forecast"


async def test_the_end_has_the_figures_of_the_report() -> None:
    peers = Peers({"event": "begin", "move": "5f0c3a"}, {"event": "done", "result": plain(REPORT)})
    outcome = await _control(peers).move("web", "a", "b")
    assert outcome == MoveOutcome(result=MoveResult.DONE, paused_ms=60.0, total_ms=2100.0)
    assert peers.orders[0][1] == {"target": "b", "brain": True, "settings": {}}


async def test_a_hypervisor_without_figures_gives_no_pause() -> None:
    report = {**plain(REPORT), "downtime_ms": 0.0, "rounds": 0}
    outcome = await _control(Peers({"event": "done", "result": report})).move("web", "a", "b")
    assert (outcome.result, outcome.paused_ms, outcome.total_ms) == (MoveResult.DONE, None, 2100.0)


async def test_a_report_of_another_version_is_a_move_without_figures() -> None:
    told = {"event": "done", "result": {"strange": 1}}
    assert await _control(Peers(told)).move("web", "a", "b") == MoveOutcome(result=MoveResult.DONE)


async def test_a_move_that_fails_raises_what_the_source_says() -> None:
    error = {"kind": "failed", "message": "no room", "hint": "make room"}
    with pytest.raises(Failed, match="no room"):
        await _control(Peers({"event": "error", "error": error})).move("web", "a", "b")
