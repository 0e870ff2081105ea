"""The owner gate: compare-and-set alone decides which node may run a domain.

    claim     no owner    -> a node       a domain starts
    reserve                               a target promises to take the domain in
    commit    source      -> target       the point of no return of a move; deletes the reservation
    drop                                  either side cancels before it; deletes the reservation
    release   a node      -> no owner     a domain has ended
    reclaim   fenced node -> no owner     an operator takes a domain from a node that is proven fenced

`commit` and `drop` both require the reservation unchanged, and both delete it. So at most one of the two succeeds,
in any order of calls from either side; tests/unit/cluster/test_owner_gate.py tests this."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Collection

from veery.cluster import fencing, volumegate
from veery.cluster.keys import ALIVE, DOMAINS, FENCES, OWNERS, POLICIES, RESERVATIONS, RUNS, VOLUME_MOVES, Unreadable
from veery.cluster.store import Delete, Entry, Put, Store, StoreUnavailable, Unchanged
from veery.errors import NotFound, Refused
from veery.host.log import decision
from veery.model import newer
from veery.model.cluster import DomainRecord, Owner, Reservation
from veery.model.domain import DomainSpec
from veery.model.fence import Method
from veery.model.ha import FenceRecord, FenceState, RunRecord

log = logging.getLogger(__name__)

ATTEMPTS = 8  # each can lose a race with another change; more failures in a row mean a fault


class OwnedElsewhere(Refused):
    """Raised when another owner has the domain: `owner` (None: no owner)."""

    def __init__(self, message: str, owner: Owner | None, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.owner = owner


async def read(store: Store, domain: str) -> Owner | None:
    """Return the present owner of `domain`, or None. Raises StoreUnavailable."""
    return await OWNERS.get(store, domain)


async def given(store: Store, reservation: Reservation, boot: str) -> Owner:
    """Return once the store's history shows that the reservation's target owns the domain, for its instance `boot`.

    The change may be out of date already; call `read` for the present owner. Waits without an end if it does not
    happen, so the caller sets a deadline. Raises Compacted if the reservation is too old."""
    key = OWNERS.key(reservation.domain)
    async with contextlib.aclosing(store.watch(key, reservation.revision)) as changes:
        async for change in changes:
            if change.key == key and change.entry is not None:
                owner = OWNERS.value(change.entry)
                if (owner.node, owner.boot) == (reservation.target, boot):
                    return owner
    raise StoreUnavailable(f"the watch of {reservation.domain}'s owner has ended")


async def reservation(store: Store, domain: str) -> Reservation | None:
    """Return the present reservation of `domain`, or None. Raises StoreUnavailable."""
    return await RESERVATIONS.get(store, domain)


async def claim(store: Store, domain: str, node: str, boot: str, record: DomainRecord | None) -> Owner:
    """Make `node` the owner of `domain` for its instance `boot`, and write `record` with it. The domain must have no
    owner and the node no fence.

    Calling again after OutcomeUnknown, with the same `boot`, is safe. Raises OwnedElsewhere with the owner, Refused
    if one of its volumes is being moved or the node is fenced, StoreUnavailable, OutcomeUnknown."""
    wanted = Owner(domain=domain, node=node, boot=boot)
    operations = [OWNERS.put(domain, wanted)] + ([DOMAINS.put(domain, record)] if record else [])
    volumes = _volumes(record)
    for _ in range(ATTEMPTS):
        free = [Unchanged(OWNERS.key(domain), 0), Unchanged(FENCES.key(node), 0)]
        done = await store.commit([*free, *_resting(volumes)], operations)
        if done.held:
            log.info(decision("owner.claim", domain=domain, node=node, boot=boot, revision=done.revision))
            return dataclasses.replace(wanted, revision=done.revision)
        owner = await read(store, domain)
        if owner and (owner.node, owner.boot) == (node, boot):
            return owner
        if owner:
            hint = await way_out(store, owner.node, f"move it: veery --node {owner.node} migrate {domain} {node}")
            raise OwnedElsewhere(f"domain {domain} runs on {owner.node}", owner, hint=hint)
        await fencing.refuse(store, node)
        await _refuse_moving(store, volumes)
    raise _contended(domain)


async def release(store: Store, owner: Owner) -> None:
    """Release a domain that has ended, only while `owner` is unchanged. Do nothing if it has no owner. Its reservation
    is deleted too: an ended domain is not moved.

    Raises OwnedElsewhere if it has another owner or another instance by now; StoreUnavailable, OutcomeUnknown."""
    key = OWNERS.key(owner.domain)
    operations = [Delete(key), Delete(RESERVATIONS.key(owner.domain))]
    if (await store.commit([Unchanged(key, owner.revision)], operations)).held:
        log.info(decision("owner.release", domain=owner.domain, node=owner.node, revision=owner.revision))
        return
    now = await read(store, owner.domain)
    if now is not None:
        raise OwnedElsewhere(f"domain {owner.domain} belongs to {now.node} now", now)


async def reclaim(store: Store, domain: str, *, to: str = "") -> Owner | None:
    """Take `domain` from a node that is proven fenced and has no lease, in one transaction with that proof, as the HA
    leader does. `to`: the node where it is to start ("": it is to end). Return the former owner; None if the domain
    has no owner or its node is not fenced.

    Raises Refused if the fenced node may still write its files, StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        owner = await read(store, domain)
        if owner is None or not (fence := await proof(store, owner.node)):
            return None
        entry = await store.get(DOMAINS.key(domain))
        left = _with_files(entry) if fence.method == Method.STORAGE else None
        if left is not None and to:
            raise still_written(domain, owner.node)
        run = await RUNS.get(store, domain)
        operations: list[Put | Delete] = [Delete(OWNERS.key(domain)), Delete(RESERVATIONS.key(domain))]
        if run is None and await POLICIES.get(store, domain) is not None:
            operations.append(RUNS.put(domain, RunRecord(node=owner.node)))  # that node may have its disks
        if left is not None:
            operations.append(DOMAINS.put(domain, dataclasses.replace(left, left=owner.node)))
        done = await store.commit(
            [
                Unchanged(OWNERS.key(domain), owner.revision),
                Unchanged(FENCES.key(owner.node), fence.revision),
                Unchanged(ALIVE.key(owner.node), 0),
                Unchanged(RUNS.key(domain), run.revision if run else 0),
                Unchanged(DOMAINS.key(domain), entry.revision if entry else 0),
            ],
            operations,
        )
        if done.held:
            log.warning(decision("owner.reclaim", domain=domain, node=owner.node, proof=fence.proof))
            return owner
    raise _contended(domain)


