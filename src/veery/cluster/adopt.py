"""Adopting a store that was restored from a backup: its owner keys are made to say what runs where.

    plan     pure: what is to be written, and what stands in the way
    write    the transactions; the last one gives the store a new incarnation, and every node goes on

Until that last transaction the doubt stands in the store (veery.cluster.trust), so no node acts on a half of it. Every
transaction asks that the doubt be the one that was read first. Adopting again after a failure is safe."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from veery.cluster.identity import make_initiator
from veery.cluster.keys import (
    CHAP_SEALED,
    CLUSTER,
    DOMAINS,
    FENCES,
    INCARNATION,
    INCARNATIONS,
    INITIATORS,
    NODES,
    OWNERS,
    RESERVATIONS,
    Kind,
    Unreadable,
)
from veery.cluster.store import Delete, Put, Snapshot, Store, StoreUnavailable, Unchanged
from veery.errors import Refused
from veery.host.log import decision
from veery.model import codec, newer
from veery.model.adoption import Adoption, CopyHere, Inventory
from veery.model.cluster import Cluster, DomainRecord, Incarnation, Owner, Reservation
from veery.model.ha import OPERATOR, FenceRecord, FenceState
from veery.model.node import Node

T = TypeVar("T")

log = logging.getLogger(__name__)

AT_ONCE = 50  # writes in one transaction; etcd takes 128
LINEAGE = 64  # earlier incarnations that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What the restored store says of all that an adoption is about."""

    incarnation: Incarnation | None
    owners: Mapping[str, Owner]
    domains: Mapping[str, DomainRecord]
    nodes: Mapping[str, Node]
    fences: Collection[str]
    moves: Mapping[str, Reservation]
    whole: bool = True  # the cluster's own record is there


async def read(store: Store) -> Records:
    """The records of `store`, which is taken as it is. Raises StoreUnavailable, Unreadable."""
    snapshot = await store.scan("")
    found = {entry.key: entry for entry in snapshot.entries}
    entry = found.get(INCARNATION)
    return Records(
        incarnation=INCARNATIONS.value(entry) if entry else None,
        owners=_all(OWNERS, snapshot),
        domains=_all(DOMAINS, snapshot, strict=False),
        nodes=_all(NODES, snapshot),
        fences=frozenset(FENCES.name(key) for key in found if key.startswith(FENCES.prefix)),
        moves=_all(RESERVATIONS, snapshot, strict=False),
        whole=CLUSTER in found,
    )


def _all(kind: Kind[T], snapshot: Snapshot, *, strict: bool = True) -> dict[str, T]:
    values: dict[str, T] = {}
    for entry in snapshot.entries:
        if entry.key.startswith(kind.prefix):
            try:
                values[kind.name(entry.key)] = kind.value(entry)
            except Unreadable:
                if strict:
                    raise
    return values


def plan(records: Records, told: Mapping[str, Inventory], silent: Mapping[str, str], lost: Collection[str]) -> Adoption:
    """What adopting the store comes to. `told`: what the nodes that answered say; `silent`: the others, and why there
    is no answer; `lost`: those that an operator vouches for to be off. Pure."""
    refusals = _standing(records, told, silent, lost)
    copies, conflicts = _places(told)
    refusals += conflicts
    owners, changes = _owners(records, copies)
    specs = {copy.domain: copy.spec for _, copy in copies.values() if copy.spec is not None}
    specs = {name: spec for name, spec in specs.items() if name not in records.domains or _newer(records, name, copies)}
    changes += [f"the record of {name} is written anew" for name in sorted(specs)]
    free = [name for name, owner in records.owners.items() if name not in copies and owner.node not in lost]
    changes += [f"{name} runs nowhere: {records.owners[name].node} owns it no more" for name in free]
    # With the owner keys written after the fence was, its node would take what runs there for stale, and end it. A node
    # that runs nothing is let in again by the brain.
    lift = sorted(node for node in records.fences if node in {where for where, _ in copies.values()})
    changes += [f"the fence of {node} is removed: it runs domains, and no storage node shuts it out" for node in lift]
    changes += [f"{node} is fenced on your word that it is off: its domains may start elsewhere" for node in lost]
    changes += [f"the move of {name} is forgotten" for name in sorted(records.moves)]
    nodes = tuple(each.record for name, each in sorted(told.items()) if each.record and name not in records.nodes)
    changes += [f"the record of node {node.name} is written anew, with a new password for disks" for node in nodes]
    return Adoption(
        refusals=tuple(refusals),
        changes=tuple(changes),
        owners=owners,
        specs=specs,
        free=tuple(free),
        lift=tuple(lift),
        lost=tuple(sorted(lost)),
        nodes=nodes,
        before=_lineage(records, told),
    )


def _standing(
    records: Records, told: Mapping[str, Inventory], silent: Mapping[str, str], lost: Collection[str]
) -> list[str]:
    """What keeps nodes from being believed."""
    found = []
    if not records.whole:
        found.append("the store has no record of the cluster: it is empty, and no copy of it; restore a snapshot first")
    if records.incarnation is None or not records.incarnation.doubt:
        found.append("the store is not doubted: there is nothing to adopt")
    for name, why in sorted(silent.items()):
        if name not in lost:
            found.append(
                f"{name} does not answer ({why}): start its veeryd; or, if it is off for certain, --lost {name}"
            )
    for name in sorted(lost):
        if name in told:
            found.append(f"{name} answers: it is not lost")
        elif name not in silent:
            found.append(f"no node {name!r}")
    for name, each in sorted(told.items()):
        if not each.restored:
            found.append(f"{name} has not noticed yet that the store was restored: try again in a few seconds")
        found += [f"an order on {copy.domain} is under way on {name}: try again" for copy in each.copies if copy.busy]
        running = sorted(copy.domain for copy in each.copies if not copy.incoming)
        if each.shut and running:
            found.append(
                f"{', '.join(each.shut)} shut {name} out: what runs there may be stale; "
                f"end it: {'; '.join(f'veery --node {name} destroy {domain}' for domain in running)}"
            )
    return found


