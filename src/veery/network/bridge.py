"""The bridges of this node, for `veery network list`."""

from __future__ import annotations

from dataclasses import dataclass

from veery.errors import Refused
from veery.network.link import Link, Netlink, netlink


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One port of a bridge: a card, or the tap of a domain."""

    name: str
    mac: str
    up: bool
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """One bridge. `addresses` are "ADDRESS/PREFIX"; `ports` by name."""

    name: str
    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...]
    ports: tuple[Port, ...]


async def bridges() -> tuple[Bridge, ...]:
    """Return every bridge of this node, by name. Raises Failed with the kernel's words."""
    async with netlink() as kernel:
        links = await kernel.links()
        addresses = await kernel.addresses()
    ports: dict[int, list[Port]] = {}
    for link in links:
        ports.setdefault(link.master, []).append(Port(name=link.name, mac=link.mac, up=link.up, mtu=link.mtu))
    found = (
        Bridge(
            name=link.name,
            mac=link.mac,
            mtu=link.mtu,
            up=link.up,
            addresses=addresses.get(link.index, ()),
            ports=tuple(sorted(ports.get(link.index, ()), key=lambda port: port.name)),
        )
        for link in links
        if link.kind == "bridge"
    )
    return tuple(sorted(found, key=lambda bridge: bridge.name))


async def require(name: str) -> None:
    """Return if bridge `name` exists here and is up. Raises Refused with the fault and the existing bridges."""
    async with netlink() as kernel:
        await find(kernel, name)


async def find(kernel: Netlink, name: str) -> Link:
    """Return the link of bridge `name`. Raises Refused if it is missing, not a bridge, or down."""
    if not name:
        raise Refused("the interface names no bridge", hint="write vif = ['bridge=NAME'] in the domain's file")
    link = await kernel.find(name)
    if link is None or link.kind != "bridge":
        others = ", ".join(each.name for each in await kernel.links() if each.kind == "bridge") or "none"
        wrong = "there is no bridge" if link is None else "not a bridge:"
        raise Refused(
            f"{wrong} {name} on this node",
            hint=f"bridges here: {others}; create it with: ip link add {name} type bridge",
        )
    if not link.up:
        raise Refused(f"bridge {name} is down", hint=f"set it up with: ip link set {name} up")
    return link
