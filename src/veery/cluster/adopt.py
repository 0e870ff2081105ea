"""Adopt a store that was restored from a backup: rewrite its owner keys to match what runs on the nodes.

    plan     pure: what has to be written, and what prevents the adoption
    write    the transactions; the last one gives the store a new incarnation, and every node continues

Until that last transaction the store keeps its doubt record (veery.cluster.trust), so no node acts on a half-adopted
store. Every transaction requires that the doubt record is unchanged. Adopting again after a failure is safe."""

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

TRANSACTION_WRITES = 50  # writes in one transaction; etcd takes 128
LINEAGE_MAX = 64  # earlier incarnations that the store remembers


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The records of the restored store that an adoption needs."""

    incarnation: Incarnation | None
    owners: Mapping[str, Owner]
    domains: Mapping[str, DomainRecord]
    nodes: Mapping[str, Node]
    fences: Collection[str]
    moves: Mapping[str, Reservation]
    whole: bool = True  # the cluster's own record exists


async def read(store: Store) -> Records:
    """Return the records of `store`, which is read without a trust check. Raises StoreUnavailable, Unreadable."""
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


def plan(
    records: Records, reports: Mapping[str, Inventory], silent: Mapping[str, str], lost: Collection[str]
) -> Adoption:
    """Return what an adoption would change. Pure. `reports`: the inventories of the nodes that answered. `silent`: the
    other nodes, each with the reason for the missing answer. `lost`: nodes that the operator states to be off."""
    refusals = _standing(records, reports, silent, lost)
    copies, conflicts = _places(reports)
    refusals += conflicts
    owners, changes = _owners(records, copies)
    specs = {copy.domain: copy.spec for _, copy in copies.values() if copy.spec is not None}
    specs = {name: spec for name, spec in specs.items() if name not in records.domains or _newer(records, name, copies)}
    changes += [f"the record of {name} is written again" for name in sorted(specs)]
    free = [name for name, owner in records.owners.items() if name not in copies and owner.node not in lost]
    changes += [f"{name} runs nowhere: {records.owners[name].node} no longer owns it" for name in free]
    # The owner keys are now newer than the fence, so the fenced node would judge its copies stale and end them.
    # The HA leader lifts the fence of a node that runs nothing.
    lift = sorted(node for node in records.fences if node in {where for where, _ in copies.values()})
    changes += [f"the fence of {node} is removed: it runs domains, and no storage node shuts it out" for node in lift]
    changes += [f"{node} is fenced because you state that it is off: its domains may start elsewhere" for node in lost]
    changes += [f"the reservation of the move of {name} is deleted" for name in sorted(records.moves)]
    nodes = tuple(each.record for name, each in sorted(reports.items()) if each.record and name not in records.nodes)
    changes += [f"the record of node {node.name} is written again, with a new password for disks" for node in nodes]
    return Adoption(
        refusals=tuple(refusals),
        changes=tuple(changes),
        owners=owners,
        specs=specs,
        free=tuple(free),
        lift=tuple(lift),
        lost=tuple(sorted(lost)),
        nodes=nodes,
        before=_lineage(records, reports),
    )


def _standing(
    records: Records, reports: Mapping[str, Inventory], silent: Mapping[str, str], lost: Collection[str]
) -> list[str]:
    """Return the reasons why the nodes' reports cannot be used yet."""
    found = []
    if not records.whole:
        found.append("the store has no record of the cluster: it is empty, no restored copy; restore a snapshot first")
    if records.incarnation is None or not records.incarnation.doubt:
        found.append("the store is not doubted: there is nothing to adopt")
    for name, why in sorted(silent.items()):
        if name not in lost:
            found.append(
                f"{name} does not answer ({why}): start its veeryd; or, if it is off for certain, --lost {name}"
            )
    for name in sorted(lost):
        if name in reports:
            found.append(f"{name} answers, so it is not lost")
        elif name not in silent:
            found.append(f"no node {name!r}")
    for name, each in sorted(reports.items()):
        if not each.restored:
            found.append(f"{name} has not noticed yet that the store was restored: try again in a few seconds")
        busy = [copy.domain for copy in each.copies if copy.busy]
        found += [f"an operation on {domain} is in progress on {name}: try again" for domain in busy]
        running = sorted(copy.domain for copy in each.copies if not copy.incoming)
        if each.shut and running:
            found.append(
                f"{', '.join(each.shut)} shut {name} out: its domains may be stale; "
                f"end them: {'; '.join(f'veery --node {name} destroy {domain}' for domain in running)}"
            )
    return found


