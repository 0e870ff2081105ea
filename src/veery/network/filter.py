"""The filter of each tap: it allows only the interface's MAC and, if the domain's file has `ip=`, its addresses.

The filters are nft(8) rules at the tap's ingress. veery has its own table with one chain for each tap, named by the
tap's index. The kernel does not reuse an index, so a leftover filter affects no other tap. The family is netdev, not
bridge: a bridge learns the MAC of a frame to 01:80:c2:00:00:0e (LLDP) before any hook of the bridge family
(net/bridge/br_input.c, br_handle_frame), so a guest could redirect another guest's frames to itself.

Frames with a VLAN tag are dropped: a host accepts ARP and IP behind a priority tag (VLAN 0) as if it were untagged."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from veery.errors import Failed, VeeryError
from veery.host.run import NotInstalled, run

log = logging.getLogger(__name__)

FAMILY, TABLE = "netdev", "veery"
DEADLINE_S = 5.0  # for one call of nft, which takes some 10 ms
LOOK_INTERVAL_S = 30.0  # between two reads of the kernel's filters
ADDRESSES_MAX = 64  # of one interface
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_CHAIN = re.compile(r"tap([1-9][0-9]{0,9})")

_DEVICE = re.compile(r'[^"\\*\x00-\x20\x7f]{1,15}')  # valid inside nft's quotes; * would match many names


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The allowed sources of tap `device` with `index`: one MAC, and the addresses of `ip` (file's words; "": any)."""

    index: int
    device: str
    mac: str
    ip: str = ""


# ---- pure: the rules


