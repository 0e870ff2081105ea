"""One domain that runs here: its process, its monitor, and its known state.

QMP's events and /proc keep the state of `reading` up to date. So a list needs no question to QEMU, and answers at once
even when one QEMU is stopped or stuck."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veery.errors import Failed, OutcomeUnknown, VeeryError
from veery.host.clock import Clock
from veery.host.process import Process
from veery.hypervisor.qemu.console import ConsoleHub
from veery.hypervisor.qemu.monitor import Monitor
from veery.hypervisor.qemu.process import Home, Record, Stage
from veery.model.domain import DomainEnd, DomainReading, DomainState, VcpuReading
from veery.model.units import MIB, patience

if TYPE_CHECKING:
    from veery.hypervisor.qemu.mirror import Mirrors
    from veery.hypervisor.qemu.transfer import Transfer

log = logging.getLogger(__name__)

TICK = os.sysconf("SC_CLK_TCK")
REASON_MAX = 200
BUSY = 0.1
"""Share of one processor above which a domain counts as running, below as blocked (idle)."""
RECONNECT_INTERVAL_S = 0.5
STEADY_INTERVAL_S = 0.02
"""Between two checks of a domain that was just started: KVM may fail on its first instruction, after QEMU reported
success."""

KILL_DEADLINE_S = 10.0
STOP_DEADLINE_S = 20.0
CONT_DEADLINE_S = 20.0
"""A target opens its disks for writing when the domain is started."""

TURNS = frozenset({"STOP", "RESUME", "SUSPEND", "WAKEUP"})
"""QMP's events that change the run state."""
FAULT_UNKNOWN, DISK_UNKNOWN = "a disk's error", "a disk"
IO_STATUS = {"nospace": "No space left on device", "failed": "Input/output error"}
"""QAPI's BlockDeviceIoStatus of a disk that has stopped its domain, in the words of the event that QEMU sends then."""

Ended = Callable[["Domain", DomainEnd], None]

ENDS: dict[str, DomainEnd] = {  # QAPI's RunState, as seen on (re)connect
    "shutdown": DomainEnd.POWEROFF,
    "guest-panicked": DomainEnd.CRASH,
    "internal-error": DomainEnd.CRASH,
    "watchdog": DomainEnd.WATCHDOG,
}


def end_of(event: str, data: Mapping[str, Any]) -> DomainEnd | None:
    """Return why the domain stopped by itself, None where the event does not say that it did."""
    if event == "SHUTDOWN":
        if data.get("reason") == "guest-panic":
            return DomainEnd.CRASH
        return DomainEnd.REBOOT if data.get("reason") == "guest-reset" else DomainEnd.POWEROFF
    if event == "GUEST_PANICKED":
        return DomainEnd.CRASH
    if event == "WATCHDOG":
        return DomainEnd.WATCHDOG
    return None


def device_of(path: str) -> str:
    """Return the id of the device to which a path in QEMU's object tree belongs; "" where it is not a device that veery
    made."""
    parts = path.split("/")
    return parts[3] if parts[:3] == ["", "machine", "peripheral"] and len(parts) > 3 else ""


def _disk_of(data: Mapping[str, Any]) -> str:
    """Return the disk that a BLOCK_IO_ERROR names. While a disk is copied, the node is one that QEMU has put before the
    disk, with a name of QEMU's own (#block161). QEMU 9.2 and later send the path of the device."""
    node = str(data.get("device") or data.get("node-name") or "#")
    return device_of(str(data.get("qom-path", ""))) or (node if not node.startswith("#") else DISK_UNKNOWN)


