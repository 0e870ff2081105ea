"""The source's copy of the disks that go along on a move."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace

from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.hypervisor.base import DiskMover, Driver
from veery.migrate import pump, target_wait, wire
from veery.migrate.steering import changed
from veery.model.domain import DomainReading
from veery.model.move import MoveProgress, MoveSettings, Phase, Tuning
from veery.model.node import Node
from veery.model.units import MIB
from veery.model.volume import CarriedDisk

CONNECT_DEADLINE_S = 5.0


class DiskCopy:
    """The disks of one move, on their way to its target."""

    def __init__(
        self,
        driver: Driver,
        move: str,
        reading: DomainReading,
        target: Node,
        *,
        settings: Callable[[], MoveSettings],
        publish: Callable[[MoveProgress], None],
    ) -> None:
        """`settings` returns the settings of move `move` as the user has changed them last."""
        self._driver, self._move, self._reading, self._target = driver, move, reading, target
        self._settings, self._publish = settings, publish
        self._last = MoveProgress(phase=Phase.COPY)
        self.size = 0
        """Bytes of the disks; 0 if none goes along."""

    def path(self, token: str) -> contextlib.AbstractAsyncContextManager[str]:
        """Return the socket that leads to the target's disks. `token` is what its streams must show."""
        target = self._target

        async def connect() -> socket.socket:
            return await wire.open_stream(
                target.relocation_address or target.address, target.relocation_port, token, CONNECT_DEADLINE_S
            )

        return pump.outlet(connect, self._reading.pid, self._settings().stall)

    async def send(self, channel: wire.Channel, disks: Sequence[CarriedDisk], through: str) -> None:
        """Copy `disks` through the socket `through` while listening to the target, which may give up. From then on each
        write goes to both nodes."""
        self.size = sum(disk.size for disk in disks)
        listening = asyncio.create_task(channel.expect(wire.Loaded, None), name=f"{self._move} listens")
        copying = asyncio.create_task(
            self._mirror([disk.vdev for disk in disks], through), name=f"{self._move} copies disks"
        )
        limit = self._settings().timeout
        try:
            async with asyncio.timeout(limit or None):
                await asyncio.wait({listening, copying}, return_when=asyncio.FIRST_COMPLETED)
                if not copying.done():
                    listening.result()
                    raise Failed(f"{self._target.name} sent an unexpected message while disks were copied")
                await copying
        except TimeoutError as error:
            raise Failed(
                f"its disks were not copied within {limit:g} s", hint="give it more time (--timeout)"
            ) from error
        except VeeryError as error:
            raise await target_wait.said_by_target(listening, error) from error
        finally:
            await tasks.stop(copying, listening)

    async def change(self, tuning: Tuning) -> None:
        """Apply the user's new bandwidth to the disks on their way. Where none is on its way, nothing happens: `send`
        begins with the settings of that moment. Raises Failed, OutcomeUnknown."""
        if tuning.bandwidth is not None and isinstance(self._driver, DiskMover):
            with contextlib.suppress(Refused):
                await self._driver.tune_disks(self._reading.uuid, tuning.bandwidth)
        self._publish(replace(self._last, note=changed(tuning)))

    async def _mirror(self, vdevs: Sequence[str], through: str) -> None:
        assert isinstance(self._driver, DiskMover)
        await self._driver.mirror_disks(
            self._reading.uuid, vdevs, through, self._settings(), self._progress, peer=self._target.name
        )

    def _progress(self, progress: MoveProgress) -> None:
        """Publish the progress of the disks. All of the memory counts as remaining, so the bar that shows both never
        goes back."""
        memory = self._reading.memory * MIB
        self.size = progress.disk_total
        self._last = replace(progress, total=memory, remaining=memory)
        self._publish(self._last)
