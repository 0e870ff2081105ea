"""Limits on a listener's connections: in total, for unknown callers, and for each address.

Pure counting; `host/acceptor.py` asks before it keeps a connection."""

from __future__ import annotations

import collections
import ipaddress


class Place:
    """The place of one counted connection; `leave` frees it."""

    def __init__(self, caps: Caps, address: str, *, known: bool) -> None:
        self._caps, self._address, self._known, self._held = caps, address, known, True

    def vouch(self) -> None:
        """Count the caller as a member: it has proved its identity."""
        if self._held and not self._known:
            self._caps.release(self._address, known=False)
            self._known = True
            self._caps.take(self._address, known=True)

    def leave(self) -> None:
        """Free the place: the connection has ended. Idempotent."""
        if self._held:
            self._held = False
            self._caps.release(self._address, known=self._known)


class Caps:
    """The limits of one listener."""

    def __init__(self, *, total: int, strangers: int, each: int) -> None:
        """At most `total` connections, `strangers` of them from addresses of no member, and `each` of those from one
        address (for IPv6 from one /64 network, which a single machine can own)."""
        self._total, self._strangers, self._each = total, strangers, each
        self._open = {True: 0, False: 0}
        self._by_address: collections.Counter[str] = collections.Counter()

    @property
    def count(self) -> int:
        """Return the number of connections."""
        return sum(self._open.values())

    def enter(self, address: str, *, known: bool) -> Place | None:
        """Return a place for a connection from `address`; `known`: it is a member's. None if a limit is reached."""
        if self.count >= self._total:
            return None
        if not known and (self._open[False] >= self._strangers or self._by_address[_origin(address)] >= self._each):
            return None
        self.take(address, known=known)
        return Place(self, address, known=known)

    def take(self, address: str, *, known: bool) -> None:
        """Count one connection more."""
        self._open[known] += 1
        if not known:
            self._by_address[_origin(address)] += 1

    def release(self, address: str, *, known: bool) -> None:
        """Count one connection less."""
        self._open[known] -= 1
        if not known:
            self._by_address[_origin(address)] -= 1
            self._by_address = +self._by_address


def _origin(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, an IPv6 /64 network, or the text itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return (parsed.ipv4_mapped or ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64))).compressed
    return str(parsed)
