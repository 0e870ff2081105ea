"""xl(1): each call with a deadline, its answer as values. Domains are named by their domid.

xl's exit status tells little; what it printed is what the errors say. A call that does not end in time is killed and
OutcomeUnknown: libxl's own work in the hypervisor may have been done."""

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

LOOK = 60.0
"""Seconds for a question. Real hosts answer in 20 ms, software emulation in 200; a busy one in ten seconds."""
ORDER = 120.0
"""Seconds for an order: devices are waited for, libxl itself gives a hotplug script 40 s (libxl_internal.h)."""
LIBXL = (sys.executable, "-m", "veery.hypervisor.xen.libxl")
STREAM = 600.0
"""Seconds to write or read a save file."""


@dataclass(frozen=True, slots=True)
class Xl:
    """One node's xl; `program` is its name or path."""

    program: str = "xl"

    # ---- looking

    async def rows(self) -> tuple[Row, ...]:
        """Every domain, Domain-0 too."""
        return parse.rows(await self._run("list", "-v", deadline=LOOK))

    async def info(self) -> Info:
        """The hypervisor and the machine. Raises Refused where xl is not installed, Failed where Xen does not run."""
        return parse.info(await self._run("info", deadline=LOOK))

    async def dmesg(self) -> str:
        """The hypervisor's own log."""
        return await self._run("dmesg", deadline=LOOK)

    async def vcpus(self, domid: int) -> tuple[VcpuReading, ...]:
        """A domain's processors."""
        return parse.vcpus(await self._run("vcpu-list", str(domid), deadline=LOOK))

    # ---- orders

    async def create(self, config: Path, *, paused: bool) -> None:
        """Start what `config` describes. No xl stays behind to wait for its end (-e): its on_* are the node's."""
        await self._run("create", "-e", "-q", *(["-p"] if paused else []), str(config), deadline=ORDER)

    async def restore(self, config: Path, path: Path, *, paused: bool) -> None:
        """Start what `save` wrote to `path`, as `config` says."""
        await self._run("restore", "-e", *(["-p"] if paused else []), str(config), str(path), deadline=STREAM)

    async def save(self, domid: int, path: Path) -> None:
        """Write the domain to `path` and leave it paused; on failure it runs on."""
        await self._run("save", "-p", str(domid), str(path), deadline=STREAM)

    async def destroy(self, domid: int) -> None:
        """End it at once."""
        await self._run("destroy", str(domid), deadline=ORDER)

    async def shutdown(self, domid: int) -> None:
        """Ask the guest to power off. Raises Failed where it has no driver to be asked."""
        await self._run("shutdown", str(domid), deadline=LOOK)

    async def reboot(self, domid: int) -> None:
        """Ask the guest to restart."""
        await self._run("reboot", str(domid), deadline=LOOK)

    async def pause(self, domid: int) -> None:
        """Stop its processors."""
        await self._run("pause", str(domid), deadline=LOOK)

    async def unpause(self, domid: int) -> None:
        """Let them go on."""
        await self._run("unpause", str(domid), deadline=LOOK)

    async def rename(self, domid: int, name: str) -> None:
        """Give it another name."""
        await self._run("rename", str(domid), name, deadline=LOOK)

    async def resume(self, domid: int) -> None:
        """Let a suspended domain run on where it stands: xl has a verb for it only after 4.20."""
        result = await run([*LIBXL, "resume", str(domid)], deadline=ORDER, check=False)
        if result.code:
            raise Failed(f"domain {domid} does not run on: {parse.complaint(result.err)}", hint="xl list; veery dmesg")

    async def calm(self, domid: int) -> None:
        """Look no more for the pages that it writes to: a killed xl leaves a domain so, and slower for it. Raises
        Failed."""
        result = await run([*LIBXL, "calm", str(domid)], deadline=LOOK, check=False)
        if result.code:
            raise Failed(f"domain {domid} stays in log-dirty mode: {parse.complaint(result.err)}")

    async def set_memory(self, domid: int, mebibytes: int) -> None:
        """Set its balloon's target."""
        await self._run("mem-set", str(domid), f"{mebibytes}m", deadline=LOOK)

    async def order(self, verb: str, *words: str) -> None:
        """One of the orders that adjusting.orders gives."""
        await self._run(verb, *words, deadline=LOOK)

    async def block_attach(self, domid: int, disk: str) -> None:
        """Add a disk, in xl-disk-configuration(5)'s syntax."""
        await self._run("block-attach", str(domid), disk, deadline=ORDER)

    async def block_detach(self, domid: int, vdev: str) -> None:
        """Take a disk away; returns once the guest let go."""
        await self._run("block-detach", str(domid), vdev, deadline=ORDER)

    async def network_attach(self, domid: int, vif: Sequence[str]) -> None:
        """Add an interface, its KEY=VALUE words as in xl-network-configuration(5)."""
        await self._run("network-attach", str(domid), *vif, deadline=ORDER)

    async def network_detach(self, domid: int, mac: str) -> None:
        """Take an interface away."""
        await self._run("network-detach", str(domid), mac, deadline=ORDER)

    async def _run(self, verb: str, *words: str, deadline: float) -> str:
        """Run it. A cancelled order is left to end by itself, to be asked about later: xl, killed in the middle of a
        creation or a destruction, leaves half a domain."""
        result = await tasks.to_the_end(run([self.program, verb, *words], deadline=deadline, check=False))
        if result.code:
            said = parse.complaint(result.err or result.out)
            raise Failed(f"xl {verb}: {said}", hint="more is in /var/log/xen and in: veery dmesg")
        return result.out
