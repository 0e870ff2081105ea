"""Reports records that cannot be read, settles the moves of fenced nodes, and admits nodes that come back."""

from __future__ import annotations

from collections.abc import Iterator

from veery.ha.context import DecisionContext, note
from veery.ha.states import NodeState, cut_off, outdated
from veery.model.ha import Action, Admit, ClusterView, Drop, End, FenceRecord, FenceState, Level, NodeView

MOVE = "move"  # prefix of the subject of a note about a domain's move; the domain itself may have another note
DISK = "disk"  # prefix of the subject of a note about the disks of a domain


def tell_unreadable(context: DecisionContext) -> Iterator[Action]:
    """Report subjects with a record that cannot be read, as an alarm. Nothing else is done about them."""
    for node in context.view.nodes.values():
        if node.unreadable:
            yield _left_alone(f"node/{node.name}", node.unreadable)
    for domain in context.view.domains.values():
        if domain.unreadable:
            yield _left_alone(f"domain/{domain.name}", domain.unreadable)


def _left_alone(subject: str, sentences: tuple[str, ...]) -> Action:
    return note(subject, NodeState.UNREADABLE, f"left alone: {'; '.join(sentences)}", Level.ALARM)


def tell_outdated(context: DecisionContext) -> Iterator[Action]:
    """Report nodes whose version does not support the cluster's level: they receive no domains."""
    for name, state in context.states.items():
        if state is NodeState.OUTDATED:
            node = context.view.nodes[name]
            mute = cut_off(context.view, node, context.rules)
            silent = "; its heartbeats on storage have stopped, and its domains are left alone" if mute else ""
            reason = f"receives no domains: {outdated(context.view, node)}{silent}; upgrade veery there"
            yield note(f"node/{name}", state, reason, Level.WARNING)


def tell_unsettled(context: DecisionContext) -> Iterator[Action]:
    """Report moves that do not settle by themselves, as an alarm: such a move blocks every order for its domain."""
    for name, sentences in unsettled(context.view).items():
        yield note(f"{MOVE}/{name}", "unsettled", "; ".join(sentences), Level.ALARM)


def unsettled(view: ClusterView) -> dict[str, list[str]]:
    """Return, for each domain whose move cannot be settled, what the nodes report about it."""
    found: dict[str, list[str]] = {}
    for node in view.nodes.values():
        if node.fresh and node.reading is not None:
            for domain, sentence in node.reading.unsettled.items():
                found.setdefault(domain, []).append(f"on {node.name}: {sentence}")
    return found


def tell_stopped(context: DecisionContext) -> Iterator[Action]:
    """Report domains that an error of their disk has stopped, as an alarm: such a guest waits until somebody lets it
    try again."""
    for node in context.view.nodes.values():
        if not node.fresh or node.reading is None:
            continue
        for copy in node.reading.copies:
            domain = context.view.domains.get(copy.domain)
            if copy.faulty and domain and domain.owner and domain.owner.node == node.name:
                yield note(f"{DISK}/{copy.domain}", "disk-error", f"{copy.domain} is {copy.said}", Level.ALARM)


def settle_moves(context: DecisionContext) -> Iterator[Action]:
    """Delete the reservations of fenced targets. Before COMMIT nothing is lost by that; after COMMIT there is no
    reservation."""
    for domain in context.view.domains.values():
        move = domain.move
        if move is None or domain.unreadable or f"domain/{domain.name}" in context.view.acting:
            continue
        if context.states.get(move.target) is NodeState.FENCED and domain.owner and domain.owner.node == move.source:
            reason = f"its move to {move.target} cannot end: that node is fenced"
            yield Drop(subject=f"domain/{domain.name}", reason=reason, promise=move)


def readmit_returned(context: DecisionContext) -> Iterator[Action]:
    """Admit nodes that are back. Each old copy of a domain is ended first and verified to be gone."""
    for name, state in context.states.items():
        node = context.view.nodes[name]
        subject = f"node/{name}"
        if state not in (NodeState.RETURNING, NodeState.ADMITTING) or node.fence is None:
            continue
        if subject in context.view.acting:
            continue
        if context.resting(subject):
            yield note(subject, state, f"not admitted yet: {context.resting(subject)}", Level.WARNING)
        elif state is NodeState.ADMITTING:
            yield Admit(subject=subject, reason="its old copies are dead: it is admitted again", record=node.fence)
        elif node.fence.state is not FenceState.FENCED:
            reason = (
                "it is back; its fence was never proven, so no domain of it was started elsewhere: it is admitted again"
            )
            yield Admit(subject=subject, reason=reason, record=node.fence)
        else:
            yield from _proven(context, node, node.fence)


def _proven(context: DecisionContext, node: NodeView, fence: FenceRecord) -> Iterator[Action]:
    subject = f"node/{node.name}"
    if not node.fresh or node.reading is None:
        yield note(subject, NodeState.RETURNING, "it is back; the cluster waits for its list of domains", Level.WARNING)
        return
    stale = unknown = 0
    for copy in node.reading.copies:
        domain = context.view.domains.get(copy.domain)
        owner = domain.owner if domain else None
        if domain and domain.unreadable:
            unknown += 1
            continue
        if owner and (owner.node, owner.boot) == (node.name, copy.boot):
            continue
        stale += 1
        if f"domain/{copy.domain}" not in context.view.acting:
            elsewhere = f"its owner is now {owner.node}" if owner else "it has no owner now"
            reason = f"an old copy on {node.name}, which was fenced; {elsewhere}"
            yield End(subject=f"domain/{copy.domain}", reason=reason, node=node.name, boot=copy.boot)
    if stale:
        reason = f"it is back with {stale} old {'copy' if stale == 1 else 'copies'}: it is admitted when they are gone"
        yield note(subject, NodeState.RETURNING, reason, Level.WARNING)
        return
    if unknown:
        reason = "it is back with a copy of a domain whose records cannot be read: it is not admitted"
        yield note(subject, NodeState.RETURNING, reason, Level.ALARM)
        return
    yield Admit(subject=subject, reason="it is back and holds no old copy: it is admitted again", record=fence)
