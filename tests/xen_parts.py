"""The xen driver for the contract suite: on a scripted xl, or (in dom0) on the real one."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import uuid as uuids
from pathlib import Path
from typing import Any

import qemu_parts as parts
import scripted_xl
from veery.config.settings import Xen
from veery.host.clock import RealClock
from veery.hypervisor.xen.disks import NoInitiator
from veery.hypervisor.xen.driver import XenDriver
from veery.lab.guest import Guest
from veery.model.domain import DomainEnd, DomainReading, DomainSpec, DomainType
from veery.model.volume import Attachments

REAL = os.environ.get("VEERY_REAL_XEN", "")
"""In dom0: the folder with `vmlinuz` and `initramfs` of a guest that prints READY and gives a shell."""


class XenRig:
    """Two xen drivers with folders of their own; each has a host of its own, but where Xen is real."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not REAL:
            for name in ("test1", "test2"):
                scripted_xl.install(folder / name / "bin")
            (folder / "vmlinuz").touch()
        self.near = self._driver(folder / "test1")
        self.far = self._driver(folder / "test2")

    def _driver(self, run: Path) -> XenDriver:
        settings = Xen() if REAL else Xen(xl=str(run / "bin" / "xl"), xenstore=str(run / "bin"))
        return XenDriver(run, None, settings, NoInitiator(), RealClock())

    def spec(self, name: str = "busybox", **changes: Any) -> DomainSpec:
        values = {
            "name": name,
            "uuid": str(uuids.uuid4()),
            "type": DomainType(os.environ.get("VEERY_REAL_TYPE", "pv")),
            "kernel": str(Path(REAL or self.folder, "vmlinuz")),
            "ramdisk": str(Path(REAL, "initramfs")) if REAL else "",
            "cmdline": "console=hvc0 quiet panic=-1",
            "memory": 96,
        }
        return DomainSpec(**(values | changes))  # type: ignore[arg-type]

    async def up(self, driver: XenDriver, name: str = "busybox", **changes: Any) -> DomainSpec:
        spec = self.spec(name, **changes)
        await driver.start(spec, Attachments())
        await self.booted(driver, spec.uuid)
        return spec

    async def booted(self, driver: XenDriver, uuid: str, times: int = 1) -> None:
        await parts.booted(driver, uuid, times=times)

    async def tell(self, driver: XenDriver, uuid: str, end: DomainEnd) -> None:
        command = {
            DomainEnd.POWEROFF: "poweroff -f",
            DomainEnd.REBOOT: "reboot -f",
            DomainEnd.CRASH: "echo c > /proc/sysrq-trigger",
        }[end]
        console = await driver.console(uuid)
        await console.write(f"{command}\n".encode())
        await console.close()

    async def alive(self, driver: XenDriver, uuid: str) -> bool:
        return await parts.shell(driver, uuid, "echo $((6*7))") == "42"

    async def kill(self, driver: XenDriver, reading: DomainReading) -> None:
        """By plain xl, behind the driver's back."""
        program = "xl" if REAL else str(self._home(driver) / "bin" / "xl")
        await asyncio.to_thread(subprocess.run, [program, "destroy", str(reading.domid)], check=True, timeout=60)

    async def again(self, driver: XenDriver) -> XenDriver:
        await driver.close()
        new = self._driver(self._home(driver))
        await new.open()
        if driver is self.near:
            self.near = new
        else:
            self.far = new
        return new

    def _home(self, driver: XenDriver) -> Path:
        return self.folder / ("test1" if driver is self.near else "test2")

    async def close(self) -> None:
        for driver in (self.near, self.far):
            for reading in await driver.list():
                await driver.destroy(reading.uuid)
            await driver.close()


INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
insmod /modules/xen-blkfront.ko; insmod /modules/xen-netfront.ko
echo READY
exec setsid cttyhack sh
"""


def initramfs(guest: Guest, path: Path) -> Path:
    """What a guest under Xen boots into: busybox, its shell on the console, and an end when xl asks for one (the kernel
    runs /sbin/poweroff, /sbin/reboot)."""
    directory, program, link = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFLNK | 0o777
    entries = [(name, directory, b"") for name in ("bin", "sbin", "dev", "proc", "sys", "tmp", "modules")]
    entries += [("bin/busybox", program, Path("/bin/busybox").read_bytes()), ("bin/sh", link, b"busybox")]
    entries += [("init", program, INIT.encode())]
    for name in ("poweroff", "reboot"):
        entries.append((f"sbin/{name}", program, f"#!/bin/sh\nexec /bin/busybox {name} -f\n".encode()))
    for module in ("xen-blkfront", "xen-netfront"):
        found = next(guest.modules.rglob(f"{module}.ko"))
        entries.append((f"modules/{module}.ko", program, found.read_bytes()))
    return parts.cpio(entries, path)
