"""Taps: the node's end of a domain's interface, a port of a bridge, named `vifDOMID.N` like Xen's.

A tap is persistent: it is made before the hypervisor's process starts, and removed once the process's end is proven."""

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

# The highest address, as in Xen's vif-bridge, so that a bridge never takes its own address from a tap.
BACKEND_MAC = "fe:ff:ff:ff:ff:ff"
_TAP_NAME = re.compile(r"vif\d+\.\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """One tap: a port of `bridge`, up, with `mtu`."""

    name: str
    bridge: str
    mtu: int


def name_of(domid: int, number: int) -> str:
    """Return the device name of interface `number` of domain `domid`: "vif7.0"."""
    return f"vif{domid}.{number}"


async def create(name: str, bridge: str, *, mtu: int = 0) -> Tap:
    """Make tap `name`, a port of `bridge`, and set it up; `mtu` 0 means the bridge's. Takes about 3 ms.

    An unused tap of that name (left by a crash) is taken over. On failure nothing of it is left. Raises Refused if the
    bridge is missing or down, or the name is invalid or in use; Failed with the kernel's words."""
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
                # A bridge uses the smallest MTU of its ports until its own is set (br_mtu_auto_adjust), so set it.
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
    """Return the names of this node's taps with veery's form of name (`vifDOMID.N`)."""
    async with netlink() as kernel:
        return tuple(
            link.name for link in await kernel.links() if link.kind == "tun" and _TAP_NAME.fullmatch(link.name)
        )


async def _remove(kernel: Netlink, name: str) -> None:
    link = await kernel.find(name)
    if link is None:
        return
    if link.kind != "tun":
        raise Failed(f"{name} is not a tap", hint="it was not changed")
    await kernel.remove(link)


def _make(name: str) -> None:
    """Make a persistent tap with one queue. Attaching to an existing tap proves that no process uses it."""
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
                f"device {name} is already in use", hint=f"inspect it with: ip -details link show {name}"
            ) from error
        raise Failed(f"cannot make tap {name}: {error.strerror}", hint="run as root") from error
    finally:
        os.close(handle)


def _silence(name: str) -> None:
    """Disable the node's own IPv6 on the tap, which is for the guest's traffic only."""
    switch = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if switch.exists():
        switch.write_text("1")
