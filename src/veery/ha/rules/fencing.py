"""Fence silent nodes: only those lost to the cluster and to the storage alike, and only where something is gained."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from veery.ha.context import DecisionContext, given_up, note, order, restarts, seconds
from veery.ha.placement import Book
from veery.ha.states import NodeState, watched_by_all
from veery.model.ha import WATCHDOG, Action, DomainView, Fence, FenceRecord, FenceState, GiveUpRound, Level, NodeView
from veery.model.node import Role


def fence_silent(context: DecisionContext) -> Iterator[Action]:
    """A fence, the next method of one, or the reason why there is none, for each node that is not there."""
    lost = sorted(_lost(context), key=lambda name: (_first(context, name), name))
    left = _left_over(context, lost) if lost else context.book
    for name in lost:
        yield from _judged(context, context.view.nodes[name], left)
    for name, state in context.states.items():
        node = context.view.nodes[name]
        if f"node/{name}" in context.view.acting:
            continue
        if state in (NodeState.SILENT, NodeState.AWAY, NodeState.UNWATCHED, NodeState.ISOLATED):
            yield from _left_alone(context, node, state)
        elif state in (NodeState.FENCING, NodeState.FENCE_FAILED):
            if context.view.settled < context.rules.grace:
                # It may be back, and could not say so while the store was away.
                reason = "its fence has no proof yet; goes on when the store has been back for a while"
                yield note(f"node/{name}", state, reason, Level.WARNING)
            else:
                yield from _next(context, node, node.fence)


def _lost(context: DecisionContext) -> list[str]:
    """The nodes of which it is to be judged whether they are fenced."""
    return [
        name
        for name, state in context.states.items()
        if state is NodeState.LOST and f"node/{name}" not in context.view.acting
    ]


def _first(context: DecisionContext, name: str) -> tuple[int, int, str]:
    """The order of nodes: the one whose first domain comes first."""
    mine = _gaining(context, name)
    return order(mine[0]) if mine else (1, 0, "")


def _gaining(context: DecisionContext, name: str) -> list[DomainView]:
    """The domains that a fence of node `name` would let start elsewhere, if there is a place."""
    return [domain for domain in context.on[name] if restarts(domain) and not given_up(domain)]


def _left_over(context: DecisionContext, judged: Collection[str]) -> Book:
    """The places that are left when all have theirs that wait already, or whose node is being fenced."""
    book = context.book.copy()
    waiting = [
        domain
        for domain in context.view.domains.values()
        if restarts(domain) and not given_up(domain) and _comes(context, domain, judged)
    ]
    for domain in sorted(waiting, key=order):
        _give(book, domain)
    return book


def _comes(context: DecisionContext, domain: DomainView, judged: Collection[str]) -> bool:
    if context.busy(domain):
        return False  # the book has it already
    if domain.owner is None:
        return True
    node = domain.owner.node
    under_way = f"node/{node}" in context.view.acting and node not in judged
    state = context.states.get(node)
    return state in (NodeState.FENCED, NodeState.FENCING) or (state is NodeState.LOST and under_way)


def _give(book: Book, domain: DomainView) -> bool:
    """Take a place for `domain` out of `book`; whether there was one."""
    where = book.find(domain, avoid=(domain.owner.node,) if domain.owner else ())
    if where:
        book.take(domain, where)
    return bool(where)


def _judged(context: DecisionContext, node: NodeView, left: Book) -> Iterator[Action]:
    """A lost node: fenced where that lets a domain start. Then its domains have their places of `left`."""
    if kept := _nothing_gained(context, node.name, left):
        yield note(f"node/{node.name}", NodeState.LOST, f"does not answer; not fenced: {kept}", Level.WARNING)
        return
    for action in _next(context, node, None):
        if isinstance(action, Fence):
            for domain in _gaining(context, node.name):
                _give(left, domain)
        yield action


def _left_alone(context: DecisionContext, node: NodeView, state: NodeState) -> Iterator[Action]:
    subject, view = f"node/{node.name}", context.view
    match state:
        case NodeState.ISOLATED:
            reason = (
                "the cluster does not hear it, its heartbeats on storage go on: not dead, its domains are left there"
            )
            yield note(subject, state, reason, Level.ALARM)
        case NodeState.UNWATCHED:
            reason = "does not answer, and no storage node can be asked about it: it is not judged"
            yield note(subject, state, reason, Level.ALARM)
        case NodeState.AWAY:
            yield note(subject, state, "its daemon is being restarted, as announced")
        case _ if view.settled < context.rules.grace:
            yield note(subject, state, "does not answer; not judged: the store itself has only just come back")
        case _ if not node.record.has(Role.HYPERVISOR):
            yield note(subject, state, "does not answer; it runs no domains, so it is not fenced", Level.ALARM)
        case _:
            yield note(subject, state, "does not answer")


def _nothing_gained(context: DecisionContext, name: str, left: Book) -> str:
    """Why a fence of node `name` would help no domain, with the places of `left`; "" where it would."""
    mine = _gaining(context, name)
    if not mine:
        return "none of its domains is to be restarted elsewhere" if context.on[name] else "it has no domains"
    if any(left.find(domain, avoid=(name,)) for domain in mine):
        return ""
    return f"none of its domains would find a place: {mine[0].name}: {left.why_not(mine[0], avoid=(name,))}"


def _next(context: DecisionContext, node: NodeView, record: FenceRecord | None) -> Iterator[Action]:
    """The next method to try, or what is waited for."""
    subject, absent = f"node/{node.name}", node.absent or 0.0
    tried = {method for method, _ in record.tried} if record else set()
    fired = _watchdog_fired(context, node, absent)
    ready = [method for method in node.means.methods if method != WATCHDOG or fired]
    fresh = [method for method in ready if method not in tried]
    if record is None or record.state is FenceState.FENCING or fresh:
        if fresh:
            yield _fence(node, fresh[0], absent, record)
        elif record is not None:
            yield GiveUpRound(subject=subject, reason=f"not fenced, its domains wait: {_said(record)}", record=record)
        else:
            yield from _waits(context, node, None)
    elif ready and context.waited(subject, record.at, context.rules.retry):
        yield _fence(node, ready[0], absent, record)
    else:
        yield from _waits(context, node, record)


def _watchdog_fired(context: DecisionContext, node: NodeView, absent: float) -> bool:
    """Whether its watchdog's deadline has passed for certain. A heartbeat on storage may have fed it after the lease's
    end: so all storage nodes have to tell, and the last heartbeat has to be as old."""
    if node.means.watchdog <= 0 or not watched_by_all(context.view):
        return False
    deadline = node.means.watchdog + context.rules.margin
    return absent >= deadline and (node.sign is None or node.sign.age >= deadline)


def _fence(node: NodeView, method: str, absent: float, record: FenceRecord | None) -> Fence:
    silent = "no lease, no heartbeat on storage"
    if record is not None and record.state is FenceState.FENCING and record.tried:
        silent = f"{record.tried[-1][0]} gave no proof"
    elif record is not None:
        silent = f"not fenced yet, round {record.round + (method in {tried for tried, _ in record.tried})}"
    elif node.sign is not None and node.sign.stopped:
        silent = "no lease, and its last heartbeat said that it has ended its domains"
    return Fence(
        subject=f"node/{node.name}",
        reason=f"{silent}: fence by {method}",
        method=method,
        absent=absent,
        record=node.fence,
    )


def _waits(context: DecisionContext, node: NodeView, record: FenceRecord | None) -> Iterator[Action]:
    said = f"not fenced ({_said(record)})" if record and record.tried else "not fenced"
    if WATCHDOG in node.means.methods and not _watchdog_fired(context, node, node.absent or 0.0):
        deadline = seconds(node.means.watchdog + context.rules.margin)
        left = f"its watchdog has fired for certain {deadline} after its last sign"
    elif not node.means.methods:
        left = f"it has no fence: veery fence confirm {node.name}, once it is off for certain"
    else:
        left = f"tried again each {seconds(context.rules.retry)}, or: veery fence confirm {node.name}"
    state = NodeState.FENCE_FAILED if record else NodeState.LOST
    yield note(f"node/{node.name}", state, f"{said}, its domains wait; {left}", Level.ALARM)


def _said(record: FenceRecord) -> str:
    return "; ".join(f"{method}: {said}" for method, said in record.tried)