async def refuse_written(store: Store, spec: DomainSpec, record: DomainRecord | None, node: str) -> None:
    """Raise Refused if the domain of `record` is to start on `node` with `spec`, while the node that it was taken from
    may still write its files; StoreUnavailable."""
    if record is None or record.left in ("", node) or not files_written(spec):
        return
    fence = await FENCES.get(store, record.left)
    if fence is not None and fence.state is not FenceState.ADMITTING and fence.method == Method.STORAGE:
        raise still_written(record.spec.name, record.left)


def claimed(spec: DomainSpec, record: DomainRecord | None) -> DomainRecord:
    """Return the record of a domain that starts with `spec`; `record`: its former record."""
    if record is None:
        return DomainRecord(spec=spec)
    return DomainRecord(spec=spec, home=record.home, left="" if files_written(spec) else record.left)


def _with_files(entry: Entry | None) -> DomainRecord | None:
    """Return the record in `entry` if its domain writes files. An unreadable record must not block its end: None."""
    if entry is None:
        return None
    try:
        record = DOMAINS.value(entry)
    except Unreadable:
        return None
    return record if files_written(record.spec) else None


def files_written(spec: DomainSpec) -> bool:
    """Return whether the domain writes files or devices that are no volumes, which a storage fence does not protect."""
    return any(disk.target and not disk.volume and disk.readwrite and not disk.cdrom for disk in spec.disks)


def still_written(domain: str, node: str) -> Refused:
    """Return the refusal to start `domain` while `node`, fenced at the storage alone, may write its files."""
    return Refused(
        f"{node} is fenced at the storage alone, and may still write the files that are disks of {domain}",
        hint=f"once {node} is off for certain: veery fence confirm {node}, then again",
    )


async def proof(store: Store, node: str) -> FenceRecord | None:
    """Return the fence that proves that `node` cannot write; None if there is none, or the node has its lease."""
    fence = await FENCES.get(store, node)
    if fence is None or fence.state is not FenceState.FENCED or await store.get(ALIVE.key(node)) is not None:
        return None
    return fence


