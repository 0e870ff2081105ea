"""The busybox image and the initramfs: built twice the same, and booted for real."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from storage_parts import TEST1, storage

from veery.errors import Failed, Refused
from veery.host.run import run
from veery.lab import guest as lab_guest
from veery.lab.guest import Guest
from veery.model.units import MIB
from veery.storage import image


@pytest.fixture(scope="module")
def guest() -> Guest:
    return lab_guest.fetch(lambda *_: None)


@pytest.fixture(scope="module")
def ramdisk(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ramdisk") / "initramfs.gz"
    asyncio.run(image.build_initramfs(path, kernel=guest.kernel, modules=guest.modules))
    return path


def zeros(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


class Machine:
    """A running guest: its serial console and its QMP socket."""

    def __init__(self, process: asyncio.subprocess.Process, monitor: Path) -> None:
        self._process, self._monitor = process, monitor
        self.text = ""

    async def until(self, pattern: str) -> re.Match[str]:
        """Read the console until `pattern` has come; what was read up to there is dropped."""
        assert self._process.stdout
        async with asyncio.timeout(60):
            while not (match := re.search(pattern, self.text, re.DOTALL)):
                data = await self._process.stdout.read(4096)
                assert data, f"the guest ended: {self.text[-500:]}"
                self.text += data.decode(errors="replace").replace("\r", "")
        self.text = self.text[match.end() :]
        return match

    async def shell(self, command: str) -> str:
        """What `command` prints, typed at the guest's shell."""
        assert self._process.stdin
        self._process.stdin.write(f"echo be''gin; {command}; echo e''nd\n".encode())
        match = await self.until(r"\nbegin\n(.*?)end\n")
        return match[1]

    async def press_power(self) -> int:
        """Press the power button; QEMU's exit code once the guest has gone."""
        reader, writer = await asyncio.open_unix_connection(str(self._monitor))
        for name in ("qmp_capabilities", "system_powerdown"):
            writer.write(json.dumps({"execute": name}).encode())
        await writer.drain()
        async with asyncio.timeout(60):
            out, _ = await self._process.communicate()
        self.text += out.decode(errors="replace")
        writer.close()
        assert reader is not None
        return self._process.returncode or 0


@asynccontextmanager
async def booted(guest: Guest, ramdisk: Path, folder: Path, cmdline: str, *options: str) -> AsyncIterator[Machine]:
    monitor = folder / "qmp"
    process = await asyncio.create_subprocess_exec(
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "256", "-nodefaults", "-nographic"),
        *("-serial", "stdio", "-qmp", f"unix:{monitor},server=on,wait=off"),
        *("-kernel", str(guest.kernel), "-initrd", str(ramdisk), "-append", f"console=ttyS0 quiet {cmdline}"),
        *("-device", "virtio-net-pci,mac=00:16:3e:00:00:01,romfile="),
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield Machine(process, monitor)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_the_image_in_a_volume_boots_from_its_lun(guest: Guest, ramdisk: Path) -> None:
    steps: list[tuple[float, str]] = []
    async with storage(TEST1) as node:
        await node.volumes.create("busybox", 64 * MIB)
        async with node.volumes.filling("busybox") as volume:
            await image.build_into(
                Path(volume.path),
                volume.size,
                kernel=guest.kernel,
                modules=guest.modules,
                report=lambda step, fraction: steps.append((fraction, step)),
            )
        assert steps == sorted(steps)
        assert steps[-1] == (1.0, "done")
        disk = (
            *("-object", f"secret,id=chap,data={TEST1.password}"),
            *("-blockdev", f"driver=iscsi,node-name=root,transport=tcp,portal={volume.portal},target={volume.iqn},"
              f"lun=1,user={TEST1.user},password-secret=chap,initiator-name={TEST1.iqn}"),
            *("-device", "virtio-blk-pci,drive=root"),
        )  # fmt: skip
        async with booted(guest, ramdisk, node.run, "root=/dev/vda ro", *disk) as machine:
            await machine.until(r"built-in shell.*\n/ # ")
            assert "init" in await machine.shell("cat /proc/1/comm")
            assert re.search(r"/dev/vda on / type ext4 \(rw,", await machine.shell("mount"))
            assert "00:16:3E:00:00:01" in await machine.shell("ifconfig -a")
            assert "virtio_net" not in await machine.shell(
                "modprobe -r virtio_net; lsmod | tail -n +2 | grep ^virtio_n"
            )
            assert "eth0" in await machine.shell("modprobe virtio_net; ifconfig eth0 172.16.31.4 up; ifconfig")
            written = await machine.shell("writer /data 0.1 & sleep 1; kill $!; tail -n 1 /data")
            assert re.search(r"\d+ [0-9a-f-]{36} \d+\.\d+ \d+", written)
            assert await machine.press_power() == 0
            assert "reboot: Power down" in machine.text
        # a clean end: the journal is empty, and what the guest wrote is on the volume's disk
        check = await run(["e2fsck", "-n", volume.path], deadline=60, check=False)
        assert (check.code, "recovering journal" in check.out) == (0, False)
        assert (await run(["debugfs", "-R", "cat /data", volume.path], deadline=60)).out.startswith("1 ")


