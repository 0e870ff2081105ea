"""A daemon in the middle of a move, for tests to kill: opens the driver in RUN and sends domain UUID to PORT."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

from veery.config.settings import Qemu
from veery.host.clock import RealClock
from veery.hypervisor.qemu.driver import QemuDriver
from veery.model.move import MoveProgress, MoveSettings


async def main(run: str, uuid: str, port: str) -> None:
    driver = QemuDriver(Path(run), None, Qemu(accel="tcg"), RealClock())
    await driver.open()
    await driver.unpause(uuid)  # waits for the monitor
    settings = MoveSettings(tls=False, bandwidth=8 << 20)

    def report(progress: MoveProgress) -> None:
        if progress.transferred:
            print("moving", flush=True)

    with socket.create_connection(("127.0.0.1", int(port))) as stream:
        await driver.send(uuid, stream, settings, report, peer="test2")
    print("sent", flush=True)


asyncio.run(main(*sys.argv[1:]))