def _places(told: Mapping[str, Inventory]) -> tuple[dict[str, tuple[str, CopyHere]], list[str]]:
    """Where each domain runs, and those that run twice."""
    found: dict[str, list[tuple[str, CopyHere]]] = {}
    for name, each in sorted(told.items()):
        for copy in each.copies:
            if not copy.incoming:
                found.setdefault(copy.domain, []).append((name, copy))
    conflicts = [
        f"{domain} is on {' and on '.join(node for node, _ in several)}: "
        f"end the copy that is wrong: veery --node NODE destroy {domain}"
        for domain, several in sorted(found.items())
        if len(several) > 1
    ]
    return {domain: several[0] for domain, several in sorted(found.items()) if len(several) == 1}, conflicts


def _owners(records: Records, copies: Mapping[str, tuple[str, CopyHere]]) -> tuple[tuple[Owner, ...], list[str]]:
    """All owner keys, written anew: a transaction that was prepared before the restore finds none as it was."""
    owners, changes = [], []
    for domain, (node, copy) in copies.items():
        old = records.owners.get(domain)
        same = old is not None and old.node == node and copy.boot in ("", old.boot)
        boot = old.boot if old is not None and same else copy.boot or secrets.token_hex(8)
        owners.append(Owner(domain=domain, node=node, boot=boot))
        if not same:
            was = f"the store says {old.node}" if old is not None and old.node != node else "the store knew another run"
            changes.append(f"{domain} runs on {node}: {was if old else 'the store says nobody'}")
    return tuple(owners), changes


def _newer(records: Records, name: str, copies: Mapping[str, tuple[str, CopyHere]]) -> bool:
    """Whether the domain runs with another spec than its record says: the record went back."""
    return copies[name][1].spec != records.domains[name].spec


def _lineage(records: Records, told: Mapping[str, Inventory]) -> tuple[str, ...]:
    """Every incarnation that somebody knows; "" stands for the time before there were any."""
    known = [""]
    for each in told.values():
        known += each.incarnations
    if records.incarnation is not None:
        known += [*records.incarnation.before, records.incarnation.id]
    return tuple(dict.fromkeys(known))[-LINEAGE:]


async def write(store: Store, records: Records, adoption: Adoption, *, by: str, epoch: float, name: str = "") -> str:
    """Carry `adoption` out on `store`, which is taken as it is; the new incarnation's id (`name`, if given).

    Raises Refused where something stands in its way, or the doubt is not the one that was read; StoreUnavailable,
    OutcomeUnknown: adopt again."""
    if adoption.refusals:
        raise Refused("; ".join(adoption.refusals), hint="veery cluster adopt --plan")
    assert records.incarnation is not None
    same = Unchanged(INCARNATION, records.incarnation.revision)
    operations = _operations(records, adoption, by=by, epoch=epoch) + await _newcomers(store, adoption)
    for start in range(0, len(operations), AT_ONCE):
        await _commit(store, same, operations[start : start + AT_ONCE])
    new = Incarnation(id=name or secrets.token_hex(8), before=adoption.before)
    await _commit(store, same, [INCARNATIONS.put(INCARNATION, new)])
    log.warning(decision("store.adopted", incarnation=new.id, by=by, owners=len(adoption.owners)))
    return new.id


def _operations(records: Records, adoption: Adoption, *, by: str, epoch: float) -> list[Put | Delete]:
    found: list[Put | Delete] = [OWNERS.put(owner.domain, owner) for owner in adoption.owners]
    for domain, spec in sorted(adoption.specs.items()):
        old = records.domains.get(domain)
        found.append(DOMAINS.put(domain, newer.kept(DomainRecord(spec=spec, home=old.home if old else ""), old)))
    found += [Delete(OWNERS.key(domain)) for domain in adoption.free]
    found += [Delete(RESERVATIONS.key(domain)) for domain in sorted(records.moves)]
    found += [Delete(FENCES.key(node)) for node in adoption.lift]
    proof = f"{by or 'an operator'} says that it is off (cluster adopt)"
    lost = FenceRecord(state=FenceState.FENCED, method=OPERATOR, proof=proof, at=epoch)
    found += [FENCES.put(node, lost) for node in adoption.lost]
    return found


async def _newcomers(store: Store, adoption: Adoption) -> list[Put | Delete]:
    if not adoption.nodes:
        return []
    entry = await store.get(CLUSTER)
    found: list[Put | Delete] = [NODES.put(node.name, node) for node in adoption.nodes]
    if entry is not None:
        cluster = codec.decode(entry.value, Cluster)
        made = [make_initiator(cluster, node.name) for node in adoption.nodes]
        if await store.get(CHAP_SEALED) is not None:  # each of them gives its password itself (initiators.py)
            made = [replace(one, password="") for one in made]
        found += [INITIATORS.put(one.node, one) for one in made]
    return found


async def _commit(store: Store, same: Unchanged, operations: Sequence[Put | Delete]) -> None:
    if not (await store.commit([same], operations)).held:
        raise StoreUnavailable("the store was doubted anew meanwhile", hint="veery cluster adopt --plan, then again")
