"""Taps: the node's end of a domain's interface, named `vifDOMID.N` as Xen names its own, a port of a bridge.

A tap is persistent: it is made before the hypervisor's process starts and removed after its end is proven."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, Refused
from veery.network import bridge as bridges
from veery.network.link import Netlink, netlink

# linux/if_tun.h
TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
NAME_MAX = 15  # IFNAMSIZ without its NUL

# As Xen's vif-bridge does: the highest address there is, so that a bridge never takes its own from a tap.
BACKEND_MAC = "fe:ff:ff:ff:ff:ff"
_OURS = re.compile(r"vif\d+\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """One tap that stands: a port of `bridge`, up, with `mtu`."""

    name: str
    bridge: str
    mtu: int


def name_of(domid: int, number: int) -> str:
    """The device name of interface `number` of domain `domid`: "vif7.0"."""
    return f"vif{domid}.{number}"


async def create(name: str, bridge: str, *, mtu: int = 0) -> Tap:
    """Make tap `name`, a port of `bridge`, up; `mtu` 0 means the bridge's. Takes some 3 ms.

    An unused tap of that name (left by a crash) is taken over. On failure nothing of it is left. Raises Refused
    when the bridge is missing or down, the name does not fit or is in use; Failed with the kernel's words."""
    if not 0 < len(name) <= NAME_MAX or "/" in name or name in (".", ".."):
        raise Refused(f"not a device name: {name!r}", hint=f"vifname takes at most {NAME_MAX} characters, no '/'")
    async with netlink() as kernel:
        master = await bridges.find(kernel, bridge)
        _make(name)
        try:
            _silence(name)
            link = await kernel.find(name)
            if link is None:
                raise Failed(f"tap {name} vanished while it was made", hint="does another program delete it?")
            await kernel.change(link, master=master.index, mtu=mtu or master.mtu, address=BACKEND_MAC, state="up")
            if 0 < mtu < master.mtu:
                # A bridge takes the smallest MTU of its ports until its own is set (br_mtu_auto_adjust): set it.
                await kernel.change(master, mtu=master.mtu)
        except BaseException:
            await _remove(kernel, name)
            raise
    return Tap(name=name, bridge=bridge, mtu=mtu or master.mtu)


async def delete(name: str) -> None:
    """Remove tap `name`; succeeds if there is none. Raises Failed with the kernel's words."""
    async with netlink() as kernel:
        await _remove(kernel, name)


async def leftovers() -> tuple[str, ...]:
    """The names of the taps here that are named as ours are (`vifDOMID.N`)."""
    async with netlink() as kernel:
        return tuple(link.name for link in await kernel.links() if link.kind == "tun" and _OURS.fullmatch(link.name))


async def _remove(kernel: Netlink, name: str) -> None:
    link = await kernel.find(name)
    if link is None:
        return
    if link.kind != "tun":
        raise Failed(f"{name} is not a tap", hint="it was left alone")
    await kernel.remove(link)


def _make(name: str) -> None:
    """A persistent tap with one queue. Attaching to an existing one proves that nobody uses it."""
    try:
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Failed(
            f"/dev/net/tun: {error.strerror}", hint="load the module with: modprobe tun; run as root"
        ) from error
    try:
        request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(handle, TUNSETIFF, request)
        fcntl.ioctl(handle, TUNSETPERSIST, 1)
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.EINVAL):
            raise Refused(
                f"device {name} is already in use", hint=f"see what it is with: ip -details link show {name}"
            ) from error
        raise Failed(f"making tap {name}: {error.strerror}", hint="run as root") from error
    finally:
        os.close(handle)


def _silence(name: str) -> None:
    """Keep the node's own IPv6 off the tap: the guest's traffic is all that belongs there."""
    switch = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if switch.exists():
        switch.write_text("1")
