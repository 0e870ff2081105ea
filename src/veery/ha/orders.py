"""The orders that operators and nodes write for the brain. Each order is one transaction, conditional on what was read
before.

The brain finds an order in its next view. Nothing here acts on nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from veery.cluster.keys import (
    ALIVE,
    DISARM,
    DISARMED,
    DOMAINS,
    FENCES,
    HEALTHS,
    HISTORIES,
    INTENTS,
    NODES,
    OWNERS,
    POLICIES,
    RUNS,
    Unreadable,
)
from veery.cluster.owner import OwnedElsewhere, release
from veery.cluster.store import Delete, Put, Store, StoreUnavailable, Unchanged
from veery.errors import NotFound, Refused
from veery.ha import groups
from veery.model import newer
from veery.model.cluster import Owner
from veery.model.fence import Method
from veery.model.ha import (
    OPERATOR,
    Disarmed,
    FenceRecord,
    FenceState,
    HaRecord,
    IntentKind,
    NodeHistory,
    NodeIntent,
    NodeView,
    Policy,
    RunRecord,
    Ticket,
)
from veery.model.node import Role
from veery.model.verdict import NodeVerdict

ATTEMPTS = 8
FENCE_HISTORY_MAX = 8  # number of fences that a node's history keeps


async def claim(store: Store, ticket: Ticket, boot: str) -> Owner:
    """Make the ticket's node the owner, for its instance `boot`. This succeeds only if the ticket is the newest, the
    domain has no owner, and the node is not being fenced. Repeating the call with the same `boot` is safe.

    Raises OwnedElsewhere, Refused (the ticket is stale), StoreUnavailable, OutcomeUnknown."""
    key, domain = OWNERS.key(ticket.domain), ticket.domain
    wanted = Owner(domain=domain, node=ticket.node, boot=boot)
    done = await store.commit(
        [
            Unchanged(key, 0),
            Unchanged(RUNS.key(domain), ticket.revision),
            Unchanged(FENCES.key(ticket.node), 0),
        ],
        [OWNERS.put(domain, wanted)],
    )
    if done.held:
        return dataclasses.replace(wanted, revision=done.revision)
    owner = await OWNERS.get(store, domain)
    if owner and (owner.node, owner.boot) == (ticket.node, boot):
        return owner
    if owner:
        raise OwnedElsewhere(f"domain {domain} runs on {owner.node}", owner)
    raise Refused(
        f"the order to start domain {domain} is out of date", hint=f"the cluster decides again: veery why {domain}"
    )


async def set_policy(
    store: Store,
    domain: str,
    policy: Policy,
    *,
    priority: int | None = None,
    group: str | None = None,
    max_restarts: int | None = None,
    delay: float | None = None,
) -> HaRecord:
    """Set the HA policy of `domain`. Arguments that are None keep their value. Earlier failed starts are forgotten.

    This does not start a domain that is off, unless it was wanted before. A running domain is wanted from now on. That
    also cancels a shutdown that its guest has not followed yet.

    Raises Refused for an unknown domain, a negative figure, or a group whose rule cannot be met."""
    if min(priority or 0, max_restarts or 0, delay or 0.0) < 0:
        raise Refused(f"ha set {domain}: priority, restarts and delay must be 0 or more", hint="veery ha set --help")
    for _ in range(ATTEMPTS):
        if await store.get(DOMAINS.key(domain)) is None:
            raise NotFound(f"no domain {domain!r}", hint="veery list -A shows all")
        old = await POLICIES.get(store, domain)
        owner, run = await OWNERS.get(store, domain), await RUNS.get(store, domain)
        asked: dict[str, Any] = {"priority": priority, "group": group, "max_restarts": max_restarts, "delay": delay}
        base = dataclasses.replace(
            old or HaRecord(wanted=False), wanted=(old and old.wanted) or owner is not None, stopping=0.0
        )
        new = dataclasses.replace(
            base, policy=policy, **{key: value for key, value in asked.items() if value is not None}
        )
        if new.group:
            await groups.require_met(store, domain, new.group)
        operations: list[Put | Delete] = [POLICIES.put(domain, new)]
        conditions = [Unchanged(POLICIES.key(domain), old.revision if old else 0)]
        if run:
            conditions.append(Unchanged(RUNS.key(domain), run.revision))
            operations.append(RUNS.put(domain, newer.kept(RunRecord(node=run.node, home=run.home), run)))
        done = await store.commit(conditions, operations)
        if done.held:
            return dataclasses.replace(new, revision=done.revision)
    raise _contended(domain)


async def want(store: Store, domain: str, *, wanted: bool, stopping: float = 0.0) -> None:
    """Record that `domain` should run, or that it should not, before it is ended on purpose. `stopping`: when its guest
    was asked to shut down; 0.0 if it is ended without the guest's help.

    Writes nothing if the domain has no policy. Raises StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        old = await POLICIES.get(store, domain)
        if old is None or (old.wanted, old.stopping) == (wanted, stopping):
            return
        if stopping and not old.wanted and not old.stopping:
            return  # it was not wanted before, and a shutdown that lapses does not change that
        new = dataclasses.replace(old, wanted=wanted, stopping=stopping)
        if (await store.commit([Unchanged(POLICIES.key(domain), old.revision)], [POLICIES.put(domain, new)])).held:
            return
    raise _contended(domain)


