"""The names of all keys in the store, and the types of their values.

| key | value |
|---|---|
| cluster | Cluster |
| level | ClusterLevel: the features that all nodes support |
| incarnation | Incarnation: a new one each time the store is adopted after a restore |
| ca/crl | the CAs' lists of revoked certificates, PEM |
| ca/authorities | Authorities; absent: the one in `cluster` |
| ca/sealed/ID | the private key of a CA, sealed (vault.py) |
| ca/key | the same in the clear, of an older veery |
| ca/step | the node that is taking a step of a change of CA; bound to a lease |
| sealing, sealing/NODE | the id of the sealing key; the id of the one that voter NODE has |
| chap/NODE | ChapSecret: a node's CHAP password, sealed (initiators.py) |
| chap-kept/NODE | the id of the CHAP password that NODE keeps itself |
| chap-sealed | exists once no password is written in the clear any more |
| chap-sealing, chap-sealing/NODE | the same for the key of the CHAP passwords; NODE is a voter or storage node |
| trust/NODE | Trusting: the CAs that a node trusts |
| token/SHA256 | Token; the hash is that of its secret |
| joining | the name of the node that is joining; bound to a lease |
| node/NAME, alive/NAME, initiator/NAME | Node, Presence (bound to the node's lease), Initiator (password "": sealed) |
| certificate/NODE, revoked/SERIAL | Certificate of a node, Revoked of a revoked certificate |
| domain/NAME, owner/NAME, reservation/NAME | DomainRecord, Owner, Reservation of a domain |
| volume/NAME, volume-move/NAME | Volume, VolumeMove |
| tid | the number of the newest target |
| processor/NAME, baseline/ACCELERATOR[-VENDOR] | Processor of a node, Baseline of all nodes alike |
| ha/DOMAIN, run/DOMAIN, group/NAME | HaRecord (the request), RunRecord (the HA leader's actions), Group |
| fence/NODE, means/NODE, history/NODE, intent/NODE | FenceRecord, FenceMethods, NodeHistory, NodeIntent |
| health/NODE | HealthRecord: the verdict on the node's sensors, written by the node |
| health-move/NUMBER | HealthMove: a move that a verdict caused; numbers as of events |
| armed/NODE | Armed: a watchdog ends the node when its lease is lost |
| leader | LeaderRecord, bound to the leader's lease |
| disarmed | Disarmed, while HA is to do nothing |
| event/NUMBER | Event; numbers of 20 digits, so that they sort by time |
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from veery.cluster.store import Entry, Put, Store
from veery.errors import Failed, NotFound, Refused
from veery.model import codec
from veery.model.cluster import (
    Authorities,
    Certificate,
    Cluster,
    ClusterLevel,
    DomainRecord,
    Incarnation,
    Owner,
    Presence,
    Reservation,
    Revoked,
    Token,
    Trusting,
)
from veery.model.fence import Armed
from veery.model.ha import (
    Disarmed,
    Event,
    FenceMethods,
    FenceRecord,
    Group,
    HaRecord,
    LeaderRecord,
    NodeHistory,
    NodeIntent,
    RunRecord,
)
from veery.model.node import Node
from veery.model.plan import Baseline, Processor
from veery.model.verdict import HealthMove, HealthRecord
from veery.model.volume import ChapSecret, Initiator, Volume, VolumeMove

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


class Unreadable(Failed):
    """Raised for a record that exists and cannot be read: damaged, or of another version of veery."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(
            f"{key} cannot be read: {why.replace(chr(10), ' ')}",
            hint="is this node's veery older than another's? if not: docs/ha.md, \"A record that cannot be read\"",
        )
        self.key = key


