"""The lab's machines without their services: wires, cuts, the probe, and clearing away after any end."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from veery.errors import Failed
from veery.host.process import Process
from veery.lab import faults, hosts
from veery.lab.faults import Direction, Net
from veery.lab.lock import LabLock, read
from veery.lab.plan import CLIENT, NAMESPACES, Plan, plan
from veery.lab.probe import Probe
from veery.lab.services import Lab

TEST1, TEST2 = "172.16.31.1", "172.16.31.2"

KILLED = """
import asyncio, os, signal, subprocess, sys
from veery.lab import hosts
from veery.lab.lock import LabLock, Record
from veery.lab.plan import plan
drawn = plan(sys.argv[1])
held = LabLock(drawn.lab)
held.write(Record(str(drawn.folder), 2, os.getpid(), sys.argv[2] == "stays"))
drawn.home("test1").mkdir(parents=True)
asyncio.run(hosts.build(drawn))
left = subprocess.Popen(hosts.enter(drawn.namespace("test1"), ["sleep", "600"]), stdout=subprocess.DEVNULL)
print(left.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
async def bare() -> AsyncIterator[Lab]:
    """A lab of wires only."""
    drawn = plan(f"h{os.getpid()}")
    lab = Lab(drawn, LabLock(drawn.lab))
    try:
        await hosts.build(drawn)
        yield lab
    finally:
        await lab.down()


def namespaces(drawn: Plan) -> list[str]:
    return [name for name in drawn.namespaces() if (NAMESPACES / name).exists()]


async def sleep(lab: Lab, node: str) -> None:
    """Start a process that stays on `node`; returns once it is inside."""
    Process.spawn(lab.enter(node, ["sleep", "600"]), log_file=lab.log(node, "sleep"))
    for _ in range(2000):
        if "sleep" in {member.program for member in lab.members(node)}:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"sleep is not on {node}")


async def probe_of(lab: Lab, *addresses: str) -> Probe:
    return await Probe.start(partial(lab.enter, CLIENT), addresses, interval=0.002)


async def test_the_client_reaches_the_nodes_and_sees_a_cut(bare: Lab) -> None:
    probe = await probe_of(bare, TEST1, TEST2)
    try:
        await probe.answered(deadline=30)
        await probe.mark()
        await faults.cut(bare, "test1")
        await asyncio.sleep(0.3)
        with pytest.raises(Failed, match=r"no answer from 172\.16\.31\.1 within"):
            await probe.answered(deadline=0.1)
        await faults.heal(bare, "test1")
        await probe.answered(deadline=30)
        readings = await probe.read()
    finally:
        await probe.stop()
    cut, whole = readings[TEST1], readings[TEST2]
    assert cut.gap_ms is not None
    assert whole.gap_ms is not None
    assert cut.gap_ms > 90
    assert cut.lost > 20
    assert cut.gap_ms > whole.gap_ms
    assert whole.lost < cut.lost


@pytest.mark.parametrize(
    ("net", "direction", "reached"),
    [
        (Net.STORAGE, Direction.BOTH, [8001]),
        (Net.CLUSTER, Direction.BOTH, [3260]),
        (Net.CLUSTER, Direction.IN, [3260]),
        (Net.STORAGE, Direction.OUT, [8001]),
    ],
)
async def test_one_network_is_cut_alone(bare: Lab, net: Net, direction: Direction, reached: list[int]) -> None:
    """A refused connection has come through: nobody listens in this lab."""

    async def answers(where: str, address: str) -> list[int]:
        code = (
            "import socket, sys\n"
            "for port in (8001, 3260):\n"
            "    try: socket.create_connection((sys.argv[1], port), timeout=1)\n"
            "    except ConnectionRefusedError: print(port)\n"
            "    except TimeoutError: pass\n"
        )
        return [int(word) for word in (await bare.run(where, [sys.executable, "-c", code, address])).out.split()]

    assert await answers("test1", TEST2) == [8001, 3260]
    await faults.cut(bare, "test1", direction, net)
    assert await answers("test1", TEST2) == reached
    assert await answers("test2", TEST1) == reached
    await faults.heal(bare, "test1")
    assert await answers("test1", TEST2) == [8001, 3260]