async def test_the_seeds_way_init_bin_sh_with_a_power_button(guest: Guest, ramdisk: Path, tmp_path: Path) -> None:
    disk = zeros(tmp_path / "disk", 32 * MIB)
    await image.build_into(disk, 32 * MIB, kernel=guest.kernel, modules=guest.modules)
    options = ("-drive", f"file={disk},if=virtio,format=raw,cache=unsafe")
    cmdline = "root=LABEL=busybox ro selinux=0 init=/bin/sh"
    async with booted(guest, ramdisk, tmp_path, cmdline, *options) as machine:
        await machine.until(r"built-in shell.*\n/ # ")
        assert "sh" in await machine.shell("cat /proc/1/comm")
        assert "type ext4 (ro," in await machine.shell("mount")
        assert "File exists" in await machine.shell("insmod /lib/modules/virtio_net.ko")
        assert "172.16.31.4" in await machine.shell("ifconfig eth0 172.16.31.4 up; ifconfig eth0")
        await machine.shell("mount -o remount,rw /; echo kept > /kept")
        assert await machine.press_power() == 0
    assert (await run(["debugfs", "-R", "cat /kept", disk], deadline=60)).out == "kept\n"


async def test_the_same_input_gives_the_same_bytes(guest: Guest, tmp_path: Path) -> None:
    for name in ("one", "two"):
        await image.build_into(zeros(tmp_path / name, 48 * MIB), 48 * MIB, kernel=guest.kernel, modules=guest.modules)
        await image.build_initramfs(tmp_path / f"{name}.gz", kernel=guest.kernel, modules=guest.modules)
        await asyncio.sleep(1.1)  # nothing of the clock's second may get in
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert (tmp_path / "one").stat().st_blocks * 512 < 16 * MIB


async def test_what_cannot_be_built_is_refused(guest: Guest, tmp_path: Path) -> None:
    disk = zeros(tmp_path / "disk", 32 * MIB)
    kernel, modules = guest.kernel, guest.modules
    with pytest.raises(Refused, match="too small"):
        await image.build_into(disk, 4 * MIB, kernel=kernel, modules=modules)
    with pytest.raises(Refused, match="No such file"):
        await image.build_into(disk, 32 * MIB, kernel=tmp_path / "none", modules=modules)
    with pytest.raises(Refused, match="not a Linux kernel"):
        await image.build_into(disk, 32 * MIB, kernel=disk, modules=modules)
    with pytest.raises(Refused, match="no kernel modules"):
        await image.build_into(disk, 32 * MIB, kernel=kernel, modules=tmp_path / guest.version)
    other = tmp_path / "6.0.0-other"
    other.symlink_to(modules)
    with pytest.raises(Refused, match="not its modules"):
        await image.build_into(disk, 32 * MIB, kernel=kernel, modules=other)
    with pytest.raises(Refused, match="is not static"):
        await image.build_into(disk, 32 * MIB, kernel=kernel, modules=modules, busybox=Path("/bin/ls"))
    assert not any(disk.read_bytes())
    with pytest.raises(Failed, match="debugfs: "):
        await image.build_into(disk, 32 * MIB, kernel=kernel, modules=modules, busybox=await _fat(tmp_path))


async def _fat(folder: Path) -> Path:
    """A busybox that does not fit."""
    path = folder / "fat"
    path.write_text("#!/bin/sh\necho bin/sh\nexit 0\n")
    path.chmod(0o755)
    with path.open("ab") as file:
        file.write(os.urandom(40 * MIB))
    return path