def networks(words: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the addresses in a file's `ip=`, each once. ADDRESS/PREFIX means that address alone, unless ADDRESS is the
    network's own (10.0.0.0/24): then the whole network. Raises Failed for more than ADDRESSES_MAX."""
    found = []
    for word in filter(None, re.split(r"[\s,]+", words)):
        try:
            interface = ipaddress.ip_interface(word)
        except ValueError:
            continue
        is_network = interface.ip == interface.network.network_address
        found.append(interface.network if is_network else ipaddress.ip_network(interface.ip))
    if len(found) > ADDRESSES_MAX:
        raise Failed(f"ip= names {len(found)} addresses", hint=f"at most {ADDRESSES_MAX} for one interface")
    return tuple(dict.fromkeys(found))


def transaction(holds: Sequence[Hold], gone: Collection[int] = ()) -> str:
    """Return the lines for `nft -f -` that make or replace the filters of `holds`, and remove those of the indexes
    `gone`, whether they exist or not. nft applies all or none. Raises Failed for a MAC or device name invalid for
    nft."""
    lines = [f"add table {FAMILY} {TABLE}"]
    for hold in holds:
        lines += _hold(hold)
    for index in gone:  # Debian 12's nft has no "destroy": create the chain if needed, then delete it
        chain = f"{FAMILY} {TABLE} tap{index}"
        lines += [f"add chain {chain}", f"flush chain {chain}", f"delete chain {chain}"]
    return "\n".join(lines) + "\n"


def _hold(hold: Hold) -> list[str]:
    mac = hold.mac.lower()
    if not _MAC.fullmatch(mac):
        raise Failed(f"{hold.mac!r} is no MAC", hint="write mac=00:16:3e:xx:xx:xx in the domain's file")
    if not _DEVICE.fullmatch(hold.device):
        raise Failed(f"the device name {hold.device!r} is invalid for nft", hint="choose another vifname=")
    rules = [
        f"ether saddr != {mac} drop",
        "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop",
        "ether type { 0x8100, 0x88a8 } drop",
        # A host also accepts ARP with hardware type IEEE 802 (net/ipv4/arp.c): only Ethernet passes.
        *("arp htype != 1 drop", "arp ptype != 0x0800 drop", "arp hlen != 6 drop", "arp plen != 4 drop"),
        f"arp saddr ether != {mac} drop",
        "ether type ip udp sport 67 drop",
        "ether type ip6 udp sport 547 drop",
        "icmpv6 type { nd-router-advert, nd-redirect } drop",
    ]
    named = networks(hold.ip)
    if named:
        rules += _addresses(named)
    chain = f"{FAMILY} {TABLE} tap{hold.index}"
    hook = f'type filter hook ingress device "{hold.device}" priority -350 ; policy accept ;'
    return [
        f"add chain {chain} {{ {hook} }}",
        f"flush chain {chain}",
        *(f"add rule {chain} {rule}" for rule in rules),
    ]


def _addresses(named: Sequence[IPv4Network | IPv6Network]) -> list[str]:
    """Return the rules for an interface whose file has addresses. 0.0.0.0 is for DHCP and ARP probes, `::` for IPv6
    probes, and fe80::/10 for link-local addresses."""
    fours = [IPv4Network("0.0.0.0/32"), *(one for one in named if isinstance(one, IPv4Network))]
    sixes = [IPv6Network("fe80::/10"), *(one for one in named if isinstance(one, IPv6Network))]
    rules = []
    four = list(ipaddress.collapse_addresses(fours))  # nft refuses a set whose members overlap
    if four[0].prefixlen:
        allowed = ", ".join(map(str, four))
        rules.append(f"ether type arp arp saddr ip != {{ {allowed} }} drop")
        rules.append(f"ether type ip ip saddr != {{ {allowed} }} drop")
    six = list(ipaddress.collapse_addresses([IPv6Network("::/128"), *sixes]))
    if six[0].prefixlen:
        allowed = ", ".join(map(str, six))
        rules.append(f"ether type ip6 ip6 saddr != {{ {allowed} }} drop")
        rules += [
            f"icmpv6 type nd-neighbor-advert @th,64,{one.prefixlen} {_bits(one):#x} accept"
            for one in ipaddress.collapse_addresses(sixes)
        ]
        rules.append("icmpv6 type nd-neighbor-advert drop")
    return rules


def _bits(network: IPv6Network) -> int:
    """The first bits of the network's address, as many as its prefix has."""
    return int(network.network_address) >> (128 - network.prefixlen)


def indexes(listing: str) -> frozenset[int]:
    """The indexes of the filters in the answer of `nft -j list chains netdev`. Raises Failed where it is not one."""
    try:
        items: list[dict[str, Any]] = json.loads(listing)["nftables"]
        chains = [item["chain"] for item in items if "chain" in item]
        names = [chain["name"] for chain in chains if (chain["family"], chain["table"]) == (FAMILY, TABLE)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Failed("the answer of nft cannot be read", hint="nft -j list chains netdev") from error
    return frozenset(int(match[1]) for match in map(_CHAIN.fullmatch, names) if match)


# ---- the kernel's


def index_of(device: str) -> int:
    """The index of a device of this thread's network namespace; 0 where there is none of that name."""
    try:
        return socket.if_nametoindex(device)
    except (OSError, ValueError):
        return 0


class TapFilter:
    """The filters of this node's taps. No method raises when nft is missing or refuses: a domain runs unfiltered then,
    `trouble` tells why, and `settle` tries again."""

    def __init__(self, *, on: bool = True, program: str = "nft", interval: float = LOOK_INTERVAL_S) -> None:
        """`on`: whether taps get filters. Not `on`, `settle` removes those that an earlier daemon made. `interval`:
        seconds between two looks of `settle` at the kernel."""
        self.on, self._program, self._interval = on, program, interval
        self.trouble = ""
        self._held: set[int] = set()
        self._looked = float("-inf")  # time.monotonic() of the last read

    async def hold(self, device: str, mac: str, ip: str = "") -> None:
        """Filter the frames from tap `device`; an existing filter is replaced atomically. One call of nft."""
        index = index_of(device)
        if self.on and index:
            await self._order([Hold(index=index, device=device, mac=mac, ip=ip)], (), device)

    async def release(self, index: int) -> None:
        """Remove the filter of the tap that has or had `index`, if there is one."""
        if index in self._held:
            await self._order([], (index,), f"index {index}")

    def due(self) -> bool:
        """Return whether `settle` would read the kernel's filters now."""
        return time.monotonic() - self._looked >= self._interval

    async def settle(self, wanted: Mapping[str, tuple[str, str]], free: Collection[str] = ()) -> None:
        """Make missing filters, for example after `nft flush ruleset`, and remove those of taps that are gone.

        `wanted`: (MAC, ip=) of each tap with a filter. `free`: the taps without one. The first call makes every filter
        again, since an older veery may have made other rules. Does nothing until the interval since the last read is
        over."""
        if not self.due():
            return
        first, self._looked = self._looked == float("-inf"), time.monotonic()
        try:
            answer = await run([self._program, "-j", "list", "chains", FAMILY], deadline=DEADLINE_S)
            self._held = set(indexes(answer.out))
        except VeeryError as error:
            if self.on or not isinstance(error, NotInstalled):
                self._report(error.message)
            return
        alive = {index for index, _ in socket.if_nameindex()} if self.on else set()
        gone = {index for index in self._held if index not in alive} | {index_of(name) for name in free} & self._held
        holds, bad = [], ""
        for name, (mac, ip) in wanted.items() if self.on else ():
            one = Hold(index=index_of(name), device=name, mac=mac, ip=ip)
            if one.index and (first or one.index not in self._held):
                try:
                    transaction([one])
                    holds.append(one)
                except Failed as error:  # the other taps still get their filters
                    bad = f"{name}: {error.message}"
        if bad:
            self._report(bad)
        if await self._order(holds, sorted(gone), "all taps") and not bad:
            self.trouble = ""

    async def _order(self, holds: Sequence[Hold], gone: Collection[int], what: str) -> bool:
        """Return whether nft succeeded, or there was nothing to do."""
        if not holds and not gone:
            return True
        try:
            await run([self._program, "-f", "-"], stdin=transaction(holds, gone).encode(), deadline=DEADLINE_S)
        except VeeryError as error:
            self._looked = min(self._looked, time.monotonic() - self._interval)
            self._report(f"{what}: {error.message}")
            return False
        self._held |= {one.index for one in holds}
        self._held -= set(gone)
        return True

    def _report(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("taps are not filtered: %s", trouble)
        self.trouble = trouble
