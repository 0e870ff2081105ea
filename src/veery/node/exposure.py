"""The doctor's findings on the guests' network: whether guests are held to their addresses, and which ports they can
reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from veery.errors import VeeryError
from veery.host.owner import ACCOUNT, AUTO
from veery.model.health import Finding, Level
from veery.network.bridge import Bridge
from veery.network.filter import TapFilter

EVERYWHERE = ("0.0.0.0", "::")


def judge_filter(node: str, *, on: bool, trouble: str) -> Finding:
    """Judge whether the taps of this node's domains are filtered."""
    what = "tap filter"
    if not on:
        told = "off ([network] filter = false): a guest may send from any address"
        return Finding(node=node, what=what, level=Level.OK, told=told)
    if trouble:
        advice = "apt-get install nftables, then check again in a minute; docs/hosts.md says what the filter does"
        return Finding(node=node, what=what, level=Level.WARN, told=f"guests may spoof: {trouble}", advice=advice)
    return Finding(node=node, what=what, level=Level.OK, told="taps are held to their MAC and ip=")


def judge_user(node: str, setting: str, *, account: bool) -> Finding:
    """Judge the user that QEMU runs as by the setting `user`. `account`: the user that `auto` stands for exists."""
    what = "QEMU's user"
    if setting == AUTO and not account:
        advice = "veery setup makes the user; then systemctl restart veeryd: docs/hosts.md, A user for QEMU"
        told = f"QEMU runs as root: there is no user {ACCOUNT}"
        return Finding(node=node, what=what, level=Level.WARN, told=told, advice=advice)
    told = f"QEMU runs as {ACCOUNT if setting == AUTO else setting}" if setting else 'root ([qemu] user = "")'
    return Finding(node=node, what=what, level=Level.OK, told=told)


def judge_ports(
    node: str, ports: Mapping[str, str], bridges: Sequence[Bridge], guests: Collection[str]
) -> list[Finding]:
    """Judge which ports listen at an address of a guests' bridge. `ports`: what listens, and its address. `guests`: the
    names of the guests' bridges."""
    open_to = {
        address.partition("/")[0]: bridge.name
        for bridge in bridges
        if bridge.name in guests
        for address in bridge.addresses
        if not address.startswith("fe80:")
    }
    reached: dict[str, list[str]] = {}
    for what, address in ports.items():
        found = {bridge for open_at, bridge in open_to.items() if address in (open_at, *EVERYWHERE)}
        for name in sorted(found):
            reached.setdefault(name, []).append(what)
    advice = "give the node an address on a separate network, or allow only nodes with nft: docs/hosts.md, Network"
    return [
        Finding(
            node=node,
            what="guests' reach",
            level=Level.WARN,
            told=f"guests on {bridge} can reach {', '.join(names)}",
            advice=advice,
        )
        for bridge, names in sorted(reached.items())
    ] or [Finding(node=node, what="guests' reach", level=Level.OK, told="no port of this node is on a guests' bridge")]


class Exposure:
    """The findings on the guests' network of a hypervisor."""

    def __init__(
        self,
        node: str,
        ports: Mapping[str, str],
        guests: Callable[[], Awaitable[frozenset[str]]],
        filter: TapFilter | None,
        user: Callable[[], Finding] | None = None,
    ) -> None:
        """`ports`: what listens, and its address. `guests` returns the bridges that domains use. `filter` is None if
        the hypervisor makes the interfaces. `user` returns the finding on QEMU's user, if this node runs QEMU
        itself."""
        self._node, self._ports, self._guests, self._filter = node, dict(ports), guests, filter
        self._user = user

    async def findings(self, bridges: Sequence[Bridge]) -> list[Finding]:
        """Return the findings on this node. Raises nothing."""
        found = [] if self._user is None else [self._user()]
        if self._filter is not None:
            found.append(judge_filter(self._node, on=self._filter.on, trouble=self._filter.trouble))
        try:
            guests = await self._guests()
        except VeeryError as error:
            return [*found, Finding(node=self._node, what="guests' reach", level=Level.WARN, told=error.message)]
        return [*found, *judge_ports(self._node, self._ports, bridges, guests)]