def _places(reports: Mapping[str, Inventory]) -> tuple[dict[str, tuple[str, CopyHere]], list[str]]:
    """Return the node and copy of each domain that runs once, and a conflict for each that runs twice."""
    found: dict[str, list[tuple[str, CopyHere]]] = {}
    for name, each in sorted(reports.items()):
        for copy in each.copies:
            if not copy.incoming:
                found.setdefault(copy.domain, []).append((name, copy))
    conflicts = [
        f"{domain} is on {' and on '.join(node for node, _ in several)}: "
        f"end the wrong copy: veery --node NODE destroy {domain}"
        for domain, several in sorted(found.items())
        if len(several) > 1
    ]
    return {domain: several[0] for domain, several in sorted(found.items()) if len(several) == 1}, conflicts


def _owners(records: Records, copies: Mapping[str, tuple[str, CopyHere]]) -> tuple[tuple[Owner, ...], list[str]]:
    """Return all owner keys, to be written again, so that no transaction from before the restore can commit."""
    owners, changes = [], []
    for domain, (node, copy) in copies.items():
        old = records.owners.get(domain)
        same = old is not None and old.node == node and copy.boot in ("", old.boot)
        boot = old.boot if old is not None and same else copy.boot or secrets.token_hex(8)
        owners.append(Owner(domain=domain, node=node, boot=boot))
        if not same:
            was = "the store says no owner"
            if old is not None:
                was = f"the store says {old.node}" if old.node != node else "the store says another instance"
            changes.append(f"{domain} runs on {node}: {was}")
    return tuple(owners), changes


def _newer(records: Records, name: str, copies: Mapping[str, tuple[str, CopyHere]]) -> bool:
    """Return whether the domain runs with another spec than its record has: the restore reverted the record."""
    return copies[name][1].spec != records.domains[name].spec


def _lineage(records: Records, reports: Mapping[str, Inventory]) -> tuple[str, ...]:
    """Return every incarnation known to a node or the store; "" is the time before the first one."""
    known = [""]
    for each in reports.values():
        known += each.incarnations
    if records.incarnation is not None:
        known += [*records.incarnation.before, records.incarnation.id]
    return tuple(dict.fromkeys(known))[-LINEAGE_MAX:]


async def write(store: Store, records: Records, adoption: Adoption, *, by: str, epoch: float, name: str = "") -> str:
    """Carry `adoption` out on `store`, without a trust check; return the new incarnation's id (`name`, if given).

    Raises Refused if the plan has refusals; StoreUnavailable if the doubt record changed or the store does not answer;
    OutcomeUnknown: adopt again."""
    if adoption.refusals:
        raise Refused("; ".join(adoption.refusals), hint="veery cluster adopt --plan")
    assert records.incarnation is not None
    same = Unchanged(INCARNATION, records.incarnation.revision)
    operations = _operations(records, adoption, by=by, epoch=epoch) + await _newcomers(store, adoption)
    for start in range(0, len(operations), TRANSACTION_WRITES):
        await _commit(store, same, operations[start : start + TRANSACTION_WRITES])
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
        if await store.get(CHAP_SEALED) is not None:  # each node offers its password itself (initiators.py)
            made = [replace(one, password="") for one in made]
        found += [INITIATORS.put(one.node, one) for one in made]
    return found


async def _commit(store: Store, same: Unchanged, operations: Sequence[Put | Delete]) -> None:
    if not (await store.commit([same], operations)).held:
        raise StoreUnavailable("the store's doubt changed meanwhile", hint="veery cluster adopt --plan, then again")
