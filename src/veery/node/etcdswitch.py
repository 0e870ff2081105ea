"""This node's etcd, switched on and off while the daemon runs: a vote that comes or goes, a store that is recovered."""

from __future__ import annotations

import asyncio

from veery.host.process import Service


class EtcdSwitch:
    """One a daemon; `run` is its task. The program outlives the daemon, and is taken over by the next one."""

    def __init__(self, service: Service, *, on: bool) -> None:
        """`service` is not started before `run`."""
        self.service = service
        self._on, self._off, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        if on:
            self._on.set()

    def pid(self) -> int | None:
        """The program's process; None while it does not run."""
        process = self.service.process
        return None if process is None else process.pid

    def on(self) -> None:
        """Have it run."""
        self._off.clear()
        self._on.set()

    async def off(self) -> None:
        """End it. Raises Failed where it does not end."""
        self._on.clear()
        self._off.set()
        await self._idle.wait()
        await self.service.stop()

    async def run(self) -> None:
        """For ever: keep it running while it is on."""
        while True:
            await self._on.wait()
            self._idle.clear()
            work, off = asyncio.ensure_future(self.service.run()), asyncio.ensure_future(self._off.wait())
            try:
                await asyncio.wait({work, off}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
            finally:
                work.cancel()
                off.cancel()
                await asyncio.gather(work, off, return_exceptions=True)
                self._idle.set()
