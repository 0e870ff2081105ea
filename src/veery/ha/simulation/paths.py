"""The simulated networks: whose packets reach whom, one way or both, on the cluster's network and the storage's.

A call needs both ways. Where only the way back is cut, what was sent on a connection that stood already arrives and is
carried out, and its answer is lost; a new connection cannot be made, so after a while nothing arrives any more."""

from __future__ import annotations

from collections.abc import Collection

NETS = ("cluster", "storage")
OPEN = 5.0  # seconds for which a connection that stood before carries what is sent, when only the way back is cut


class Paths:
    """What is cut, beside the machines whose whole network is."""

    def __init__(self, names: Collection[str]) -> None:
        """`names`: all nodes."""
        self._names = tuple(names)
        self._cuts: dict[tuple[str, str, str], float] = {}  # (from, to, net): since when its packets are lost

    def cut(self, node: str, *, peer: str, net: str, way: str, now: float) -> None:
        """Lose the packets between `node` and `peer` ("": all others); `way`: "out" (from node), "in" or "both"."""
        for key in self._keys(node, peer, net, way):
            self._cuts.setdefault(key, now)

    def heal(self, node: str, *, peer: str, net: str, way: str) -> None:
        """They pass again."""
        for key in self._keys(node, peer, net, way):
            self._cuts.pop(key, None)

    def _keys(self, node: str, peer: str, net: str, way: str) -> list[tuple[str, str, str]]:
        keys = []
        for each in NETS if net == "all" else (net,):
            for other in (peer,) if peer else (name for name in self._names if name != node):
                keys += [(node, other, each)] if way != "in" else []
                keys += [(other, node, each)] if way != "out" else []
        return keys

    @property
    def whole(self) -> bool:
        """Whether nothing is cut here."""
        return not self._cuts

    def both(self, one: str, other: str, net: str) -> bool:
        """Whether two nodes can talk."""
        return not self._cuts or ((one, other, net) not in self._cuts and (other, one, net) not in self._cuts)

    def sends(self, one: str, other: str, net: str, now: float) -> bool:
        """Whether what `one` sends is taken by `other`, answered or not."""
        if (one, other, net) in self._cuts:
            return False
        back = self._cuts.get((other, one, net))
        return back is None or now - back < OPEN
