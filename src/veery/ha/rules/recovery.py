"""What cannot be read is left alone. After the proof: settle what the moves of fenced nodes left, and let them in again
when they come back."""

from __future__ import annotations

from collections.abc import Iterator

from veery.ha.context import DecisionContext, note
from veery.ha.states import NodeState
from veery.model.ha import Action, Admit, ClusterView, Drop, End, FenceRecord, FenceState, Level, NodeView

MOVE = "move"  # what the subject of a note about a domain's move begins with: another may be about the domain itself


def tell_unreadable(context: DecisionContext) -> Iterator[Action]:
    """Nothing is done about what has a record that cannot be read; somebody is called."""
    for node in context.view.nodes.values():
        if node.unreadable:
            yield _left_alone(f"node/{node.name}", node.unreadable)
    for domain in context.view.domains.values():
        if domain.unreadable:
            yield _left_alone(f"domain/{domain.name}", domain.unreadable)


def _left_alone(subject: str, sentences: tuple[str, ...]) -> Action:
    return note(subject, NodeState.UNREADABLE, f"left alone: {'; '.join(sentences)}", Level.ALARM)


def tell_unsettled(context: DecisionContext) -> Iterator[Action]:
    """A move that does not settle by itself keeps its domain from every order: somebody is called."""
    for name, sentences in unsettled(context.view).items():
        yield note(f"{MOVE}/{name}", "unsettled", "; ".join(sentences), Level.ALARM)


def unsettled(view: ClusterView) -> dict[str, list[str]]:
    """Domain to what the nodes say of its move that cannot be settled there."""
    found: dict[str, list[str]] = {}
    for node in view.nodes.values():
        if node.fresh and node.reading is not None:
            for domain, sentence in node.reading.unsettled.items():
                found.setdefault(domain, []).append(f"on {node.name}: {sentence}")
    return found


def settle_moves(context: DecisionContext) -> Iterator[Action]:
    """Take the promises of fenced targets away: before COMMIT nothing is lost by it, after it there is none."""
    for domain in context.view.domains.values():
        move = domain.move
        if move is None or domain.unreadable or f"domain/{domain.name}" in context.view.acting:
            continue
        if context.states.get(move.target) is NodeState.FENCED and domain.owner and domain.owner.node == move.source:
            reason = f"its move to {move.target} cannot end: that node is fenced"
            yield Drop(subject=f"domain/{domain.name}", reason=reason, promise=move)


def readmit_returned(context: DecisionContext) -> Iterator[Action]:
    """Let nodes in again: each old copy is ended first, and seen to be gone."""
    for name, state in context.states.items():
        node = context.view.nodes[name]
        subject = f"node/{name}"
        if state not in (NodeState.RETURNING, NodeState.ADMITTING) or node.fence is None:
            continue
        if subject in context.view.acting:
            continue
        if context.resting(subject):
            yield note(subject, state, f"not let in yet: {context.resting(subject)}", Level.WARNING)
        elif state is NodeState.ADMITTING:
            yield Admit(subject=subject, reason="its old copies are dead: let in again", record=node.fence)
        elif node.fence.state is not FenceState.FENCED:
            reason = "it is back, no fence was proven, nothing of it was started elsewhere: let in again"
            yield Admit(subject=subject, reason=reason, record=node.fence)
        else:
            yield from _proven(context, node, node.fence)


def _proven(context: DecisionContext, node: NodeView, fence: FenceRecord) -> Iterator[Action]:
    subject = f"node/{node.name}"
    if not node.fresh or node.reading is None:
        yield note(
            subject, NodeState.RETURNING, "it is back; waits until it says which domains it holds", Level.WARNING
        )
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
            elsewhere = f"it belongs to {owner.node}" if owner else "it belongs to nobody"
            reason = f"an old copy on {node.name}, which was fenced; {elsewhere} by now"
            yield End(subject=f"domain/{copy.domain}", reason=reason, node=node.name, boot=copy.boot)
    if stale:
        reason = f"it is back with {stale} old {'copy' if stale == 1 else 'copies'}: let in when they are gone"
        yield note(subject, NodeState.RETURNING, reason, Level.WARNING)
        return
    if unknown:
        reason = "it is back with a copy of a domain whose records cannot be read: not let in"
        yield note(subject, NodeState.RETURNING, reason, Level.ALARM)
        return
    yield Admit(subject=subject, reason="it is back and holds no old copy: let in again", record=fence)
