"""How many connections a listener holds: bounds in all and per address, with a share that strangers cannot take.

Pure counting; `host/acceptor.py` asks before it keeps a connection."""

from __future__ import annotations

import collections
import ipaddress


class Place:
    """One connection's place among those that are counted; `leave` gives it back."""

    def __init__(self, caps: Caps, address: str, *, known: bool) -> None:
        self._caps, self._address, self._known, self._held = caps, address, known, True

    def vouch(self) -> None:
        """The caller has proved to be one of ours: it no longer counts among the strangers."""
        if self._held and not self._known:
            self._caps.release(self._address, known=False)
            self._known = True
            self._caps.take(self._address, known=True)

    def leave(self) -> None:
        """The connection has ended. Idempotent."""
        if self._held:
            self._held = False
            self._caps.release(self._address, known=self._known)


class Caps:
    """The bounds of one listener."""

    def __init__(self, *, total: int, strangers: int, each: int) -> None:
        """`total` connections in all, `strangers` of them from addresses that are no member's, `each` of those from any
        one address (of IPv6: from any one network of 64 bits, which one machine can have for itself)."""
        self._total, self._strangers, self._each = total, strangers, each
        self._open = {True: 0, False: 0}
        self._by_address: collections.Counter[str] = collections.Counter()

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self._open.values())

    def enter(self, address: str, *, known: bool) -> Place | None:
        """A place for a connection from `address`, `known` where it is a member's; None where there is no room."""
        if self.count >= self._total:
            return None
        if not known and (self._open[False] >= self._strangers or self._by_address[_origin(address)] >= self._each):
            return None
        self.take(address, known=known)
        return Place(self, address, known=known)

    def take(self, address: str, *, known: bool) -> None:
        """Count one more."""
        self._open[known] += 1
        if not known:
            self._by_address[_origin(address)] += 1

    def release(self, address: str, *, known: bool) -> None:
        """Count one less."""
        self._open[known] -= 1
        if not known:
            self._by_address[_origin(address)] -= 1
            self._by_address = +self._by_address


def _origin(address: str) -> str:
    """What counts as one caller: an IPv4 address, an IPv6 network of 64 bits, or the text itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return (parsed.ipv4_mapped or ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64))).compressed
    return str(parsed)