async def lapse(store: Store, domain: str, stopping: float) -> None:
    """Want `domain` again: its guest was asked to shut down at `stopping` but still runs. Writes nothing if that
    request no longer holds. Raises StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        old = await POLICIES.get(store, domain)
        if old is None or not old.stopping or old.stopping != stopping:
            return
        new = dataclasses.replace(old, wanted=True, stopping=0.0)
        if (await store.commit([Unchanged(POLICIES.key(domain), old.revision)], [POLICIES.put(domain, new)])).held:
            return
    raise _contended(domain)


async def stay(store: Store, domain: str) -> None:
    """Forget the home of `domain`: an operator chose where it runs, so it does not return to a node that was drained
    before.

    Raises StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        run = await RUNS.get(store, domain)
        if run is None or not run.home:
            return
        stays = RUNS.put(domain, dataclasses.replace(run, home=""))
        if (await store.commit([Unchanged(RUNS.key(domain), run.revision)], [stays])).held:
            return
    raise _contended(domain)


async def give_back(store: Store, owner: Owner) -> None:
    """Release the owner key of a domain that has ended. If it has a policy, first record the node that had it, which
    may hold its disks.

    Raises as owner.release does."""
    domain = owner.domain
    if await POLICIES.get(store, domain) is not None and await RUNS.get(store, domain) is None:
        await store.commit([Unchanged(RUNS.key(domain), 0)], [RUNS.put(domain, RunRecord(node=owner.node))])
    await release(store, owner)


async def spare(store: Store, domain: str, node: str) -> None:
    """Count one failed start less: the instance of `domain` on `node` ends in good order together with that node.

    Raises StoreUnavailable, OutcomeUnknown."""
    run = await RUNS.get(store, domain)
    if run is None or run.tries == 0 or run.node != node or node in run.failed:
        return
    spared = RUNS.put(domain, dataclasses.replace(run, tries=run.tries - 1))
    await store.commit([Unchanged(RUNS.key(domain), run.revision)], [spared])


async def intend(store: Store, node: str, intent: NodeIntent) -> None:
    """Write `intent` for `node`, in place of any other.

    Raises Refused for an unknown node, StoreUnavailable, OutcomeUnknown."""
    if await store.get(NODES.key(node)) is None:
        raise NotFound(f"no node {node!r}", hint="veery node list shows them")
    await store.commit([], [INTENTS.put(node, intent)])


async def drain(store: Store, node: str, intent: NodeIntent, seen: Mapping[str, NodeView]) -> bool:
    """Write the drain `intent` for `node`, which was planned from the nodes in `seen`. This succeeds only if no node's
    intent has changed since. Return True if it was written; on False, plan again from a new view.

    Raises Refused for an unknown node, StoreUnavailable, OutcomeUnknown."""
    if await store.get(NODES.key(node)) is None:
        raise NotFound(f"no node {node!r}", hint="veery node list shows them")
    conditions = [
        Unchanged(INTENTS.key(each.name), each.intent.revision if each.intent else 0)
        for each in seen.values()
        if each.record.has(Role.HYPERVISOR) and not each.unreadable
    ]
    return (await store.commit(conditions, [INTENTS.put(node, intent)])).held


async def require_undrained(store: Store, node: str) -> None:
    """Raise Refused while `node` is drained. Raises StoreUnavailable."""
    intent = await INTENTS.get(store, node)
    if intent is not None and intent.kind is IntentKind.DRAIN:
        raise Refused(f"{node} is drained", hint=f"name another node, or: veery node resume {node}")


async def require_well(store: Store, node: str) -> None:
    """Raise Refused while the sensors of `node` ask that it is given no domains. An unreadable record does not count.
    Raises StoreUnavailable."""
    try:
        health = await HEALTHS.get(store, node)
    except Unreadable:
        return
    if health is None or health.verdict is NodeVerdict.WELL:
        return
    state = "is sick" if health.verdict is NodeVerdict.EVACUATE else "is in quarantine"
    hint = f"name another node, or --force; once it is mended: veery node well {node}"
    raise Refused(f"{node} {state}: {health.reason}", hint=hint)


