"""Fences silent nodes: only those that neither the cluster nor the storage hears, and only if a domain gains by it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from veery.ha.context import DecisionContext, given_up, note, order, restarts, seconds
from veery.ha.placement import Book
from veery.ha.states import NodeState, watched_by_all
from veery.model.ha import WATCHDOG, Action, DomainView, Fence, FenceRecord, FenceState, GiveUpRound, Level, NodeView
from veery.model.node import Role


def fence_silent(context: DecisionContext) -> Iterator[Action]:
    """Yield, for each absent node, a fence, its next method, or a note why it is not fenced."""
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
                # It may be back without being able to tell, while the store was down.
                reason = "its fence has no proof yet; fencing continues when the store has been back for a while"
                yield note(f"node/{name}", state, reason, Level.WARNING)
            else:
                yield from _next(context, node, node.fence)


def _lost(context: DecisionContext) -> list[str]:
    """Return the lost nodes for which a fence is to be decided."""
    return [
        name
        for name, state in context.states.items()
        if state is NodeState.LOST and f"node/{name}" not in context.view.acting
    ]


def _first(context: DecisionContext, name: str) -> tuple[int, int, str]:
    """Return the sort key of a lost node: that of its first domain."""
    mine = _gaining(context, name)
    return order(mine[0]) if mine else (1, 0, "")


def _gaining(context: DecisionContext, name: str) -> list[DomainView]:
    """Return the domains that a fence of node `name` would allow to start elsewhere, if they find a place."""
    return [domain for domain in context.on[name] if restarts(domain) and not given_up(domain)]


def _left_over(context: DecisionContext, judged: Collection[str]) -> Book:
    """Return the book after all domains have their place that already wait or whose node is being fenced."""
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
        return False  # already in the book
    if domain.owner is None:
        return True
    node = domain.owner.node
    under_way = f"node/{node}" in context.view.acting and node not in judged
    state = context.states.get(node)
    return state in (NodeState.FENCED, NodeState.FENCING) or (state is NodeState.LOST and under_way)


def _give(book: Book, domain: DomainView) -> bool:
    """Take a place for `domain` out of `book`; return True if there was one."""
    where = book.find(domain, avoid=(domain.owner.node,) if domain.owner else ())
    if where:
        book.take(domain, where)
    return bool(where)


def _judged(context: DecisionContext, node: NodeView, left: Book) -> Iterator[Action]:
    """Decide about a lost node: fence it if a domain can then start elsewhere, and give its domains their places of
    `left`."""
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
                "unreachable for the cluster, but it writes heartbeats to storage: it is not dead, its domains stay"
            )
            yield note(subject, state, reason, Level.ALARM)
        case NodeState.UNWATCHED:
            reason = "does not answer, and no storage node can be asked about it: the cluster does not judge it"
            yield note(subject, state, reason, Level.ALARM)
        case NodeState.AWAY:
            yield note(subject, state, "its daemon is being restarted, as announced")
        case _ if view.settled < context.rules.grace:
            yield note(subject, state, "does not answer; not judged yet: the store itself has just come back")
        case _ if not node.record.has(Role.HYPERVISOR):
            yield note(subject, state, "does not answer; it runs no domains, so it is not fenced", Level.ALARM)
        case _:
            yield note(subject, state, "does not answer")


def _nothing_gained(context: DecisionContext, name: str, left: Book) -> str:
    """Return why a fence of node `name` would help no domain, with the places of `left`; "" if it would help one."""
    mine = _gaining(context, name)
    if not mine:
        return "no domain of it may be restarted elsewhere" if context.on[name] else "it has no domains"
    if any(left.find(domain, avoid=(name,)) for domain in mine):
        return ""
    return f"no domain of it would find a place: {mine[0].name}: {left.why_not(mine[0], avoid=(name,))}"


def _next(context: DecisionContext, node: NodeView, record: FenceRecord | None) -> Iterator[Action]:
    """Yield the next method to try, or a note about what is waited for."""
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
    """Return True if the watchdog's deadline has certainly passed.

    A heartbeat on storage may have fed the watchdog after the lease ended. So all storage nodes have to report, and the
    last heartbeat has to be older than the deadline."""
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
        left = f"its watchdog is certain to have fired {deadline} after its last heartbeat"
    elif not node.means.methods:
        left = f"it has no fence method; once it is certainly off: veery fence confirm {node.name}"
    else:
        retry = seconds(context.rules.retry)
        left = f"tried again every {retry}; once it is certainly off: veery fence confirm {node.name}"
    state = NodeState.FENCE_FAILED if record else NodeState.LOST
    yield note(f"node/{node.name}", state, f"{said}, its domains wait; {left}", Level.ALARM)


def _said(record: FenceRecord) -> str:
    return "; ".join(f"{method}: {said}" for method, said in record.tried)
