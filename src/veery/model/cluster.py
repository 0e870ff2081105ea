"""Records of the store: owners and records of domains, reservations of moves, certificates, tokens, incarnation."""

from __future__ import annotations

from dataclasses import dataclass

from veery.model.domain import DomainSpec

LEVEL = 1
"""The highest level that this version supports (cluster/levels.py). 0: a version without levels. 1: it keeps unknown
fields when it rewrites a record, and ignores unknown roles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLevel:
    """The key `level`: the level that all nodes support. It never falls. `since`: epoch. `by`: the node that set it."""

    level: int
    since: float = 0.0
    by: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The owner key: `node` is the only node that may run domain `domain`. `revision` is the fencing token: the store's
    modification revision of the key. `boot`: the id of the instance, new at each start. `started`: the time of the
    guest's last boot as the source knew it at COMMIT, in seconds since the epoch (0: the instance was never moved, or
    by an older veery)."""

    domain: str
    node: str
    boot: str
    started: float = 0.0
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRecord:
    """The record of a domain, which outlives its instances: its spec, with UUID and MACs filled in. `saved`: the token
    of the save file that can still be restored ("": none, the disks were written since). `home`: the node to which its
    local disks were moved ("": never moved); copies on other nodes are stale. `left`: the node that lost the domain by
    a fence at the storage ("": none); it may still write to files that are its disks."""

    spec: DomainSpec
    saved: str = ""
    home: str = ""
    left: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The reservation of a target: it takes domain `domain` in move `move`. Without it no COMMIT succeeds."""

    domain: str
    move: str
    source: str
    target: str
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The cluster: its name, its CA's certificate (PEM) and the naming authority of its IQNs, such as
    "iqn.2026-11.internal.lab" (RFC 7143, 4.2.7.5). An IQN is `authority`, a colon and the rest."""

    name: str
    id: str
    ca: str
    authority: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """certificate/NODE: the node's certificate, by its serial number (hex). `ends`: epoch. `issuer`: the id of the CA
    that signed it ("": an older veery). After a renewal `former` is the previous certificate, which stays valid until
    the node revokes it. `since`: when the new certificate was signed, epoch."""

    serial: str
    ends: float
    issuer: str = ""
    former: str = ""
    former_ends: float = 0.0
    since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """The trusted CAs (PEM), the oldest first: two during a change. `signing`: the id of the CA that signs."""

    trusted: tuple[str, ...]
    signing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusting:
    """trust/NODE: the ids of the CAs that the node's veeryd and etcd trust."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """revoked/SERIAL: a revoked certificate of `node`. The record is needed until `ends`, epoch."""

    node: str
    ends: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A node's presence, bound to its lease. `started`: when its veeryd started, in seconds of the epoch. `level`: the
    highest level that its version supports (0: a version without levels)."""

    node: str
    started: float
    version: str = ""
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A permission to join, valid once. Its key is the hash of its secret. `expires`: seconds of the epoch. `node`: the
    node that created it ("": an older veery); the token becomes invalid when that node is removed."""

    expires: float
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatus:
    """A token as shown to operators. `id`: a prefix of the hash of its secret. `expires`: epoch."""

    id: str
    node: str
    expires: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """The incarnation of the store: from its creation to its next adoption after a restore. `before`: the ids of
    earlier incarnations. `doubt`: why a node found that the store went back in time ("": no node did). `by`: that
    node. While there is a doubt, no node acts on the store's data."""

    id: str
    before: tuple[str, ...] = ()
    doubt: str = ""
    by: str = ""
    revision: int = 0
