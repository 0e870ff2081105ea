"""The outer QEMU of a nested node: its command line, its boot or start from a snapshot, and taking the snapshot.

It always uses software emulation, which has SVM on every machine. It uses `qemu64`, since SMAP and MWAIT of newer
processors crash a PV dom0 here. The snapshot is QEMU's migration stream in a file, taken while the machine is paused;
disks are not in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veery.errors import Failed
from veery.host.process import Process
from veery.hypervisor.qemu.monitor import Monitor
from veery.lab.xen import dom0
from veery.lab.xen.agent import LAN, LINK
from veery.lab.xen.emulator import Emulator

_QMP_TIMEOUT_S = 40.0
_STREAM_TIMEOUT_S = 120.0  # to write or read a snapshot


@dataclass(frozen=True, slots=True)
class Outer:
    """One outer QEMU. `boot`: the folder of the image. `root`, `state`: its disks. `folder`: for its socket and its
    console's log."""

    emulator: Emulator
    boot: Path
    root: Path
    state: Path
    folder: Path

    @property
    def socket(self) -> Path:
        """Return the QMP socket."""
        return self.folder / "outer.sock"

    @property
    def console(self) -> Path:
        """Return the log of the console of hypervisor and dom0."""
        return self.folder / "console.log"

    def argv(self, *, waiting: bool = False) -> list[str]:
        """Return the command line, to be run in the folder `boot`. With `waiting` QEMU waits for a snapshot."""
        linux = dom0.LINUX_LINE.replace(",", ",,")
        words = [*self.emulator.argv, "-nodefaults", "-no-user-config", "-display", "none", "-name", "nested"]
        words += ["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "qemu64,+svm,+npt"]
        words += ["-smp", "1", "-m", "1024"]
        words += ["-kernel", "xen", "-append", dom0.XEN_LINE, "-initrd", f"vmlinuz {linux},initrd"]
        for number, (path, form) in enumerate(((self.root, self.root.suffix[1:]), (self.state, "img"))):
            kind = "raw" if form == "img" else form
            words += ["-drive", f"if=none,id=disk{number},format={kind},discard=unmap,file={path}"]
            words += ["-device", f"virtio-blk-pci,drive=disk{number}"]
        for number, tap in enumerate((LAN, LINK)):
            words += ["-netdev", f"tap,id=net{number},ifname={tap},script=no,downscript=no"]
            words += ["-device", f"virtio-net-pci,netdev=net{number},romfile="]
        words += ["-serial", f"file:{self.console}", "-qmp", f"unix:{self.socket},server=on,wait=off"]
        return [*words, *(["-incoming", "defer"] if waiting else [])]

    @asynccontextmanager
    async def monitor(self, process: Process) -> AsyncIterator[Monitor]:
        """Yield a connection to its QMP. Raises Failed if QEMU has ended."""
        ends = time.monotonic() + _QMP_TIMEOUT_S
        while True:
            monitor = Monitor("the nested machine", self.socket, _ignore)
            try:
                await monitor.connect(deadline=_QMP_TIMEOUT_S)
                break
            except Failed as error:  # between bind(2) and listen(2) the socket refuses connections
                await monitor.close()
                if not process.alive() or time.monotonic() > ends:
                    hint = f"see its log in {self.folder}"
                    raise Failed("the nested machine's QEMU did not start", hint=hint) from error
            await asyncio.sleep(0.02)
        try:
            yield monitor
        finally:
            await monitor.close()

    async def save(self, process: Process, path: Path) -> None:
        """Pause the machine and write its memory and devices to `path`. Raises Failed."""
        async with self.monitor(process) as monitor:
            await monitor.execute("stop")
            await monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
            with path.open("wb") as file:
                await monitor.pass_fd("snapshot", file.fileno())
            await monitor.execute("migrate", {"uri": "fd:snapshot"})
            await _completed(monitor)

    async def load(self, process: Process, path: Path) -> None:
        """Start a `waiting` machine from the snapshot that `save` wrote to `path`. Raises Failed."""
        async with self.monitor(process) as monitor:
            with path.open("rb") as file:
                await monitor.pass_fd("snapshot", file.fileno())
            await monitor.execute("migrate-incoming", {"uri": "fd:snapshot"}, deadline=_STREAM_TIMEOUT_S)
            await _completed(monitor)
            await monitor.execute("cont")

    async def quit(self, process: Process) -> None:
        """End QEMU."""
        await process.stop(grace=5)


async def _completed(monitor: Monitor) -> None:
    async with asyncio.timeout(_STREAM_TIMEOUT_S):
        while (answer := await monitor.execute("query-migrate")).get("status") != "completed":
            if answer.get("status") == "failed":
                raise Failed(f"the nested machine's snapshot: {answer.get('error-desc', 'no reason given')}")
            await asyncio.sleep(0.02)


def _ignore(_name: str, _data: Mapping[str, Any]) -> None:
    """Ignore the outer machine's events: its state is queried."""
