"""veery moves a domain between real Xen hosts: there and back, and with a process killed on the way."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from functools import partial

import pytest
from _pytest.mark.structures import ParameterSet
from crossing import HOLD, MOVE, NODES, alone, appears, at_home, held, listed, moved, rows, settled, typed

from guest_parts import start_counting
from veery.lab.plan import CLIENT, DOMAIN_ADDRESS
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.xen import talk

pytestmark = pytest.mark.timeout(1800)

VICTIMS = {
    "xl migrate": ("test1", "xl migrate "),
    "xl migrate-receive": ("test2", "xl migrate-receive"),
    "source relay": ("test1", "xen.relay send"),
    "target relay": ("test2", "xen.relay receive"),
    "source veeryd": ("test1", "/veeryd"),
    "target veeryd": ("test2", "/veeryd"),
}


@pytest.mark.parametrize("kind", ["pv", "pvh"])
async def test_there_and_back(xen: Lab, kind: str) -> None:
    """It counts on in the same boot, on one node at a time; nothing of it is left where it is not."""
    async with at_home(xen, kind) as boot:
        assert await kinds(xen, "test1") == [kind]
        await start_counting(xen, "test1", "busybox")
        counted = 0
        probe = await Probe.start(partial(xen.enter, CLIENT), [DOMAIN_ADDRESS], interval=0.01)
        try:
            await probe.answered(deadline=120)
            for source, target in (NODES, NODES[::-1]):
                await probe.mark()
                begun = time.monotonic()
                await xen.veery(source, "migrate", "busybox", target, deadline=120)
                passed = time.monotonic() - begun
                await probe.answered(deadline=60)
                gap = (await probe.read())[DOMAIN_ADDRESS].gap_ms
                print(f"{kind}: {source} -> {target}: {passed:.1f} s, gap {gap} ms")
                assert await settled(xen) == target
                assert await kinds(xen, target) == [kind]
                assert await listed(xen) == [target]
                await alone(xen, target)
                before, counted = counted, int(await typed(xen, target, "cat /tmp/count"))
                assert counted > before
        finally:
            await probe.stop()
        assert await typed(xen, "test1", "cat /proc/sys/kernel/random/boot_id") == boot
    assert [await rows(xen, node) for node in NODES] == [[], []]


async def kinds(lab: Lab, node: str) -> list[str]:
    """The type of each domain on a node, as xl has them."""
    shown = json.loads((await lab.run(node, ["xl", "list", "-l"])).out)
    return [row["config"]["c_info"]["type"] for row in shown if row["domid"]]


def _killed() -> list[ParameterSet]:
    """Every victim in either phase; one is quick."""
    cases = [(victim, phase) for victim in VICTIMS for phase in ("COPY", "LOADED")]
    quick = ("xl migrate-receive", "LOADED")
    return [pytest.param(*case, marks=() if case == quick else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("victim", "phase"), _killed())
async def test_killed_on_the_way(xen: Lab, domain: str, victim: str, phase: str) -> None:
    """kill -9 while memory is copied, and with the domain loaded at the target and COMMIT still to come."""
    node, mark = VICTIMS[victim]
    before = xen.log("test1").read_text().count("held in LOADED")
    if phase == "LOADED":
        await xen.run("test1", ["sh", "-c", f"mkdir -p {HOLD}; touch {HOLD}/LOADED"])
    moving = asyncio.create_task(xen.veery("test1", *MOVE, "test2", deadline=120, check=False))
    try:
        if phase == "COPY":
            await appears(xen, "test2", "libxl-save-helper")
            await asyncio.sleep(1.0)
        else:
            await held(xen, before)
        process = await appears(xen, node, mark)
        await talk.send(xen.nested(node).namespace, process, signal.SIGKILL)
        if victim.endswith("veeryd"):
            await xen.start(node)
    finally:
        await xen.run("test1", ["rm", "-rf", HOLD])
        told = await moving
    where = await settled(xen)
    print(f"{victim} killed in {phase}: it runs on {where}; the move said {(told.out + told.err).strip()!r}")
    assert await typed(xen, where, "cat /proc/sys/kernel/random/boot_id") == domain
    assert await listed(xen) == [where]
    other = next(name for name in NODES if name != where)
    await alone(xen, where)
    await moved(xen, where, other)  # the next move works
    assert await settled(xen) == other
    await alone(xen, other)
    assert await typed(xen, other, "cat /proc/sys/kernel/random/boot_id") == domain
