"""What a node is to the brain: one state of this list, told from one view. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from veery.model.ha import ClusterView, FenceState, IntentKind, NodeView, Rules
from veery.model.node import Role
from veery.model.verdict import NodeVerdict


class NodeState(StrEnum):
    """How a node stands. Only PRESENT ones are given domains."""

    PRESENT = "present"  # its lease is there: it may run domains
    ARRIVING = "arriving"  # present for a moment only: nothing is given to it yet
    DRAINING = "draining"  # an operator empties it; its domains are being moved away
    MAINTENANCE = "maintenance"  # drained: empty until `resume`
    SICK = "sick"  # its sensors say so: what may be moved is moved away
    QUARANTINED = "quarantined"  # its sensors warn: it keeps its domains, and is given no others
    DAMPED = "damped"  # fenced too often of late: present, but given nothing for a while
    CUT_OFF = "cut-off"  # present, but its heartbeats on storage have ended: it has lost the storage
    AWAY = "away"  # its daemon is being restarted, as announced: not judged yet
    SILENT = "silent"  # its lease is gone; not long enough, or nothing hangs on it
    UNWATCHED = "unwatched"  # silent, and no storage node can be asked about it: waits
    ISOLATED = "isolated"  # its lease is gone, its heartbeats on storage go on: not dead, so it is left alone
    LOST = "lost"  # silent to the cluster and to the storage: to be fenced, if anything is gained by it
    FENCING = "fencing"  # being fenced, no proof yet
    FENCE_FAILED = "fence-failed"  # every method has failed: its domains wait, somebody is called, they are tried again
    FENCED = "fenced"  # proven that it cannot write: its domains start elsewhere
    RETURNING = "returning"  # present again after a fence: let in when its old copies are known dead
    ADMITTING = "admitting"  # being let in to the storage again
    UNREADABLE = "unreadable"  # one of its records cannot be read: it is left alone


ABSENT = frozenset(
    {
        NodeState.AWAY,
        NodeState.SILENT,
        NodeState.UNWATCHED,
        NodeState.ISOLATED,
        NodeState.LOST,
        NodeState.FENCING,
        NodeState.FENCE_FAILED,
        NodeState.FENCED,
    }
)


LEAVING = frozenset(  # the domains of such a node are to run elsewhere, so they hold no other of their group back
    {
        NodeState.DRAINING,
        NodeState.MAINTENANCE,
        NodeState.SICK,
        NodeState.CUT_OFF,
        NodeState.LOST,
        NodeState.FENCING,
        NodeState.FENCE_FAILED,
        NodeState.FENCED,
    }
)


IN_USE = frozenset(NodeState) - ABSENT - {NodeState.RETURNING, NodeState.ADMITTING, NodeState.UNREADABLE}


def judge(view: ClusterView, now: float, rules: Rules) -> dict[str, NodeState]:
    """The state of each node."""
    owning = {domain.owner.node for domain in view.domains.values() if domain.owner}
    return {name: _state(view, node, now, rules, owning=name in owning) for name, node in view.nodes.items()}


def _state(view: ClusterView, node: NodeView, now: float, rules: Rules, *, owning: bool) -> NodeState:
    if node.unreadable:
        return NodeState.UNREADABLE
    fence = node.fence
    if node.absent is None:
        if fence is not None:
            return NodeState.ADMITTING if fence.state is FenceState.ADMITTING else NodeState.RETURNING
        return _present(view, node, now, rules, owning=owning)
    if fence is not None and fence.state is not FenceState.ADMITTING:
        return {
            FenceState.FENCING: NodeState.FENCING,
            FenceState.FAILED: NodeState.FENCE_FAILED,
            FenceState.FENCED: NodeState.FENCED,
        }[fence.state]
    return _absent(view, node, node.absent, rules)


def _present(view: ClusterView, node: NodeView, now: float, rules: Rules, *, owning: bool) -> NodeState:
    if cut_off(view, node, rules):
        return NodeState.CUT_OFF
    if node.intent is not None and node.intent.kind is IntentKind.DRAIN:
        return NodeState.DRAINING if owning else NodeState.MAINTENANCE
    settled = (node.present or 0.0) >= rules.use  # a node that has just come back may have a newer verdict to tell
    if node.health.verdict is NodeVerdict.EVACUATE and settled:
        return NodeState.SICK
    if node.health.verdict is NodeVerdict.QUARANTINE and settled:
        return NodeState.QUARANTINED
    if damped(node, now, rules):
        return NodeState.DAMPED
    known = node.fresh or not node.record.has(Role.HYPERVISOR)  # of a node that runs no domains there is no reading
    return NodeState.PRESENT if settled and known else NodeState.ARRIVING


def _absent(view: ClusterView, node: NodeView, absent: float, rules: Rules) -> NodeState:
    if not node.record.has(Role.HYPERVISOR) or view.settled < rules.grace or absent < rules.silence:
        return NodeState.SILENT
    if node.intent is not None and absent < node.intent.away:
        return NodeState.AWAY
    if view.witnesses == 0 or (unseen(view, node) < rules.sign and (node.sign is None or node.sign.age >= rules.sign)):
        return NodeState.UNWATCHED
    if unseen(view, node) < rules.sign and not (node.sign and node.sign.stopped):
        return NodeState.ISOLATED
    return NodeState.LOST


def unseen(view: ClusterView, node: NodeView) -> float:
    """Seconds for which it surely wrote no heartbeat to storage: no longer than somebody has watched."""
    return min(view.watched, node.sign.age) if node.sign is not None else view.watched


def watched_by_all(view: ClusterView) -> bool:
    """Whether every storage node tells of heartbeats just now."""
    storage = sum(1 for node in view.nodes.values() if node.record.has(Role.STORAGE))
    return view.witnesses >= max(1, storage)


def cut_off(view: ClusterView, node: NodeView, rules: Rules) -> bool:
    """Whether a present hypervisor has lost the storage: it wrote heartbeats once, and none for long, while every
    storage node could tell; those of another hypervisor have gone on all that time. After an outage of the storage for
    all, one hypervisor is always the first that writes again."""
    if not node.record.has(Role.HYPERVISOR) or node.sign is None or not watched_by_all(view):
        return False
    if unseen(view, node) < rules.cutoff or (node.present or 0.0) < rules.cutoff:
        return False
    others = (other for other in view.nodes.values() if other.name != node.name and other.record.has(Role.HYPERVISOR))
    return any(other.beating >= rules.cutoff for other in others)


def damped(node: NodeView, now: float, rules: Rules) -> bool:
    """Whether it was fenced `damp_count` times within `damp_window`, the last of them not longer ago than that."""
    recent = [at for at in node.history.fenced if 0 <= now - at < rules.damp_window]
    return len(recent) >= rules.damp_count


def usable(view: ClusterView, states: Mapping[str, NodeState]) -> tuple[str, ...]:
    """The hypervisors that may be given domains, sorted."""
    fit = (name for name, state in states.items() if state is NodeState.PRESENT)
    return tuple(sorted(name for name in fit if view.nodes[name].record.has(Role.HYPERVISOR)))


def waited(now: float, at: float, seconds: float) -> bool:
    """Whether `seconds` have passed since `at`. A clock that was set back counts as passed: this only paces."""
    return not 0 <= now - at < seconds
