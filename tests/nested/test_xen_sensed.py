"""A fault that Xen logs in its own log is sensed in dom0: the domain moves away by itself."""

from __future__ import annotations

import asyncio
import time

import pytest
from crossing import alone, at_home, listed, settled, typed

from veery.lab.services import Lab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LOG = "(XEN) CPU0: Machine Check Exception: 0000000000000004\n(XEN) Bank 5: be00000000800400\n"
SENSED_S = 600.0  # for the reading, and a move in software emulation


async def test_a_machine_check_in_xens_log_moves_the_domain(xen: Lab) -> None:
    """`xl dmesg` of test1 tells of an uncorrected machine check. Nobody orders a move."""
    folder = xen.plan.sensors("test1")
    async with at_home(xen) as boot:
        await xen.veery("test1", "ha", "set", "busybox", "migrate-only")
        try:
            await xen.run("test1", ["mkdir", "-p", str(folder)])
            await xen.run("test1", ["tee", str(folder / "xl-dmesg.txt")], stdin=LOG.encode())
            ends = time.monotonic() + SENSED_S
            while await listed(xen) != ["test2"]:
                assert time.monotonic() < ends, (await xen.veery("stor", "why", "test1", check=False)).out
                await asyncio.sleep(2)
            why = (await xen.veery("stor", "why", "test1")).out
            assert "Xen saw an uncorrected machine check" in why, why
            assert await settled(xen) == "test2"
            await alone(xen, "test2")
            assert await typed(xen, "test2", "cat /proc/sys/kernel/random/boot_id") == boot
        finally:
            await xen.run("test1", ["rm", "-rf", str(folder)])
            await xen.veery("stor", "node", "well", "test1", check=False)