class Domain:
    """One domain. `record` is its state on disk."""

    def __init__(self, home: Home, record: Record, process: Process, clock: Clock, ended: Ended) -> None:
        """`ended` is called when the domain stopped by itself, and when its process is gone (DIED)."""
        self.home, self.record, self.process = home, record, process
        self._clock, self._ended = clock, ended
        self.monitor = Monitor(record.spec.name, home.monitors[0], self._event)
        self.console = ConsoleHub(record.spec.name, home.console_log, home.port)
        self.lock = asyncio.Lock()  # one change of its devices at a time
        self.unplugged: dict[str, asyncio.Future[None]] = {}
        self.on_unplug: Callable[[str], None] = lambda device: None
        self.listeners: set[Callable[[str, Mapping[str, Any]], None]] = set()  # each hears every event first
        self.mirrors: Mirrors | None = None  # copies of its disks, complete or left behind
        self.mirroring: Mirrors | None = None  # its disks are being copied away
        self.copying: Transfer | None = None  # it is being copied away
        self.lifeline: Transfer | None = (
            None  # while it arrives: a connection made before QEMU can hang on a missing page
        )
        self.warned: set[str] = set()  # warnings of its QEMU that are already in the log
        self.dying = False
        self.gone = asyncio.Event()
        self._runstate = "prelaunch"
        self._ordered = False  # veeryd has told it to stop
        self._looking: asyncio.Task[None] | None = None  # asks why it stopped
        self._turns = 0  # count of events in TURNS
        self._reason = ""  # why it is stopped, where its disk is the cause
        self._faulty = False  # QEMU has reported a disk's error, and stops the guest next
        self._memory = record.build.memory
        self._threads: tuple[int, ...] = ()
        self._sample = (clock.now(), 0.0)
        self._busy = True
        self._met = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # ---- life

    async def connect(self, *, deadline: float) -> None:
        """Connect to a new QEMU, and watch it from then on. Raises Failed with QEMU's own words when it has ended."""
        try:
            await self._meet(deadline)
        except Failed as error:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self.process.gone()
            words = self.home.words()
            raise Failed(f"{self.record.spec.name}: {words}" if words else error.message) from error
        self.adopt()

    def adopt(self) -> None:
        """Watch a domain that runs already; connects to its QEMU as soon as it answers."""
        self._task = asyncio.create_task(self._watch(), name=f"watch {self.record.spec.name}")

    async def met(self) -> None:
        """Return once QEMU has answered, or has ended."""
        await self._met.wait()

    def renamed(self, name: str) -> None:
        """Use `name` in messages from now on."""
        self.monitor.name = self.console.name = name

    async def let_go(self) -> None:
        """Stop watching; the domain does not notice."""
        for task in (self._task, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        if self.lifeline is not None:
            await self.lifeline.close()
        await self.monitor.close()
        await self.console.close()

    async def kill(self) -> None:
        """End the process; returns when it is gone. Raises Failed when the kernel does not end it."""
        self.dying = True
        await self.process.stop(grace=0, deadline=self.patience(KILL_DEADLINE_S))

    async def _meet(self, deadline: float) -> None:
        await self.monitor.connect(deadline=deadline)
        status = await self.monitor.execute("query-status", deadline=deadline)
        self._runstate = status["status"]
        self._threads = tuple(cpu["thread-id"] for cpu in await self.monitor.execute("query-cpus-fast"))
        self._memory = (await self.monitor.execute("query-balloon"))["actual"] // MIB
        if self._runstate == "io-error":
            await self._find_fault()
        end = ENDS.get(self._runstate)
        if end is not None:
            self.stopped(end)
        self._met.set()

    async def _find_fault(self, words: str = "") -> None:
        """Ask which disk has stopped the domain. `words` are those of QEMU's event, "" where no event was seen. Raises
        Failed, OutcomeUnknown."""
        for row in await self.monitor.execute("query-block"):
            if word := IO_STATUS.get(row.get("io-status", "")):
                name = device_of(row.get("qdev", "")) or row.get("inserted", {}).get("node-name") or DISK_UNKNOWN
                self._reason = f"{name}: {words or word}"[:REASON_MAX]

    async def _watch(self) -> None:
        """Keep the monitor's connection until the process is gone."""
        gone = asyncio.create_task(self.process.gone(), name="gone")
        try:
            while not gone.done():
                held = asyncio.create_task(self._hold(), name="hold")
                await asyncio.wait({gone, held}, return_when=asyncio.FIRST_COMPLETED)
                held.cancel()
                (result,) = await asyncio.gather(held, return_exceptions=True)
                if isinstance(result, Exception):
                    log.error("domain=%s monitor: %r", self.record.spec.name, result)
                    await asyncio.sleep(RECONNECT_INTERVAL_S)
        finally:
            gone.cancel()
        self.console.end()
        await self.monitor.close()
        self.gone.set()
        self._met.set()
        self._ended(self, DomainEnd.DIED)

    async def _hold(self) -> None:
        """Return when the connection is lost; open it first if there is none."""
        if not self.monitor.connected:
            try:
                await self._meet(deadline=2.0)
            except VeeryError:
                await asyncio.sleep(RECONNECT_INTERVAL_S)
                return
        await self.monitor.lost()

    # ---- state

    def update(self, **changes: Any) -> None:
        """Write `changes` to the record."""
        self.record = replace(self.record, **changes)
        self.home.write(self.record)

    def reading(self) -> DomainReading:
        """Return the domain's reading for Driver.list."""
        used = self._cpu_seconds()
        now, (then, before) = self._clock.now(), self._sample
        if now - then >= 0.1:
            self._busy = (used - before) / (now - then) > BUSY
            self._sample = (now, used)
        return DomainReading(
            name=self.record.spec.name,
            uuid=self.record.spec.uuid,
            domid=self.record.domid,
            state=self._state(),
            memory=self._memory,
            vcpus=self.record.spec.vcpus,
            cpu_seconds=used,
            started=self.record.build.started,
            pid=self.process.pid,
            reason=(self._reason or FAULT_UNKNOWN) if self._runstate == "io-error" and not self.record.held else "",
        )

    def _state(self) -> DomainState:
        if self.dying:
            return DomainState.DYING
        if self.record.stage is Stage.INCOMING:
            return DomainState.INCOMING
        if self.record.ended is not None:
            return DomainState.CRASHED if self.record.ended is DomainEnd.CRASH else DomainState.SHUTDOWN
        if self._runstate not in {"running", "suspended"}:
            return DomainState.PAUSED
        return DomainState.RUNNING if self._busy else DomainState.BLOCKED

    def _cpu_seconds(self) -> float:
        return _times(Path(f"/proc/{self.process.pid}/stat"))[0]

    async def vcpus(self) -> tuple[VcpuReading, ...]:
        """Return its processors: TCG and KVM give each a thread of its own."""
        readings = []
        for number, thread in enumerate(self._threads):
            seconds, cpu = _times(Path(f"/proc/{self.process.pid}/task/{thread}/stat"))
            readings.append(VcpuReading(number=number, cpu=cpu, seconds=seconds))
        return tuple(readings)

    async def status(self, *, deadline: float = 5.0) -> str:
        """Return QEMU's own word for the domain's state (QAPI RunState)."""
        turns = self._turns
        said = str((await self.monitor.execute("query-status", deadline=deadline))["status"])
        if turns == self._turns:  # otherwise an event has reported a newer state
            self._runstate = said
        if said == "internal-error" and self.record.ended is None and self.record.stage is not Stage.INCOMING:
            log.error("domain=%s the hypervisor cannot run it (internal-error)", self.record.spec.name)
            self.stopped(DomainEnd.CRASH)
        return said

    async def steady(self) -> None:
        """Return when the domain was seen running twice, `STEADY_INTERVAL_S` apart, or has ended as a guest may. Raises
        Failed where it stopped with an error of the hypervisor, OutcomeUnknown."""
        for pause in (STEADY_INTERVAL_S, 0.0):
            if await self.status() == "internal-error":
                raise Failed(
                    f"{self.record.spec.name} was started, but the hypervisor cannot run it (internal-error)",
                    hint="on_crash applies; veery dmesg on that node shows the messages of QEMU",
                )
            await asyncio.sleep(pause)

    async def _why(self) -> None:
        """Ask why the domain stopped without an order of veeryd: an error of KVM has no event of its own, only this
        state."""
        try:
            if await self.status() == "io-error":
                await self._find_fault(self._reason.partition(": ")[2])
                log.error("domain=%s is stopped: %s", self.record.spec.name, self._reason or FAULT_UNKNOWN)
        except VeeryError as error:
            log.warning("domain=%s stopped for an unknown reason: %s", self.record.spec.name, error)

    # ---- events

    def _event(self, name: str, data: Mapping[str, Any]) -> None:
        for listener in tuple(self.listeners):
            listener(name, data)
        self._turns += name in TURNS
        match name:
            case "STOP":
                faulty, self._faulty = self._faulty, False
                self._runstate = "io-error" if faulty else "paused"
                if faulty or (not self._ordered and self.copying is None):
                    self._looking = asyncio.create_task(self._why(), name=f"why {self.record.spec.name} stopped")
            case "BLOCK_IO_ERROR" if data.get("action") == "stop":
                self._reason = f"{_disk_of(data)}: {data.get('reason', 'error')}"[:REASON_MAX]
                self._faulty = True
            case "RESUME":
                self._runstate, self._faulty = "running", False
            case "SUSPEND":
                self._runstate = "suspended"
            case "WAKEUP":
                self._runstate = "running"
            case "BALLOON_CHANGE":
                self._memory = int(data["actual"]) // MIB
            case "RESET" if data.get("guest"):
                self.update(ended=None, build=replace(self.record.build, started=self._clock.epoch()))
            case "DEVICE_DELETED" if "device" in data:
                self.on_unplug(str(data["device"]))
            case "DEVICE_UNPLUG_GUEST_ERROR" if data.get("device") in self.unplugged:
                waiting = self.unplugged[str(data["device"])]
                if not waiting.done():
                    waiting.set_exception(Failed(f"{self.record.spec.name} refused to release its device"))
            case _:
                end = end_of(name, data)
                if end is not None:
                    self.stopped(end)

    def stopped(self, end: DomainEnd) -> None:
        """Record, and report once, that the guest ended by itself."""
        if self.record.ended is None:
            self.update(ended=end)
            self._ended(self, end)

    # ---- orders

    async def cont(self) -> None:
        """Start the processors. Raises Failed, OutcomeUnknown."""
        await self.monitor.execute("cont", deadline=self.patience(CONT_DEADLINE_S))

    async def stop(self) -> None:
        """Stop the processors, with all writes done. Raises Failed, OutcomeUnknown."""
        self._ordered = True
        try:
            await self.monitor.execute("stop", deadline=self.patience(STOP_DEADLINE_S))
        finally:
            self._ordered = False

    def patience(self, least: float) -> float:
        """Return the seconds to wait for a step of this domain that takes `least` in a small one."""
        return patience(least, self.record.build.memory, len(self.record.attachments.disks))

    async def announce(self) -> None:
        """Tell the bridges where the domain's addresses are now (RARP for each MAC, five times, soon)."""
        try:
            await self.monitor.execute("announce-self", {"initial": 20, "max": 200, "rounds": 5, "step": 50})
        except (Failed, OutcomeUnknown) as error:
            log.warning("domain=%s could not be announced on the network: %s", self.record.spec.name, error)


def _times(path: Path) -> tuple[float, int]:
    """Return processor seconds and last processor from a stat file (proc(5), fields 14, 15 and 39); (0, -1) if it is
    gone."""
    try:
        fields = path.read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, -1
    return (int(fields[11]) + int(fields[12])) / TICK, int(fields[36])
