"""The kernel's links through netlink, with a short connection for each task.

A connection opens in about 1 ms and belongs to the network namespace of the calling thread."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from veery.errors import Failed

IFF_UP = 1


@dataclass(frozen=True, slots=True)
class Link:
    """One link. `kind`: "bridge", "tun", "veth", ... or "" (a physical card). `master`: the index of the bridge whose
    port it is, or 0."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int


class Netlink:
    """The rtnetlink(7) requests that veery needs. Methods raise Failed with the kernel's words."""

    def __init__(self, route: Any) -> None:
        self._route = route

    async def find(self, name: str) -> Link | None:
        """Return the link `name`, or None."""
        with _spoken(f"looking for {name}"):
            try:
                return _link((await self._route.link("get", ifname=name))[0])
            except NetlinkError as error:
                if error.code == errno.ENODEV:
                    return None
                raise

    async def links(self) -> tuple[Link, ...]:
        """Return every link, by index."""
        with _spoken("listing links"):
            return tuple(sorted([_link(item) async for item in await self._route.get_links()], key=_index))

    async def addresses(self) -> dict[int, tuple[str, ...]]:
        """Return the addresses of each link index, each "ADDRESS/PREFIX"."""
        found: dict[int, tuple[str, ...]] = {}
        with _spoken("listing addresses"):
            async for item in await self._route.get_addr():
                text = f"{item.get('address')}/{item['prefixlen']}"
                found[item["index"]] = (*found.get(item["index"], ()), text)
        return found

    async def change(self, link: Link, **values: Any) -> None:
        """Change a link: state="up", mtu=1500, master=INDEX, address="00:...", all in one message."""
        with _spoken(f"setting up {link.name}"):
            await self._route.link("set", index=link.index, **values)

    async def remove(self, link: Link) -> None:
        """Delete a link; succeeds if it is gone."""
        with _spoken(f"deleting {link.name}"):
            try:
                await self._route.link("del", index=link.index)
            except NetlinkError as error:
                if error.code != errno.ENODEV:
                    raise

    async def learn(self, port: Link, mac: str) -> None:
        """Make the bridge of `port` send frames for `mac` to it (an entry that ages, like a learnt one)."""
        with _spoken(f"pointing {mac} to {port.name}"):
            await self._route.fdb("replace", ifindex=port.index, lladdr=mac, state=2)  # NUD_REACHABLE: dynamic


@asynccontextmanager
async def netlink() -> AsyncIterator[Netlink]:
    """Open a connection to rtnetlink(7), in the network namespace of the calling thread."""
    async with AsyncIPRoute() as route:
        yield Netlink(route)


@contextmanager
def _spoken(doing: str) -> Iterator[None]:
    """Turn the library's errors into Failed."""
    try:
        yield
    except NetlinkError as error:
        hint = "run as root" if error.code == errno.EPERM else ""
        raise Failed(f"{doing}: {error.args[1]}", hint=hint) from error


def _link(item: Any) -> Link:
    info = item.get("linkinfo")
    return Link(
        index=item["index"],
        name=item.get("ifname"),
        kind=(info.get("kind") if info else None) or "",
        mac=item.get("address") or "",
        mtu=item.get("mtu") or 0,
        up=bool(item["flags"] & IFF_UP),
        master=item.get("master") or 0,
    )


def _index(link: Link) -> int:
    return link.index
