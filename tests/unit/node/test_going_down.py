"""A machine that is shut down: its domains are ended here, and free to start elsewhere."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from veery.cluster.keys import ALIVE, RUNS
from veery.cluster.memory import MemoryStore
from veery.cluster.presence import Heartbeat
from veery.errors import Failed, Refused
from veery.ha import orders
from veery.ha.simulation.clock import TrueClock, run
from veery.host import systemd
from veery.host.tasks import stop
from veery.model.domain import DomainReading, DomainState
from veery.model.ha import RunRecord
from veery.node import goingdown


class FewDomains:
    """good powers off when it is asked; deaf does not; busy is not to be ended."""

    def __init__(self, clock: TrueClock) -> None:
        self.clock = clock
        self.here = {
            name: DomainReading(
                domid=number,
                name=name,
                uuid=name,
                state=DomainState.RUNNING,
                memory=1,
                vcpus=1,
                cpu_seconds=0.0,
                started=0.0,
            )
            for number, name in enumerate(("good", "deaf", "busy"), 1)
        }
        self.ended: dict[str, float] = {}

    async def list(self) -> tuple[DomainReading, ...]:
        return tuple(self.here.values())

    async def power_off(self, name: str) -> None:
        if name == "busy":
            raise Refused("busy is being moved")
        if name == "good":
            self.here[name] = dataclasses.replace(self.here[name], state=DomainState.SHUTDOWN)

    async def put_away(self, name: str) -> None:
        if name == "busy":
            raise Failed("busy does not end")
        del self.here[name]
        self.ended[name] = self.clock.now()


def test_domains_are_ended_when_the_guests_have_had_their_time_and_the_lease_goes_first() -> None:
    async def play() -> None:
        clock = TrueClock()
        store = MemoryStore(clock)
        heartbeat = Heartbeat(store, "test1", ttl=5, clock=clock)
        task = asyncio.create_task(heartbeat.run())
        await asyncio.sleep(1)
        assert await ALIVE.get(store, "test1")
        await stop(task)
        home = FewDomains(clock)
        begun = clock.now()
        ending = asyncio.create_task(goingdown.end_domains(home, heartbeat, clock))
        await asyncio.sleep(1)
        assert await ALIVE.get(store, "test1") is None, "nothing is given to a node that goes down"
        assert home.ended == {}
        await ending
        assert sorted(home.ended) == ["deaf", "good"]
        assert min(home.ended.values()) - begun >= goingdown.GUESTS_S
        assert list(home.here) == ["busy"], "its owner key stays: this node is fenced before it starts elsewhere"

    run(play())


def test_nothing_is_ended_where_the_store_does_not_answer() -> None:
    async def play() -> None:
        clock = TrueClock()
        store = MemoryStore(clock)
        heartbeat = Heartbeat(store, "test1", ttl=5, clock=clock)
        task = asyncio.create_task(heartbeat.run())
        await asyncio.sleep(1)
        await stop(task)
        store.set_available(False)
        home = FewDomains(clock)
        await goingdown.end_domains(home, heartbeat, clock)
        assert home.ended == {}

    run(play())


@pytest.mark.parametrize(
    ("record", "tries"),
    [
        (RunRecord(node="test1", tries=2), 1),
        (RunRecord(node="test1", tries=2, failed=("test1",)), 2),
        (RunRecord(node="test2", tries=2), 2),
        (RunRecord(node="test1"), 0),
    ],
)
def test_a_run_that_ends_with_its_machine_is_no_failed_try(record: RunRecord, tries: int) -> None:
    async def play() -> None:
        store = MemoryStore(TrueClock())
        await store.commit([], [RUNS.put("web", record)])
        await orders.spare(store, "web", "test1")
        now = await RUNS.get(store, "web")
        assert now is not None
        assert now.tries == tries
        await orders.spare(store, "unknown", "test1")

    run(play())


@pytest.mark.parametrize(
    ("says", "down"), [("echo stopping; exit 1", True), ("echo running", False), ("echo offline; exit 1", False)]
)
async def test_systemd_says_whether_the_machine_goes_down(tmp_path: Path, says: str, down: bool) -> None:
    script = tmp_path / "systemctl"
    script.write_text(f"#!/bin/sh\n{says}\n")
    script.chmod(0o755)
    assert await systemd.going_down(argv=(str(script), "is-system-running")) is down
    assert not await systemd.going_down(argv=(str(tmp_path / "none"),))
