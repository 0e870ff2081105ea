"""The domains that are measured: the busybox image on a volume of its own, idle, answering pings."""

from __future__ import annotations

from pathlib import Path

from veery.lab.guest import Guest
from veery.lab.plan import BRIDGE
from veery.lab.services import Lab

VOLUME = "64M"


async def make_volume(lab: Lab, name: str) -> None:
    """A volume called `name` with the busybox image in it."""
    await lab.veery("stor", "volume", "create", name, VOLUME)
    await lab.veery("stor", "image", "build", "busybox", "--volume", name, deadline=180.0)


def domain_file(guest: Guest, name: str, *, memory: int) -> str:
    """The file of a domain whose root is the volume `name`."""
    return _file(guest, name, memory, 'root = "/dev/xvda rw"', f"disk = ['volume={name},xvda,w']", 'extra = "quiet"')


def small_file(guest: Guest, name: str, *, memory: int) -> str:
    """The file of a domain that has no disk, and stays in its initramfs."""
    return _file(guest, name, memory, 'extra = "quiet rdinit=/bin/sh"')


def address_line(address: str) -> str:
    """What is typed into a domain's console to give it an address, as in the seed."""
    return f"ifconfig eth0 {address} netmask 255.255.0.0 up"


def write(folder: Path, name: str, text: str) -> Path:
    """Keep a domain file in `folder`."""
    path = folder / name
    path.write_text(text)
    return path


def _file(guest: Guest, name: str, memory: int, *lines: str) -> str:
    common = (
        f'name = "{name}"',
        f'kernel = "{guest.kernel}"',
        f'ramdisk = "{guest.ramdisk}"',
        f"memory = {memory}",
        f"vif = ['bridge={BRIDGE}']",
    )
    return "\n".join([*common, *lines, ""])