async def end_of_fenced(store: Store, domain: str) -> bool:
    """Reclaim a domain that is not to run any more; return whether that was done. Raises StoreUnavailable,
    OutcomeUnknown."""
    owner = await read(store, domain)
    if owner is None or await proof(store, owner.node) is None:
        return False
    policy = await POLICIES.get(store, domain)
    if policy is not None and policy.wanted:  # first: otherwise HA starts it as soon as it has no owner
        unwanted = POLICIES.put(domain, dataclasses.replace(policy, wanted=False))
        if not (await store.commit([Unchanged(POLICIES.key(domain), policy.revision)], [unwanted])).held:
            raise _contended(domain)
    return await reclaim(store, domain) is not None or await read(store, domain) is None


async def way_out(store: Store, node: str, otherwise: str) -> str:
    """Return the hint for the error that a domain runs on `node`: `otherwise` while that node is present."""
    if await store.get(ALIVE.key(node)) is not None:
        return otherwise
    if await proof(store, node) is not None:
        return f"{node} is fenced, so the domain does not run: create, destroy and delete work without that node"
    return f"{node} does not answer: veery why {node}; once it is off for certain: veery fence confirm {node}"


async def reserve(
    store: Store,
    domain: str,
    move: str,
    source: str,
    target: str,
    *,
    revision: int = 0,
    volumes: Collection[str] = (),
) -> Reservation:
    """Reserve `domain`, which `source` owns, for `target` and the move `move`. `revision` is the owner key's revision
    that the source has just read, which saves one request (0: it is read here). `volumes` are the domain's; none of
    them may be moving between storage nodes.

    Calling again for the same move gives the same answer. Raises OwnedElsewhere if `source` does not own the domain,
    Refused if another move reserved it or the target is fenced, StoreUnavailable, OutcomeUnknown."""
    wanted = Reservation(domain=domain, move=move, source=source, target=target)
    key = RESERVATIONS.key(domain)
    for _ in range(ATTEMPTS):
        if not revision:
            owner = await read(store, domain)
            if owner is None or owner.node != source:
                where = f"runs on {owner.node}" if owner else "does not run"
                raise OwnedElsewhere(f"domain {domain} {where}, not on {source}", owner)
            revision = owner.revision
        free = [Unchanged(key, 0), Unchanged(OWNERS.key(domain), revision), Unchanged(FENCES.key(target), 0)]
        done = await store.commit([*free, *_resting(volumes)], [RESERVATIONS.put(domain, wanted)])
        revision = 0
        if done.held:
            log.info(decision("owner.reserve", domain=domain, move=move, source=source, target=target))
            return dataclasses.replace(wanted, revision=done.revision)
        other = await reservation(store, domain)
        if other and (other.move, other.source, other.target) == (move, source, target):
            return other
        if other:
            raise Refused(
                f"domain {domain} is being moved to {other.target}", hint=f"see `veery moves`; its move is {other.move}"
            )
        await fencing.refuse(store, target)
        await _refuse_moving(store, volumes)
    raise _contended(domain)


async def drop(store: Store, reservation: Reservation) -> Owner | None:
    """Delete `reservation`; return the domain's owner at the same revision.

    If the owner is the reservation's target, COMMIT came first: continue the move. If not, COMMIT can no longer
    succeed: the target destroys its copy, the source resumes. Raises StoreUnavailable, OutcomeUnknown: call again."""
    domain = reservation.domain
    for _ in range(ATTEMPTS):
        owner = await read(store, domain)
        done = await store.commit(
            [
                Unchanged(OWNERS.key(domain), owner.revision if owner else 0),
                Unchanged(RESERVATIONS.key(domain), reservation.revision),
            ],
            [Delete(RESERVATIONS.key(domain))],
        )
        if done.held:
            log.info(decision("owner.drop", domain=domain, move=reservation.move, owner=owner.node if owner else "-"))
            return owner
        now = await RESERVATIONS.get(store, domain)
        if now is None or now.revision != reservation.revision:
            return await read(store, domain)
    raise _contended(domain)


