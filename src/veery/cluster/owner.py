"""The owner gate: who may run a domain, decided by compare-and-set and by nothing else.

    claim     nobody     -> a node       a domain starts
    reserve                              a target promises to take it in
    commit    source     -> target       the point of no return of a move; uses the reservation up
    drop                                 either side's way out before it; takes the reservation away
    release   a node     -> nobody       a domain has ended
    reclaim   a fenced   -> nobody       an operator takes a domain from a node that is proven fenced

`commit` asks for the reservation as it was made, and takes it away; so does `drop`. At most one of the two
can find it, whichever side calls when: that is the whole proof, and tests/unit/cluster/test_owner.py tries it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Collection

from veery.cluster import fencing, volumegate
from veery.cluster.keys import ALIVE, DOMAINS, FENCES, OWNERS, POLICIES, RESERVATIONS, RUNS, VOLUME_MOVES, Unreadable
from veery.cluster.store import Delete, Entry, Put, Store, StoreUnavailable, Unchanged
from veery.errors import Refused
from veery.host.log import decision
from veery.model import newer
from veery.model.cluster import DomainRecord, Owner, Reservation
from veery.model.domain import DomainSpec
from veery.model.fence import Method
from veery.model.ha import FenceRecord, FenceState, RunRecord

log = logging.getLogger(__name__)

ATTEMPTS = 8  # each lost to somebody else's change; more in a row means a fault, not a race


class OwnedElsewhere(Refused):
    """The gate is shut: `owner` has the domain (None: nobody has)."""

    def __init__(self, message: str, owner: Owner | None, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.owner = owner


async def read(store: Store, domain: str) -> Owner | None:
    """Who may run `domain` now. Raises StoreUnavailable."""
    return await OWNERS.get(store, domain)


async def given(store: Store, reservation: Reservation, boot: str) -> Owner:
    """Return once the reservation's target owns the domain, for its run `boot`, as the store's own history tells it.

    What is seen may be past already: `read` is the one to ask where nobody else vouches for it. Waits for ever
    where that does not happen; raises Compacted when the reservation is too old."""
    key = OWNERS.key(reservation.domain)
    async with contextlib.aclosing(store.watch(key, reservation.revision)) as changes:
        async for change in changes:
            if change.key == key and change.entry is not None:
                owner = OWNERS.value(change.entry)
                if (owner.node, owner.boot) == (reservation.target, boot):
                    return owner
    raise StoreUnavailable(f"the watch of {reservation.domain}'s owner has ended")


async def reservation(store: Store, domain: str) -> Reservation | None:
    """The promise that stands for `domain` now. Raises StoreUnavailable."""
    return await RESERVATIONS.get(store, domain)


async def claim(store: Store, domain: str, node: str, boot: str, record: DomainRecord | None) -> Owner:
    """Make `node`, of which no fence stands, the owner of `domain`, which nobody owns, for its run `boot`; write
    `record` with it.

    Asking again after OutcomeUnknown, with the same `boot`, is safe. Raises OwnedElsewhere naming the owner, Refused
    where one of its volumes is being moved, or the node is fenced, StoreUnavailable, OutcomeUnknown."""
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
    """Let go of a domain that has ended: only while `owner` is unchanged. Nothing happens when nobody owns it.
    A reservation goes with it: what has ended is not moved.

    Raises OwnedElsewhere when it has another owner, or another run, by now; StoreUnavailable, OutcomeUnknown."""
    key = OWNERS.key(owner.domain)
    operations = [Delete(key), Delete(RESERVATIONS.key(owner.domain))]
    if (await store.commit([Unchanged(key, owner.revision)], operations)).held:
        log.info(decision("owner.release", domain=owner.domain, node=owner.node, revision=owner.revision))
        return
    now = await read(store, owner.domain)
    if now is not None:
        raise OwnedElsewhere(f"domain {owner.domain} belongs to {now.node} by now", now)


async def reclaim(store: Store, domain: str, *, to: str = "") -> Owner | None:
    """Take `domain` from a node that is proven fenced and has no lease: in one transaction with that proof, as the
    brain does it. `to`: the node where it is to start ("": it is to end). The owner that it was taken from; None where
    nobody owns it, or its node is not fenced.

    Raises Refused where its files may still be written there, StoreUnavailable, OutcomeUnknown."""
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
    """Raises Refused where the domain of `record` is to start on `node` as `spec` says, and the node that it was taken
    from may still write its files; StoreUnavailable."""
    if record is None or record.left in ("", node) or not files_written(spec):
        return
    fence = await FENCES.get(store, record.left)
    if fence is not None and fence.state is not FenceState.ADMITTING and fence.method == Method.STORAGE:
        raise still_written(record.spec.name, record.left)


def claimed(spec: DomainSpec, record: DomainRecord | None) -> DomainRecord:
    """The record of a domain that starts as `spec` says; `record`: the one that it had before."""
    if record is None:
        return DomainRecord(spec=spec)
    return DomainRecord(spec=spec, home=record.home, left="" if files_written(spec) else record.left)


def _with_files(entry: Entry | None) -> DomainRecord | None:
    """The record in `entry`, where its domain writes files. One that cannot be read keeps nobody from ending it."""
    if entry is None:
        return None
    try:
        record = DOMAINS.value(entry)
    except Unreadable:
        return None
    return record if files_written(record.spec) else None


def files_written(spec: DomainSpec) -> bool:
    """Whether the domain writes files or devices that are no volumes: a fence at the storage keeps nobody from them."""
    return any(disk.target and not disk.volume and disk.readwrite and not disk.cdrom for disk in spec.disks)


def still_written(domain: str, node: str) -> Refused:
    """The refusal to start `domain` while `node`, which is fenced at the storage alone, may write its files."""
    return Refused(
        f"{node} is fenced at the storage alone, and may still write the files that are disks of {domain}",
        hint=f"once {node} is off for certain: veery fence confirm {node}, then again",
    )


async def proof(store: Store, node: str) -> FenceRecord | None:
    """The proof that `node`, which has no lease, cannot write; None where there is none."""
    fence = await FENCES.get(store, node)
    if fence is None or fence.state is not FenceState.FENCED or await store.get(ALIVE.key(node)) is not None:
        return None
    return fence


async def end_of_fenced(store: Store, domain: str) -> bool:
    """As `reclaim`, for a domain that is not to run any more; whether that was done. Raises StoreUnavailable,
    OutcomeUnknown."""
    owner = await read(store, domain)
    if owner is None or await proof(store, owner.node) is None:
        return False
    policy = await POLICIES.get(store, domain)
    if policy is not None and policy.wanted:  # first: else the brain starts it as soon as it is free
        unwanted = POLICIES.put(domain, dataclasses.replace(policy, wanted=False))
        if not (await store.commit([Unchanged(POLICIES.key(domain), policy.revision)], [unwanted])).held:
            raise _contended(domain)
    return await reclaim(store, domain) is not None or await read(store, domain) is None


async def way_out(store: Store, node: str, otherwise: str) -> str:
    """The hint for one who is told that a domain runs on `node`: `otherwise` while that node is there."""
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
    """Promise `domain`, which `source` owns, to `target` for the move `move`. `revision` is that of the owner key, as
    the source has just read it (0: it is read here): one question less to the store. `volumes` are the domain's: none
    of them may be moving between storage nodes.

    Asking again for the same move gives the same answer. Raises OwnedElsewhere when `source` does not own it,
    Refused when another move has it, or the target is fenced, StoreUnavailable, OutcomeUnknown."""
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
                f"domain {domain} is being moved to {other.target}", hint=f"see `veery moves`; the move is {other.move}"
            )
        await fencing.refuse(store, target)
        await _refuse_moving(store, volumes)
    raise _contended(domain)


async def drop(store: Store, reservation: Reservation) -> Owner | None:
    """Take `reservation` away; who owns the domain, read at the very revision at which it was gone.

    When the answer is the reservation's target, COMMIT came first: go on. When it is not, COMMIT can no longer
    succeed: the target destroys its half, the source resumes. Raises StoreUnavailable, OutcomeUnknown: ask again."""
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


async def commit(store: Store, owner: Owner, reservation: Reservation, record: DomainRecord | None = None) -> Owner:
    """THE point of no return: the target becomes the owner, if owner and reservation both stand as given. `record`,
    if there is one, becomes the domain's in the same transaction.

    Asking again after OutcomeUnknown is safe. Raises OwnedElsewhere (with the owner as it is) when the gate is
    shut: nothing was changed by us. StoreUnavailable: surely not done. OutcomeUnknown: read the owner first."""
    domain, target = owner.domain, reservation.target
    wanted = newer.kept(Owner(domain=domain, node=target, boot=owner.boot), owner)
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
    where = f"{now.node} has it" if now else "nobody has it"
    raise OwnedElsewhere(f"domain {domain} is not given to {target}: {where}", now)


async def rename(store: Store, old: str, new: str) -> Owner | None:
    """Give domain `old`, running or not, the name `new`, in its record and its owner key alike; the new owner.

    Raises Refused when there is no such record, `new` is taken, or a move is under way; StoreUnavailable,
    OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        entry, owner = await store.get(DOMAINS.key(old)), await read(store, old)
        if entry is None:
            raise Refused(f"no domain {old!r}", hint="see `veery list`")
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
    """The conditions that none of `volumes` is being moved."""
    return [Unchanged(VOLUME_MOVES.key(name), 0) for name in sorted(volumes)]


async def _refuse_moving(store: Store, volumes: Collection[str]) -> None:
    for name in sorted(volumes):
        if move := await volumegate.standing(store, name):
            raise volumegate.being_moved(move)


def _contended(domain: str) -> StoreUnavailable:
    return StoreUnavailable(f"the records of domain {domain} change faster than they can be read", hint="try again")
