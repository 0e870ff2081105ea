"""What the cluster agrees on: records and owners of domains, reservations of moves."""

from __future__ import annotations

from dataclasses import dataclass

from veery.model.domain import DomainSpec

LEVEL = 1
"""The highest level that this version can do (cluster/levels.py). 0: a version that tells none. 1: keeps fields that it
does not know when it rewrites a record, and reads over unknown roles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLevel:
    """The key `level`: what all nodes can do. It never falls. `since`: epoch; `by`: the node that raised it."""

    level: int
    since: float = 0.0
    by: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The one node that may run domain `domain`. `revision` is the fencing token: the store's
    modification revision of the key; `boot` names this run of the domain (a new one at each start)."""

    domain: str
    node: str
    boot: str
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainRecord:
    """What outlives a run of a domain: its spec with UUID and MACs filled in. `saved` names the save
    file's token that may still be restored ("" when none: the disks were written since). `home` is the node to which
    its local disks were moved ("": they never were): whatever another node has of them is stale. `left` is the node
    that the domain was taken from by a fence at the storage ("": none): it may still write files that are its disks."""

    spec: DomainSpec
    saved: str = ""
    home: str = ""
    left: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A target's promise to take domain `domain` in, for move `move`; without it no COMMIT succeeds."""

    domain: str
    move: str
    source: str
    target: str
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The cluster itself: its name, its CA's certificate (PEM) and the naming part of its IQNs, as in
    "iqn.2026-11.internal.lab" (RFC 7143, 4.2.7.5): a name is `authority`, a colon and the rest."""

    name: str
    id: str
    ca: str
    authority: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """certificate/NODE: the node's certificate, by its serial number (hex); `ends`: epoch; `issuer`: the id of the CA
    that signed it ("": an older veery). After a renewal `former` is the certificate before, which is let in until the
    node has put it out; `since`: when the new one was signed, epoch."""

    serial: str
    ends: float
    issuer: str = ""
    former: str = ""
    former_ends: float = 0.0
    since: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """The CAs whose certificates are trusted, PEM, the oldest first: two while a new one is rolled out. `signing` is
    the id of the one that signs."""

    trusted: tuple[str, ...]
    signing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusting:
    """trust/NODE: the ids of the CAs that the node's daemon and its etcd trust."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """revoked/SERIAL: the certificate of `node`, which was put out; nobody needs to remember it after `ends`, epoch."""

    node: str
    ends: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """A node's sign of life, bound to its lease. `started` is when its daemon began, in seconds of the epoch. `level`
    is the highest that its version can do (0: a version without levels)."""

    node: str
    started: float
    version: str = ""
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A permission to join, used once. It is kept under the hash of its secret; `expires` in seconds of the epoch.
    `node` is the one whose caller made it ("": an older veery): the token is worth nothing once that is put out."""

    expires: float
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatus:
    """A token as operators see it: `id` is the beginning of the hash of its secret; `expires`: epoch."""

    id: str
    node: str
    expires: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Incarnation:
    """The one life of the store, from its making to the next time it is adopted after a restore. `before`: the ids of
    earlier ones. `doubt`: why a node found that the store went back ("" while nobody did), `by`: that node. While a
    doubt stands no node acts on what the store says."""

    id: str
    before: tuple[str, ...] = ()
    doubt: str = ""
    by: str = ""
    revision: int = 0
