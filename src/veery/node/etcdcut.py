"""Cuts the open connections of removed nodes to a voter's etcd.

etcd compares a certificate with the list of revoked ones only at the handshake. It cannot be seen from outside which
certificate a connection began with, so addresses decide. When a certificate is revoked, every connection from an
address of no node is shut down, at the clients' port and at the members' port. A node that is cut by mistake, because
its record does not name its address, reconnects at once and is checked again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence

from veery.cluster.keys import NODES
from veery.cluster.store import Store
from veery.host.log import decision
from veery.model.endpoint import canonical
from veery.model.node import Node
from veery.storage.sockets import Peer, connections, shut_down

log = logging.getLogger(__name__)

FOUND_S, FOUND_LOOK_S = 5.0, 0.1


def strange(peers: Iterable[Peer], nodes: Collection[Node]) -> tuple[Peer, ...]:
    """Return the peers that come from an address of none of `nodes`. Pure."""
    theirs = {canonical(address) for node in nodes for address in node.addresses}
    return tuple(peer for peer in peers if canonical(peer.address) not in theirs)


class EtcdCut:
    """Cuts connections to etcd on a voter; a `cluster.revocation.Cut`."""

    def __init__(self, store: Store, ports: Sequence[int], pid: Callable[[], int | None]) -> None:
        """`ports` are those at which etcd listens. `pid` returns its process, or None if it does not run."""
        self._store, self._ports, self._pid = store, ports, pid
        self._done: frozenset[str] = frozenset()

    async def __call__(self, serials: Collection[str]) -> None:
        """Cut connections if one of `serials` is new, and once after a start of veeryd, because etcd runs on while
        veeryd is stopped. Raises StoreUnavailable."""
        if self._done.issuperset(serials):
            return
        nodes = tuple((await NODES.readable(self._store)).values())
        pid = await self._running()
        if pid is None:
            log.info("etcd does not run; it will read the list of revoked certificates when it starts")
            return
        found = tuple(peer for port in self._ports for peer in strange(connections(port), nodes))
        if not found or await self._shut(pid, found):
            self._done = frozenset(serials)

    async def _running(self) -> int | None:
        """Return etcd's process. A daemon that has just started finds it a moment later."""
        for _ in range(int(FOUND_S / FOUND_LOOK_S)):
            if (pid := self._pid()) is not None:
                return pid
            await asyncio.sleep(FOUND_LOOK_S)
        return None

    async def _shut(self, pid: int, found: tuple[Peer, ...]) -> bool:
        try:
            done = await asyncio.to_thread(shut_down, pid, found)
        except OSError as error:
            log.error("connections of removed nodes to etcd could not be cut (%s): end etcd, pid %d", error, pid)
            return False
        told = ",".join(sorted({peer.address for peer in found}))
        log.warning(decision("etcd.cut", addresses=told, count=done, reason="a certificate was revoked"))
        return True