_UNFIT = re.compile(r"[/\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """All records of one type: `prefix` and the record's name make its key."""

    prefix: str
    type: type[T]

    def key(self, name: str) -> str:
        """Return the key of the record `name`. Raises Refused for a name that no key can have."""
        if not name or len(name) > 200 or _UNFIT.search(name):
            raise Refused(f"not a name: {name!r}", hint="a name has 1 to 200 characters, without '/'")
        return self.prefix + name

    def name(self, key: str) -> str:
        """Return the name of the record at `key`."""
        return key.removeprefix(self.prefix)

    def value(self, entry: Entry) -> T:
        """Return the record in `entry`; its field `revision`, if any, is the entry's. Raises Unreadable."""
        try:
            value = codec.decode(entry.value, self.type)
        except Failed as error:
            raise Unreadable(entry.key, error.message) from error
        if hasattr(value, "revision"):
            return cast(T, dataclasses.replace(cast("DataclassInstance", value), revision=entry.revision))
        return value

    def put(self, name: str, value: T, *, lease: int = 0) -> Put:
        """Return the operation that writes `value`; a `revision` in it is not written."""
        if hasattr(value, "revision"):
            value = cast(T, dataclasses.replace(cast("DataclassInstance", value), revision=0))
        return Put(self.key(name), codec.encode(value), lease)

    async def get(self, store: Store, name: str) -> T | None:
        """Return the record `name`, or None. Raises StoreUnavailable, Unreadable."""
        entry = await store.get(self.key(name))
        return self.value(entry) if entry else None

    async def all(self, store: Store) -> dict[str, T]:
        """Return all records of this kind by name, sorted. For decisions that need every record: Raises Unreadable for
        any that cannot be read, StoreUnavailable."""
        snapshot = await store.scan(self.prefix)
        return {self.name(entry.key): self.value(entry) for entry in snapshot.entries}

    async def sifted(self, store: Store) -> tuple[dict[str, T], dict[str, Unreadable]]:
        """Return the readable records and the errors of the others, both by name, sorted. Raises StoreUnavailable."""
        good: dict[str, T] = {}
        bad: dict[str, Unreadable] = {}
        for entry in (await store.scan(self.prefix)).entries:
            try:
                good[self.name(entry.key)] = self.value(entry)
            except Unreadable as error:
                bad[self.name(entry.key)] = error
        return good, bad

    async def readable(self, store: Store) -> dict[str, T]:
        """Return all readable records, by name. Raises StoreUnavailable."""
        return (await self.sifted(store))[0]


NODES = Kind("node/", Node)
ALIVE = Kind("alive/", Presence)
CERTIFICATES = Kind("certificate/", Certificate)
REVOKED = Kind("revoked/", Revoked)
TRUSTS = Kind("trust/", Trusting)
INITIATORS = Kind("initiator/", Initiator)
CHAP_SECRETS = Kind("chap/", ChapSecret)
DOMAINS = Kind("domain/", DomainRecord)
OWNERS = Kind("owner/", Owner)
RESERVATIONS = Kind("reservation/", Reservation)
VOLUMES = Kind("volume/", Volume)
VOLUME_MOVES = Kind("volume-move/", VolumeMove)
TOKENS = Kind("token/", Token)
PROCESSORS = Kind("processor/", Processor)
BASELINES = Kind("baseline/", Baseline)
POLICIES = Kind("ha/", HaRecord)
RUNS = Kind("run/", RunRecord)
GROUPS = Kind("group/", Group)
FENCES = Kind("fence/", FenceRecord)
ARMED = Kind("armed/", Armed)
HEALTHS = Kind("health/", HealthRecord)
MEANS = Kind("means/", FenceMethods)
HISTORIES = Kind("history/", NodeHistory)
INTENTS = Kind("intent/", NodeIntent)
KINDS: tuple[Kind[Any], ...] = (
    *(NODES, ALIVE, INITIATORS, DOMAINS, OWNERS, RESERVATIONS, VOLUMES, VOLUME_MOVES, TOKENS, PROCESSORS, BASELINES),
    *(CERTIFICATES, REVOKED, TRUSTS, CHAP_SECRETS, POLICIES, RUNS, GROUPS, FENCES, ARMED, MEANS, HISTORIES, INTENTS),
    HEALTHS,
)
LEADERS = Kind("", LeaderRecord)  # one record: LEADER
DISARM = Kind("", Disarmed)  # one record: DISARMED
EVENTS = Kind("event/", Event)
HEALTH_MOVES = Kind("health-move/", HealthMove)
INCARNATIONS = Kind("", Incarnation)  # one record: INCARNATION
LEVELS = Kind("", ClusterLevel)  # one record: LEVEL_KEY
AUTHORITIES = Kind("ca/", Authorities)  # one record: "authorities"

CLUSTER = "cluster"
INCARNATION = "incarnation"
LEVEL_KEY = "level"
CA_KEY = "ca/key"
CA_LIST = "ca/crl"
CA_AUTHORITIES = "ca/authorities"
CA_SEALED = "ca/sealed/"
CA_STEP = "ca/step"
SEALING = "sealing"
SEALED_BY = "sealing/"
CHAP_KEPT = "chap-kept/"
CHAP_SEALED = "chap-sealed"
CHAP_SEALING = "chap-sealing"
CHAP_SEALED_BY = "chap-sealing/"
JOINING = "joining"
TID = "tid"
LEADER = "leader"
DISARMED = "disarmed"


async def unreadable(store: Store) -> list[Unreadable]:
    """Return an error for every unreadable record in the store, except events and past moves. Raises
    StoreUnavailable."""
    found: list[Unreadable] = []
    for kind in KINDS:
        found += (await kind.sifted(store))[1].values()
    single: tuple[tuple[str, Kind[Any]], ...] = (
        *((LEADER, LEADERS), (DISARMED, DISARM)),
        *((INCARNATION, INCARNATIONS), (LEVEL_KEY, LEVELS)),
    )
    for key, kind in single:
        entry = await store.get(key)
        try:
            kind.value(entry) if entry else None
        except Unreadable as error:
            found.append(error)
    return found


async def cluster(store: Store) -> Cluster:
    """Return the cluster's own record. Raises Failed before the first daemon has written it, StoreUnavailable."""
    entry = await store.get(CLUSTER)
    if entry is None:
        raise Failed("the cluster has no record yet", hint="is veeryd running on the node of `veery init`?")
    return codec.decode(entry.value, Cluster)


async def node_at(store: Store, where: str) -> Node:
    """Return the node with the name or address `where`. Raises Refused, which lists the nodes, and Unreadable."""
    nodes, bad = await NODES.sifted(store)
    for node in nodes.values():
        if where in (node.name, node.address):
            return node
    if where in bad:
        raise bad[where]
    raise NotFound(f"no node {where!r}", hint=f"the nodes are {', '.join(nodes) or 'none yet'}")
