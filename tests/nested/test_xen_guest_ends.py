"""A guest ends by itself while veery moves it between real Xen hosts."""

from __future__ import annotations

import asyncio
import time

import pytest
from crossing import HOLD, MOVE, NODES, alone, at_home, listed, moved, rows, settled, typed

from veery.errors import VeeryError
from veery.lab.services import Lab

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

BOOT = "cat /proc/sys/kernel/random/boot_id"
ENDS = {"poweroff": "poweroff -f", "panic": "echo c >/proc/sysrq-trigger", "reboot": "reboot -f"}
BOOTED_S = 240


async def booted_anew(lab: Lab, before: str) -> tuple[str, str]:
    """The node on which the domain runs in another boot than `before`, and that boot."""
    ends, said = time.monotonic() + BOOTED_S, ""
    while time.monotonic() < ends:
        where = await settled(lab)
        try:
            boot = await typed(lab, where, BOOT)
        except VeeryError as error:  # it ends, or begins
            said = error.message
            continue
        if boot != before:
            return where, boot
        await asyncio.sleep(1)
    raise AssertionError(f"no new boot within {BOOTED_S} s {said}")


async def in_copy(lab: Lab, before: int) -> None:
    """Return once the source holds one more move at the begin of COPY than `before`."""
    ends = time.monotonic() + BOOTED_S
    while lab.log("test1").read_text().count("held in COPY") == before:
        assert time.monotonic() < ends, "the move did not come to COPY"
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("how", ENDS)
async def test_the_guest_ends_in_the_copy(xen: Lab, how: str) -> None:
    """With restart for each end: it runs in one new boot on one node, and the next move works."""
    async with at_home(xen, end="restart") as before:
        held = xen.log("test1").read_text().count("held in COPY")
        await xen.run("test1", ["sh", "-c", f"mkdir -p {HOLD}; touch {HOLD}/COPY"])
        moving = asyncio.create_task(xen.veery("test1", *MOVE, "test2", deadline=240, check=False))
        try:
            await in_copy(xen, held)
            await typed(xen, "test1", f"(sleep 2; {ENDS[how]}) >/dev/null 2>&1 </dev/null & :")
        finally:
            await xen.run("test1", ["rm", "-rf", HOLD])
            told = await moving
        where, boot = await booted_anew(xen, before)
        print(f"{how} in COPY: it runs on {where}; the move said {(told.out + told.err).strip()!r}")
        assert await listed(xen) == [where]
        await alone(xen, where)
        other = next(name for name in NODES if name != where)
        await moved(xen, where, other)
        assert await settled(xen) == other
        await alone(xen, other)
        assert await typed(xen, other, BOOT) == boot
    assert [await rows(xen, node) for node in NODES] == [[], []]
