"""Switches this node's etcd on and off while the daemon runs: for a vote that is given or removed, or a recovery of the
store."""

from __future__ import annotations

import asyncio

from veery.host.process import Service


class EtcdSwitch:
    """The switch of this node's etcd. The daemon owns the task of `run`. The program outlives the daemon, and the next
    daemon takes it over."""

    def __init__(self, service: Service, *, on: bool) -> None:
        """`service` is not started before `run`."""
        self.service = service
        self._on, self._off, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        if on:
            self._on.set()

    def pid(self) -> int | None:
        """Return the program's process id, or None if it does not run."""
        process = self.service.process
        return None if process is None else process.pid

    def on(self) -> None:
        """Switch it on."""
        self._off.clear()
        self._on.set()

    async def off(self) -> None:
        """Switch it off and end it. Raises Failed if it does not end."""
        self._on.clear()
        self._off.set()
        await self._idle.wait()
        await self.service.stop()

    async def run(self) -> None:
        """Keep it running while it is on, until cancelled."""
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