@pytest.mark.parametrize(
    ("direction", "hears", "is_heard"),
    [(Direction.IN, False, True), (Direction.OUT, True, False), (Direction.BOTH, False, False)],
)
async def test_each_direction_is_cut_alone(bare: Lab, direction: Direction, hears: bool, is_heard: bool) -> None:
    """The kernel's own counters tell what arrived; static neighbours keep ARP out of it."""
    macs = {node.name: node.mac for node in bare.plan.nodes}
    await bare.run("test1", ["ip", "neigh", "replace", TEST2, "lladdr", macs["test2"], "dev", "xenbr0"])
    await bare.run("test2", ["ip", "neigh", "replace", TEST1, "lladdr", macs["test1"], "dev", "xenbr0"])
    await faults.cut(bare, "test1", direction)
    before = {name: await received(bare, name) for name in ("test1", "test2")}
    for name, address in (("test1", TEST2), ("test2", TEST1)):
        code = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{address}', 9))"
        await bare.run(name, [sys.executable, "-c", code])
    after = {name: await received(bare, name) for name in ("test1", "test2")}
    assert (after["test1"] > before["test1"]) is hears
    assert (after["test2"] > before["test2"]) is is_heard


async def received(lab: Lab, node: str) -> int:
    """UDP datagrams that came in for a port where nobody listens."""
    rows = (await lab.run(node, ["cat", "/proc/net/snmp"])).out.splitlines()
    names, values = [row.split()[1:] for row in rows if row.startswith("Udp:")]
    return int(dict(zip(names, values, strict=True))["NoPorts"])


async def test_power_off_ends_everything_on_one_node_only(bare: Lab) -> None:
    for node in ("test1", "test2"):
        await sleep(bare, node)
        (bare.plan.home(node) / "run").mkdir(parents=True)
    (bare.plan.home("test1") / "run" / "x.sock").touch()
    await bare.run("test1", ["ip", "tuntap", "add", "dev", "vif1.0", "mode", "tap"])
    assert {member.program for member in faults.find(bare, "test1", "sleep")} == {"sleep"}
    await faults.power_off(bare, "test1")
    assert bare.members("test1") == ()
    assert [member.program for member in bare.members("test2")] == ["sleep"]
    assert "vif1.0" not in (await bare.run("test1", ["ip", "link"])).out
    assert list((bare.plan.home("test1") / "run").iterdir()) == []


async def test_frozen_processes_stand_still_until_thawed(bare: Lab) -> None:
    await sleep(bare, "test1")
    (frozen,) = await faults.freeze(bare, "test1")
    assert state(frozen.process.pid) == "T"
    faults.thaw(bare, "test1")
    async with asyncio.timeout(20):  # it goes on when the scheduler comes to it
        while state(frozen.process.pid) not in "RS":
            await asyncio.sleep(0.02)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_nothing_of_a_lab_shows_outside(bare: Lab) -> None:
    shown = subprocess.run(["ip", "-o", "addr"], check=True, capture_output=True, text=True, timeout=20).stdout  # noqa: ASYNC221
    assert "172.16.31." not in shown
    assert "xenbr0" not in shown
    assert (await bare.run("test1", ["ip", "-br", "addr", "show", "xenbr0"])).out.split()[2] == "172.16.31.1/16"


def run_and_die(lab: str, how: str) -> int:
    """A run that builds `lab` and is killed with -9; the pid of a process it leaves on test1."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, lab, how], check=False, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == -9
    return int(done.stdout)


async def test_a_killed_run_is_swept_by_the_next(bare: Lab) -> None:
    drawn = plan(f"k{os.getpid()}")
    left = run_and_die(drawn.lab, "goes")
    assert bare.plan.lab not in await hosts.sweep(drawn.folder.parent)  # another run may have swept drawn.lab first
    assert namespaces(drawn) == []
    assert not Path(f"/proc/{left}").exists() or state(left) == "Z"
    assert not drawn.folder.exists()
    assert read(drawn.lab) is None
    assert len(namespaces(bare.plan)) == 5


async def test_a_lab_made_to_stay_is_not_swept() -> None:
    drawn = plan(f"s{os.getpid()}")
    run_and_die(drawn.lab, "stays")
    try:
        assert drawn.lab not in await hosts.sweep(drawn.folder.parent)
        assert len(namespaces(drawn)) == 5
    finally:
        held = LabLock(drawn.lab)
        await hosts.remove(drawn.lab, drawn.folder)
        held.forget()
    assert namespaces(drawn) == []
