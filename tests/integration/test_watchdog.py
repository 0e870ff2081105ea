"""A node's watchdog, with one that really ends the node: when it is fed, when not, and what that proves."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from node_parts import Node, scan, until

from veery.cluster.keys import ARMED
from veery.cluster.memory import MemoryStore
from veery.errors import Refused
from veery.ha.fence.base import NotProven
from veery.ha.fence.watchdog import MARGIN_S, WatchdogFence, fires_after
from veery.host.clock import RealClock
from veery.host.process import Process
from veery.host.watchdog import KernelWatchdog, SocketWatchdog, arm
from veery.lab import faults
from veery.lab.plan import NAMESPACES
from veery.lab.services import Lab
from veery.model.fence import Armed, Fenced
from veery.model.ha import FenceRecord, FenceState

TIMEOUT = 15
FENCE = Fenced(node="test1", iqn="", created=7, record=FenceRecord(state=FenceState.FENCING, revision=7))


@dataclass(frozen=True)
class Dog:
    socket: Path
    process: Process
    log: Path

    def said(self) -> list[str]:
        """What it has done, in order."""
        return self.log.read_text().split()


async def _dog(socket: Path, namespace: Path, log: Path) -> Dog:
    process = Process.spawn([sys.executable, "-m", "veery.lab.softdog", socket, namespace], log_file=log)
    made = Dog(socket, process, log)
    await until(lambda: _there(made), "the dog listens")
    return made


async def _there(dog: Dog) -> bool:
    assert dog.process.alive()
    return dog.socket.exists()


@pytest.fixture
async def dog(lab: Lab, tmp_path: Path) -> AsyncIterator[Dog]:
    """test1 with a watchdog, a short lease and a short patience."""
    made = await _dog(tmp_path / "dog", NAMESPACES / lab.plan.namespace("test1"), tmp_path / "dog.log")
    path = lab.plan.settings("test1")
    before = path.read_text()
    rows = f'[guard]\nend = 4.0\n[watchdog]\ndevice = "{made.socket}"\ntimeout = {TIMEOUT}\n'
    try:
        path.write_text(f"presence_ttl = 4\n{before}\n{rows}")
        await _stop(lab)
        await lab.start("test1")
        await lab.healthy()
        yield made
    finally:
        await made.process.stop(grace=0)
        path.write_text(before)
        await faults.heal(lab, "test1")
        if any(one.program == "veeryd" for one in lab.members("test1")):
            await _stop(lab)
        await lab.start("test1")
        await lab.healthy()


async def _stop(lab: Lab) -> None:
    """End veeryd in good order."""
    (daemon,) = faults.find(lab, "test1", "veeryd")
    daemon.process.send(signal.SIGTERM)
    await daemon.process.gone()


async def _armed(lab: Lab) -> dict[str, Any]:
    return await scan(lab, "armed/")


async def test_it_is_disarmed_in_good_order_and_else_ends_the_node(dog: Dog, lab: Lab, far: Node) -> None:
    record = await until(lambda: _armed(lab), "test1 has declared its watchdog")
    assert record["test1"]["timeout"] == TIMEOUT
    tested = await far.veery("fence", "test", "test1")
    assert f"armed, with {TIMEOUT} s" in tested

    await _stop(lab)
    assert await _armed(lab) == {}
    assert dog.said() == ["armed", "disarmed"]
    await lab.start("test1")
    await until(lambda: _armed(lab), "declared again")

    await faults.kill(lab, "test1", "veeryd")  # a crash: the next daemon is in time
    await lab.start("test1")

    async def rearmed() -> bool:
        return dog.said() == ["armed", "disarmed", "armed", "armed"] and bool(await _armed(lab))

    await until(rearmed, "fed by the next daemon")
    await faults.cut(lab, "test1")
    assert lab.members("test1")
    await until(lambda: _dead(lab), "test1 ended by its watchdog")
    assert dog.said()[-1] == "fired"
    assert list(await _armed(lab)) == ["test1"]  # what stands there is what makes it proof


@pytest.mark.slow
async def test_it_is_fed_while_the_store_is_down_for_all(dog: Dog, lab: Lab) -> None:
    await until(lambda: _armed(lab), "test1 has declared its watchdog")
    stopped = [*faults.find(lab, "stor", "etcd"), *faults.find(lab, "test2", "etcd")]
    for one in stopped:
        one.process.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(4 + TIMEOUT + 3)
        assert dog.process.alive()
    finally:
        for one in stopped:
            one.process.send(signal.SIGCONT)
    await lab.healthy()
    assert dog.said() == ["armed"]


async def _dead(lab: Lab) -> bool:
    return not lab.members("test1")


async def test_what_the_leader_may_conclude() -> None:
    store = MemoryStore(RealClock())
    way = WatchdogFence(store)
    with pytest.raises(Refused, match="test1 has no armed watchdog"):
        await way.off(FENCE, 1000.0)
    with pytest.raises(NotProven, match="no armed watchdog"):
        await way.proof(FENCE, 1000.0)
    armed = Armed(node="test1", timeout=30, device="/dev/watchdog")
    await store.commit([], [ARMED.put("test1", armed)])
    assert (fires_after(armed), fires_after(None)) == (30 + MARGIN_S, 0.0)
    await way.off(FENCE, 0.0)
    with pytest.raises(NotProven, match="will have fired for certain in 5 s"):
        await way.proof(FENCE, 30.0)
    assert "absent for 35 s" in (await way.proof(FENCE, 35.0)).seen


def _disarmed(made: SocketWatchdog) -> None:
    made.feed()
    made.disarm()


def _abandoned(made: SocketWatchdog) -> None:
    made.feed()
    made.abandon()


@pytest.mark.parametrize(("leave", "fires"), [(_disarmed, False), (_abandoned, True)])
async def test_only_a_magic_close_disarms(tmp_path: Path, leave: Callable[[SocketWatchdog], None], fires: bool) -> None:
    dog = await _dog(tmp_path / "dog", tmp_path / "no-namespace", tmp_path / "log")
    try:
        made = await asyncio.to_thread(arm, str(dog.socket), 2)
        assert isinstance(made, SocketWatchdog)
        assert made.timeout == 2
        for _ in range(6):
            await asyncio.sleep(0.5)
            made.feed()
        assert dog.process.alive()
        leave(made)
        if fires:
            async with asyncio.timeout(30):
                await dog.process.gone()
        else:
            await asyncio.sleep(3)
            assert dog.process.alive()
    finally:
        await dog.process.stop(grace=0)


def test_what_is_no_watchdog_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(Refused, match="is no watchdog"):
        KernelWatchdog(file, 30)
    assert file.read_bytes() == b"V"  # had it been one, it would be disarmed again
    with pytest.raises(Refused, match="No such file"):
        arm(str(tmp_path / "nothing"), 30)