async def commit(
    store: Store,
    owner: Owner,
    reservation: Reservation,
    record: DomainRecord | None = None,
    *,
    started: float = 0.0,
) -> Owner:
    """Make the target the owner, if owner and reservation are both unchanged: THE point of no return. `record`, if
    given, becomes the domain's record in the same transaction. `started`: as in Owner.

    Calling again after OutcomeUnknown is safe. Raises OwnedElsewhere (with the present owner) if either changed: this
    call changed nothing. StoreUnavailable: not done. OutcomeUnknown: read the owner first."""
    domain, target = owner.domain, reservation.target
    wanted = newer.kept(Owner(domain=domain, node=target, boot=owner.boot, started=started), owner)
    operations: list[Put | Delete] = [OWNERS.put(domain, wanted), Delete(RESERVATIONS.key(domain))]
    if record is not None:
        operations.append(DOMAINS.put(domain, record))
    done = await store.commit(
        [
            Unchanged(OWNERS.key(domain), owner.revision),
            Unchanged(RESERVATIONS.key(domain), reservation.revision),
        ],
        operations,
    )
    if done.held:
        log.info(
            decision(
                "owner.commit",
                domain=domain,
                move=reservation.move,
                source=owner.node,
                target=target,
                revision=done.revision,
            )
        )
        return dataclasses.replace(wanted, revision=done.revision)
    now = await read(store, domain)
    if now and (now.node, now.boot) == (target, owner.boot) and now.revision > owner.revision:
        return now
    where = f"{now.node} owns it" if now else "it has no owner"
    raise OwnedElsewhere(f"domain {domain} is not given to {target}: {where}", now)


async def rename(store: Store, old: str, new: str) -> Owner | None:
    """Rename domain `old`, running or not, to `new` in all its records; return its owner under the new name.

    Raises Refused if there is no such record, `new` is taken, or a move is in progress; StoreUnavailable,
    OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        entry, owner = await store.get(DOMAINS.key(old)), await read(store, old)
        if entry is None:
            raise NotFound(f"no domain {old!r}", hint="see `veery list`")
        record = DOMAINS.value(entry)
        operations: list[Put | Delete] = [
            Delete(DOMAINS.key(old)),
            DOMAINS.put(new, dataclasses.replace(record, spec=dataclasses.replace(record.spec, name=new))),
        ]
        if owner:
            operations += [Delete(OWNERS.key(old)), OWNERS.put(new, dataclasses.replace(owner, domain=new))]
        policy, run = await POLICIES.get(store, old), await RUNS.get(store, old)
        if policy:
            operations += [Delete(POLICIES.key(old)), POLICIES.put(new, policy)]
        if run:
            operations += [Delete(RUNS.key(old)), RUNS.put(new, run)]
        done = await store.commit(
            [
                Unchanged(DOMAINS.key(old), entry.revision),
                Unchanged(POLICIES.key(old), policy.revision if policy else 0),
                Unchanged(RUNS.key(old), run.revision if run else 0),
                Unchanged(OWNERS.key(old), owner.revision if owner else 0),
                Unchanged(RESERVATIONS.key(old), 0),
                Unchanged(DOMAINS.key(new), 0),
                Unchanged(OWNERS.key(new), 0),
            ],
            operations,
        )
        if done.held:
            log.info(decision("domain.rename", domain=old, to=new, revision=done.revision))
            return dataclasses.replace(owner, domain=new, revision=done.revision) if owner else None
        if await reservation(store, old):
            raise Refused(f"domain {old} is being moved", hint="rename it when the move has ended")
        if await store.get(DOMAINS.key(new)) or await read(store, new):
            raise Refused(f"the name {new} is taken", hint="see `veery list`")
    raise _contended(old)


def _volumes(record: DomainRecord | None) -> frozenset[str]:
    return frozenset(disk.volume for disk in record.spec.disks if disk.volume) if record else frozenset()


def _resting(volumes: Collection[str]) -> list[Unchanged]:
    """Return the conditions that none of `volumes` is being moved."""
    return [Unchanged(VOLUME_MOVES.key(name), 0) for name in sorted(volumes)]


async def _refuse_moving(store: Store, volumes: Collection[str]) -> None:
    for name in sorted(volumes):
        if move := await volumegate.standing(store, name):
            raise volumegate.being_moved(move)


def _contended(domain: str) -> StoreUnavailable:
    return StoreUnavailable(f"the records of domain {domain} change faster than they can be read", hint="try again")
