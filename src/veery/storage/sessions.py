"""The owners of iSCSI sessions, judged by their addresses. Pure.

tgt binds accounts and ACL entries to a target and not to each other (iscsid.c, login_start and text_scan_security). So
an admitted node can log in with another node's initiator name and its own account, or the reverse. Only the address of
the session shows that."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from veery.model.node import Node
from veery.storage.tgtoutput import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The owner of an initiator name: a node, and the addresses in its record."""

    node: str
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A connection with the initiator name of node `claims` that comes from none of its addresses: from node `node`, or
    ("") from an address of no node."""

    tid: int
    sid: int
    cid: int
    target: str
    claims: str
    address: str
    node: str


def homes(nodes: Iterable[Node]) -> dict[str, Home]:
    """Return the owner of each initiator name."""
    return {
        node.initiator: Home(
            node=node.name,
            addresses=frozenset(plain(each) for each in node.addresses),
        )
        for node in nodes
        if node.initiator
    }


def plain(address: str) -> str:
    """Return an address in its comparable form: IPv6 in its short form, without zone."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address.partition("%")[0]))
    return address


def alone(known: Mapping[str, Home], initiator: str) -> frozenset[str]:
    """Return the addresses that only the node with this initiator name has."""
    home = known.get(initiator)
    if home is None:
        return frozenset()
    others = [each.addresses for each in known.values() if each.node != home.node]
    return home.addresses.difference(*others)


def strangers(targets: Sequence[Target], known: Mapping[str, Home]) -> tuple[Stranger, ...]:
    """Return every connection from a wrong address for its initiator name. Names of no node are left out: the
    reconciliation closes their sessions (plan.py)."""
    owners = {address: home.node for home in known.values() for address in home.addresses}
    found = []
    for target in targets:
        for session in target.sessions:
            home = known.get(session.initiator)
            for connection in session.connections if home else ():
                address = plain(connection.address)
                if not home or not address or address in home.addresses:
                    continue
                found.append(
                    Stranger(
                        tid=target.tid,
                        sid=session.sid,
                        cid=connection.cid,
                        target=target.iqn,
                        claims=home.node,
                        address=address,
                        node=owners.get(address, ""),
                    )
                )
    return tuple(found)
