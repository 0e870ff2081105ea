"""xl(1): each call has a deadline and returns values. Domains are named by their domid.

xl's exit status says little, so the errors quote what it printed. A call that does not end in time is killed and raises
OutcomeUnknown: libxl may have done its work in the hypervisor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed
from veery.host import tasks
from veery.host.run import run
from veery.hypervisor.xen import parse
from veery.hypervisor.xen.parse import Info, Row
from veery.model.domain import VcpuReading

QUERY_DEADLINE_S = 60.0
"""For a question. Real hosts answer in 20 ms, software emulation in 200; a busy one in ten seconds."""
ORDER_DEADLINE_S = 120.0
"""For an order: xl waits for devices, and libxl itself gives a hotplug script 40 s (libxl_internal.h)."""
LIBXL = (sys.executable, "-m", "veery.hypervisor.xen.libxl")
STREAM_DEADLINE_S = 600.0
"""To write or read a save file."""


@dataclass(frozen=True, slots=True)
class Xl:
    """One node's xl; `program` is its name or path."""

    program: str = "xl"

    # ---- questions

    async def rows(self) -> tuple[Row, ...]:
        """Return every domain, Domain-0 too."""
        return parse.rows(await self._run("list", "-v", deadline=QUERY_DEADLINE_S))

    async def info(self) -> Info:
        """Return hypervisor and machine. Raises Refused where xl is not installed, Failed where Xen does not run."""
        return parse.info(await self._run("info", deadline=QUERY_DEADLINE_S))

    async def dmesg(self) -> str:
        """Return the hypervisor's own log."""
        return await self._run("dmesg", deadline=QUERY_DEADLINE_S)

    async def vcpus(self, domid: int) -> tuple[VcpuReading, ...]:
        """Return a domain's processors."""
        return parse.vcpus(await self._run("vcpu-list", str(domid), deadline=QUERY_DEADLINE_S))

    # ---- orders

    async def create(self, config: Path, *, paused: bool) -> None:
        """Start what `config` describes. No xl stays behind to wait for its end (-e): the node applies its on_*."""
        await self._run("create", "-e", "-q", *(["-p"] if paused else []), str(config), deadline=ORDER_DEADLINE_S)

    async def restore(self, config: Path, path: Path, *, paused: bool) -> None:
        """Start what `save` wrote to `path`, as `config` says."""
        await self._run(
            "restore", "-e", *(["-p"] if paused else []), str(config), str(path), deadline=STREAM_DEADLINE_S
        )

    async def save(self, domid: int, path: Path) -> None:
        """Write the domain to `path` and leave it paused; on failure it runs on."""
        await self._run("save", "-p", str(domid), str(path), deadline=STREAM_DEADLINE_S)

    async def destroy(self, domid: int) -> None:
        """End the domain at once."""
        await self._run("destroy", str(domid), deadline=ORDER_DEADLINE_S)

    async def shutdown(self, domid: int) -> None:
        """Ask the guest to power off. Raises Failed where it has no driver to receive that."""
        await self._run("shutdown", str(domid), deadline=QUERY_DEADLINE_S)

    async def reboot(self, domid: int) -> None:
        """Ask the guest to restart."""
        await self._run("reboot", str(domid), deadline=QUERY_DEADLINE_S)

    async def pause(self, domid: int) -> None:
        """Stop the domain's processors."""
        await self._run("pause", str(domid), deadline=QUERY_DEADLINE_S)

    async def unpause(self, domid: int) -> None:
        """Start the domain's processors again."""
        await self._run("unpause", str(domid), deadline=QUERY_DEADLINE_S)

    async def rename(self, domid: int, name: str) -> None:
        """Give the domain another name."""
        await self._run("rename", str(domid), name, deadline=QUERY_DEADLINE_S)

    async def resume(self, domid: int) -> None:
        """Let a suspended domain run on where it is: xl has a verb for it only after 4.20."""
        result = await run([*LIBXL, "resume", str(domid)], deadline=ORDER_DEADLINE_S, check=False)
        if result.code:
            raise Failed(
                f"domain {domid} could not be resumed: {parse.complaint(result.err)}", hint="xl list; veery dmesg"
            )

    async def calm(self, domid: int) -> None:
        """Stop tracking the pages that the domain writes: a killed xl leaves that on, which slows the domain. Raises
        Failed."""
        result = await run([*LIBXL, "calm", str(domid)], deadline=QUERY_DEADLINE_S, check=False)
        if result.code:
            raise Failed(f"domain {domid} stays in log-dirty mode: {parse.complaint(result.err)}")

    async def set_memory(self, domid: int, mebibytes: int) -> None:
        """Set the target of the domain's balloon."""
        await self._run("mem-set", str(domid), f"{mebibytes}m", deadline=QUERY_DEADLINE_S)

    async def order(self, verb: str, *words: str) -> None:
        """Give one of the orders that adjusting.orders returns."""
        await self._run(verb, *words, deadline=QUERY_DEADLINE_S)

    async def block_attach(self, domid: int, disk: str) -> None:
        """Add a disk, in xl-disk-configuration(5)'s syntax."""
        await self._run("block-attach", str(domid), disk, deadline=ORDER_DEADLINE_S)

    async def block_detach(self, domid: int, vdev: str) -> None:
        """Remove a disk; returns once the guest released it."""
        await self._run("block-detach", str(domid), vdev, deadline=ORDER_DEADLINE_S)

    async def network_attach(self, domid: int, vif: Sequence[str]) -> None:
        """Add an interface, with KEY=VALUE words as in xl-network-configuration(5)."""
        await self._run("network-attach", str(domid), *vif, deadline=ORDER_DEADLINE_S)

    async def network_detach(self, domid: int, mac: str) -> None:
        """Remove an interface."""
        await self._run("network-detach", str(domid), mac, deadline=ORDER_DEADLINE_S)

    async def _run(self, verb: str, *words: str, deadline: float) -> str:
        """Run xl. A cancelled order is left to end by itself: killed in the middle of a creation or a destruction, xl
        would leave a half domain."""
        result = await tasks.to_the_end(run([self.program, verb, *words], deadline=deadline, check=False))
        if result.code:
            said = parse.complaint(result.err or result.out)
            raise Failed(f"xl {verb}: {said}", hint="see /var/log/xen, and: veery dmesg")
        return result.out