async def away(store: Store, node: str, seconds: float, *, now: float) -> None:
    """Announce that the daemon of `node` stops in good order, so that the node is not judged for `seconds`. An existing
    intent stays and carries the announcement.

    Raises StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        old = await INTENTS.get(store, node)
        base = old or NodeIntent(kind=IntentKind.AWAY, by=node, since=now)
        unchanged = Unchanged(INTENTS.key(node), old.revision if old else 0)
        if (await store.commit([unchanged], [INTENTS.put(node, dataclasses.replace(base, away=seconds))])).held:
            return
    raise StoreUnavailable(f"the records of node {node} change faster than they can be read", hint="try again")


async def back(store: Store, node: str, started: float) -> bool:
    """End `away`: the daemon of `node` that began at `started` (as in its Presence) works again. This requires its
    presence key, because without it the node would count as lost. Return True if the presence key existed and nothing
    changed meanwhile. Raises StoreUnavailable, OutcomeUnknown."""
    alive = await store.get(ALIVE.key(node))
    if alive is None or ALIVE.value(alive).started != started:
        return False
    intent = await INTENTS.get(store, node)
    if intent is None or not intent.away:
        return True
    over = (
        Delete(INTENTS.key(node))
        if intent.kind is IntentKind.AWAY
        else INTENTS.put(node, dataclasses.replace(intent, away=0.0))
    )
    unchanged = [Unchanged(INTENTS.key(node), intent.revision), Unchanged(ALIVE.key(node), alive.revision)]
    return (await store.commit(unchanged, [over])).held


async def resume(store: Store, node: str, *, home: bool, by: str, now: float) -> None:
    """Put `node` to use again. With `home`, the domains that had to leave it return; without it, they stay where they
    are for good. A node that is held back because it was fenced too often is used again too.

    Raises Refused for an unknown node, StoreUnavailable, OutcomeUnknown."""
    if await store.get(NODES.key(node)) is None:
        raise NotFound(f"no node {node!r}", hint="veery node list shows them")
    operations: list[Put | Delete] = [Delete(HISTORIES.key(node))]
    if home:
        operations.append(INTENTS.put(node, NodeIntent(kind=IntentKind.RESUME, by=by, since=now)))
    else:
        operations.append(Delete(INTENTS.key(node)))
    await store.commit([], operations)
    if home:
        return
    for domain, run in (await RUNS.readable(store)).items():
        if run.home == node:
            stays = dataclasses.replace(run, home="")
            await store.commit([Unchanged(RUNS.key(domain), run.revision)], [RUNS.put(domain, stays)])


async def confirm(store: Store, node: str, *, by: str, now: float) -> None:
    """Record an operator's word that `node` is off as the proof of its fence. It replaces a fence at the storage, which
    keeps the node from volumes only.

    Raises Refused for a node that is unknown, alive, or fenced already in another way; StoreUnavailable,
    OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        if await store.get(NODES.key(node)) is None:
            raise NotFound(f"no node {node!r}", hint="veery node list shows them")
        if await store.get(ALIVE.key(node)) is not None:
            raise Refused(f"node {node} is alive: it renews its lease", hint=f"to empty it: veery node drain {node}")
        old = await FENCES.get(store, node)
        if old is not None and old.state is FenceState.FENCED and old.method != Method.STORAGE:
            raise Refused(
                f"node {node} is fenced already: {old.proof}",
                hint=f"nothing to do: veery why {node} shows its state",
            )
        confirmed = FenceRecord(
            state=FenceState.FENCED,
            method=OPERATOR,
            tried=old.tried if old else (),
            proof=f"{by or 'an operator'} confirmed that it is off",
            at=now,
        )
        record = newer.kept(confirmed, old)
        conditions = [Unchanged(FENCES.key(node), old.revision if old else 0), Unchanged(ALIVE.key(node), 0)]
        operations: list[Put | Delete] = [FENCES.put(node, record)]
        if old is None or old.state is not FenceState.FENCED:  # otherwise it was counted before
            operations.append(HISTORIES.put(node, fenced_at(await HISTORIES.get(store, node), now)))
        if (await store.commit(conditions, operations)).held:
            return
    raise StoreUnavailable(f"the records of node {node} change faster than they can be read", hint="try again")


def fenced_at(history: NodeHistory | None, now: float) -> NodeHistory:
    """Return `history` with one more fence."""
    old = history or NodeHistory()
    return dataclasses.replace(old, fenced=(*old.fenced, now)[-FENCE_HISTORY_MAX:])


async def disarm(store: Store, *, by: str, reason: str, now: float) -> None:
    """Stop the brain from acting until `arm`. Raises StoreUnavailable, OutcomeUnknown."""
    await store.commit([], [DISARM.put(DISARMED, Disarmed(by=by, since=now, reason=reason))])


async def arm(store: Store) -> None:
    """Let the brain act again. Raises StoreUnavailable, OutcomeUnknown."""
    await store.commit([], [Delete(DISARMED)])


def _contended(domain: str) -> StoreUnavailable:
    return StoreUnavailable(f"the records of domain {domain} change faster than they can be read", hint="try again")
