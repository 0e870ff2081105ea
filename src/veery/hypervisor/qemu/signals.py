"""Orders that reach a guest which answers nothing else: QAPI's inject-nmi, chardev-send-break, dump-guest-memory."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from veery.errors import Failed, OutcomeUnknown
from veery.hypervisor.base import Trigger
from veery.hypervisor.qemu import handover
from veery.hypervisor.qemu.domain import Domain

LOOK_INTERVAL_S = 0.2
LEAST_DUMP_S = 120.0
DUMP_RATE_MIB_S = 20
"""That of a slow disk. The deadline of a dump grows with the domain's memory."""
DUMP = "dump"
"""getfd's name of the file of a dump."""
_COMMANDS = {Trigger.NMI: "inject-nmi", Trigger.POWER: "system_powerdown"}


async def trigger(domain: Domain, what: Trigger) -> None:
    """See Signaller.trigger."""
    await domain.monitor.execute(_COMMANDS[what])


async def break_console(domain: Domain) -> None:
    """Send a break on the serial console; the kernel takes the next character as a SysRq letter."""
    await domain.monitor.execute("chardev-send-break", {"id": "console"})


async def dump_core(domain: Domain, path: Path) -> None:
    """See Signaller.dump_core."""
    async with domain.lock:
        protocol = f"file:{path}"
        if domain.home.apart:
            with handover.file_opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as handle:
                await domain.monitor.pass_fd(DUMP, handle)
            protocol = f"fd:{DUMP}"
        order = {"paging": False, "protocol": protocol, "detach": True}
        await domain.monitor.execute("dump-guest-memory", order)
        try:
            async with asyncio.timeout(LEAST_DUMP_S + domain.record.spec.memory / DUMP_RATE_MIB_S):
                while True:
                    seen = await domain.monitor.execute("query-dump")
                    if seen["status"] != "active":
                        break
                    await asyncio.sleep(LOOK_INTERVAL_S)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"{domain.record.spec.name}: its memory is still being written to {path}",
                hint="veery list shows it running when the file is complete",
            ) from error
        if seen["status"] != "completed":
            raise Failed(
                f"{domain.record.spec.name}: {path} was not written", hint="is there enough space, and is it writable?"
            )
