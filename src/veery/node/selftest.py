"""`veery selftest kvm`: a small guest goes through all steps of a domain on one node, and the times are measured.

It works beside veeryd and without a cluster: two drivers with folders of their own, and one guest that boots from
memory. The guest needs no input: it writes to memory and prints a line several times a second
(guestfiles.SELFTEST_INIT)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

import veery
from veery.config.settings import Qemu
from veery.errors import Failed, VeeryError
from veery.host.clock import RealClock
from veery.hypervisor.qemu import abilities, machine
from veery.hypervisor.qemu.driver import QemuDriver
from veery.hypervisor.qemu.machine import Hypervisor
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec
from veery.model.move import MoveSettings
from veery.model.plan import level
from veery.model.units import MIB
from veery.model.volume import AttachedDisk, Attachments, LocalDisk
from veery.node.kvmfacts import facts
from veery.storage import guestfiles, image
from veery.storage.modules import BUTTON, VIRTIO

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the answer. It grows with each change that a reader must know of."""
GUEST_DEADLINE_S = 120.0
"""Time for the guest to do something: under TCG, on a busy machine, each step may take that long."""
STAND_S = 2.0
"""How long the guest is paused."""
DISK_MIB = 64
NAME = "selftest"
TICK = re.compile(rb"tick (\d+) (\d+\.\d\d) (\d{9,11}) (\d+) ([\w-]+)\r?\n")
FACT = re.compile(rb"fact (\S+) ([^\r\n]*)\r?\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One line of the guest: its count, seconds since its boot, its clock (epoch), the number of disks it sees, and its
    clock source."""

    count: int
    uptime: float
    clock: int
    disks: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """The guest: its `kernel`, its `modules`, and its `memory` in MiB."""

    kernel: Path
    modules: Path
    memory: int = 512


class Trial:
    """Runs the steps, one after the other, and stops at the first that fails."""

    def __init__(self, settings: Qemu, folder: Path, wishes: Wishes, say: Callable[[str], None]) -> None:
        """`say` is called with the name of each step when it begins."""
        self._folder, self._wishes, self._say = folder, wishes, say
        self._clock = RealClock()
        self._near = QemuDriver(folder / "a", None, settings, self._clock)
        self._far = QemuDriver(folder / "b", None, settings, self._clock)
        self.steps: list[dict[str, Any]] = []
        self.uuid = str(uuid.uuid4())

    @contextlib.asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """Record how long the body takes, what it finds, and why it failed."""
        self._say(name)
        row: dict[str, Any] = {"step": name, "good": False}
        self.steps.append(row)
        begun = time.monotonic()
        try:
            yield row
            row["good"] = True
        except VeeryError as error:
            row |= {"error": error.message, "hint": error.hint}
            raise
        except (OSError, ExceptionGroup) as error:
            cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            row["error"] = str(cause) or repr(cause)
            raise Failed(row["error"]) from error
        finally:
            row["seconds"] = round(time.monotonic() - begun, 3)

    async def run(self) -> bool:
        """Run every step; return True if all succeeded."""
        await self._near.open()
        await self._far.open()
        try:
            await self._boot()
            await self._plug()
            await self._stand()
            await self._save()
            await self._move("move", self._near, self._far)
            await self._move("move back", self._far, self._near)
            await self._end()
        except VeeryError:
            return False
        finally:
            for driver in (self._near, self._far):
                for reading in await driver.list():
                    await driver.destroy(reading.uuid)
                await driver.close()
        return True

    # ---- steps

    async def _boot(self) -> None:
        ramdisk = self._folder / "initrd"
        async with self._step("build the guest"):
            await image.build_initramfs(
                ramdisk,
                kernel=self._wishes.kernel,
                modules=self._wishes.modules,
                wanted=(*VIRTIO, *BUTTON),
                init=guestfiles.SELFTEST_INIT,
            )
        async with self._step("boot") as row:
            spec = DomainSpec(
                name=NAME,
                uuid=self.uuid,
                kernel=str(self._wishes.kernel),
                ramdisk=str(ramdisk),
                cmdline="quiet panic=-1",
                memory=self._wishes.memory,
            )
            await self._near.start(spec, Attachments())
            tick = await self._next(self._near, 0)
            row |= {"guest_uptime": tick.uptime, "clock_ahead": tick.clock - int(time.time())}
            heard = await self._near.backlog(self.uuid)
            row["guest"] = {key.decode(): text.decode(errors="replace") for key, text in FACT.findall(heard)}
            row["clocksource"] = tick.source
            row["build"] = msgspec.json.decode((await self._near.pack(self.uuid))[1])
            row["log"] = _warnings(await self._near.log())

    async def _plug(self) -> None:
        path = self._folder / "disk"
        with path.open("wb") as file:
            file.truncate(DISK_MIB * MIB)
        spec = DiskSpec(vdev="xvdb", target=str(path))
        disk = AttachedDisk(spec=spec, source=LocalDisk(path=str(path), format=DiskFormat.RAW, block=False))
        async with self._step("plug a disk in"):
            await self._near.attach_disk(self.uuid, disk)
            await self._until(self._near, lambda tick: tick.disks == 1, "sees no new disk")
        async with self._step("unplug it"):
            await self._near.detach_disk(self.uuid, "xvdb")
            await self._until(self._near, lambda tick: tick.disks == 0, "still sees the disk")

    async def _stand(self) -> None:
        async with self._step("pause") as row:
            await self._near.pause(self.uuid)
            begun = self._clock.now()
            before = await self._last(self._near)
            await asyncio.sleep(STAND_S)
            await self._near.unpause(self.uuid)
            after = await self._next(self._near, before.count)
            passed = self._clock.now() - begun
            row |= {"stood": STAND_S, "guest_missed": round(passed - (after.uptime - before.uptime), 2)}

    async def _save(self) -> None:
        path = self._folder / "saved"
        async with self._step("save") as row:
            spec, luggage = await self._near.pack(self.uuid)
            luggage = msgspec.Raw(bytes(luggage))
            await self._near.save(self.uuid, path)
            before = await self._last(self._near)
            row["bytes"] = path.stat().st_blocks * 512
            await self._near.destroy(self.uuid)
        async with self._step("restore") as row:
            await self._near.restore(spec, Attachments(), luggage, path)
            after = await self._next(self._near, before.count)
            row |= {"clock_ahead": after.clock - int(time.time()), "clocksource": after.source}
            path.unlink()

    async def _move(self, name: str, near: QemuDriver, far: QemuDriver) -> None:
        async with self._step(name) as row:
            spec, luggage = await near.pack(self.uuid)
            before = await self._last(near)
            backlog = await near.backlog(self.uuid)
            await far.prepare(spec, Attachments(), msgspec.Raw(bytes(luggage)), backlog, tls=False, peer=NAME)
            one, other = _stream()
            with contextlib.closing(one), contextlib.closing(other):
                async with asyncio.TaskGroup() as group:
                    group.create_task(far.receive(self.uuid, other))
                    sending = group.create_task(
                        near.send(self.uuid, one, MoveSettings(tls=False), lambda _: None, peer=NAME)
                    )
            result = sending.result()
            await far.finish(self.uuid)
            await near.destroy(self.uuid)
            after = await self._next(far, before.count)
            row |= {
                "downtime_ms": result.downtime_ms,
                "setup_ms": result.setup_ms,
                "bytes": result.bytes,
                "rounds": result.rounds,
                "clock_ahead": after.clock - int(time.time()),
                "clocksource": after.source,
            }
            row["log"] = _warnings(await far.log())

    async def _end(self) -> None:
        async with self._step("destroy"):
            await self._near.destroy(self.uuid)

    # ---- the guest

    async def _last(self, driver: QemuDriver) -> Tick:
        """Return the last line that the guest has printed. Raises Failed if there is none."""
        found = ticks(await driver.backlog(self.uuid))
        if not found:
            raise Failed("the guest has printed nothing yet")
        return found[-1]

    async def _next(self, driver: QemuDriver, count: int) -> Tick:
        """Return the first line after the one with `count`."""
        return await self._until(driver, lambda tick: tick.count > count, "does not continue")

    async def _until(self, driver: QemuDriver, good: Callable[[Tick], bool], trouble: str) -> Tick:
        """Return the guest's latest line once it is `good`. Raises Failed."""
        end = self._clock.now() + GUEST_DEADLINE_S
        while self._clock.now() < end:
            found = ticks(await driver.backlog(self.uuid))
            if found and good(found[-1]):
                return found[-1]
            if not await driver.stands(self.uuid):
                break
            await asyncio.sleep(0.05)
        raise Failed(f"the guest {trouble}", hint="veery info shows the accelerator; report this answer unchanged")


def ticks(heard: bytes) -> list[Tick]:
    """Return the guest's lines from the text of its console. A line with a lost or doubled character is skipped."""
    return [
        Tick(count=int(count), uptime=float(up), clock=int(clock), disks=int(disks), source=source.decode())
        for count, up, clock, disks, source in TICK.findall(heard)
    ]


async def run(settings: Qemu, wishes: Wishes, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the whole answer: {"good": bool, ...}. Errors are part of it."""
    answer: dict[str, Any] = {"format": FORMAT, "veery": veery.__version__, "good": False, "host": facts()}
    with tempfile.TemporaryDirectory(prefix="veery-selftest-") as name:
        folder = Path(name)
        say("accelerator")
        try:
            hypervisor = await machine.find(settings, folder / "accel.json")
            hypervisor.check()
        except VeeryError as error:
            return answer | {"accelerator": {"works": False, "error": error.message, "hint": error.hint}}
        answer["accelerator"] = {"works": True, "is": hypervisor.accel, "reason": hypervisor.reason}
        answer["rehearsal"] = hypervisor.accel != "kvm"
        answer["qemu"] = await _qemu(hypervisor)
        trial = Trial(replace(settings, user="", cgroup=""), folder, wishes, say)
        answer["good"] = await trial.run()
        answer["steps"] = trial.steps
    return plain_paths(answer, name)


def plain_paths(answer: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return `answer` without the folder of this run, wherever a message of QEMU names it."""
    text = msgspec.json.encode(answer).decode().replace(folder, "FOLDER")
    cleaned: dict[str, Any] = msgspec.json.decode(text)
    return cleaned


async def _qemu(hypervisor: Hypervisor) -> dict[str, Any]:
    """Return what this QEMU can build here, and the CPU baseline of a cluster of this node alone."""
    able = await abilities.ask(hypervisor)
    cpu, features = abilities.processor(able.features, able.accelerator, able.models, able.vendor)
    versioned = [each for each in able.machines if each.startswith("pc-q35-")]
    return {
        "version": able.version,
        "machines": sorted(versioned),
        "vendor": able.vendor,
        "models": able.models,
        "features": able.features,
        "phys_bits": able.phys_bits,
        "tsc_khz": able.tsc_khz,
        "tsc_scales": able.tsc_scales,
        "post_copy": able.post_copy or "it can",
        "baseline": cpu,
        "baseline_level": level(features),
    }


def _warnings(text: str) -> list[str]:
    """Return the warnings of QEMU in a driver's log."""
    return re.findall(r"warning: .*", text)


def _stream() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far
