"""The state of each node as the brain sees it, derived from one view. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from veery.cluster import levels
from veery.ha.commoncause import common_signs, is_common
from veery.model.ha import ClusterView, FenceState, IntentKind, NodeView, Rules
from veery.model.node import Role
from veery.model.verdict import NodeVerdict


class NodeState(StrEnum):
    """The state of a node. Only PRESENT nodes receive domains."""

    PRESENT = "present"  # its lease is valid: it may run domains
    ARRIVING = "arriving"  # its lease is new: it receives no domains yet
    DRAINING = "draining"  # an operator drains it; its domains are being moved away
    MAINTENANCE = "maintenance"  # drained: it stays empty until `resume`
    SICK = "sick"  # its sensors call for evacuation: domains that may be moved are moved away
    QUARANTINED = "quarantined"  # its sensors warn: it keeps its domains and receives no others
    DAMPED = "damped"  # fenced too often recently: present, but it receives no domains for a while
    OUTDATED = "outdated"  # its version does not support the cluster's level: it keeps its domains, receives no others
    CUT_OFF = "cut-off"  # present, but its heartbeats on storage have stopped: it has lost the storage
    AWAY = "away"  # its daemon announced a restart: it is not judged yet
    SILENT = "silent"  # its lease has expired, but too recently to act on, or it runs no domains
    UNWATCHED = "unwatched"  # silent, and no storage node answers about it: the brain waits
    ISOLATED = "isolated"  # its lease has expired, but it still writes heartbeats to storage: it is left alone
    LOST = "lost"  # silent to the cluster and to the storage: it is fenced if a domain gains by it
    FENCING = "fencing"  # being fenced, no proof yet
    FENCE_FAILED = "fence-failed"  # every method has failed: its domains wait, an alarm is raised, and it tries again
    FENCED = "fenced"  # proven unable to write: its domains start elsewhere
    RETURNING = "returning"  # present again after a fence: it is admitted when its old copies are known to be dead
    ADMITTING = "admitting"  # being admitted to the storage again
    UNREADABLE = "unreadable"  # one of its records cannot be decoded: it is left alone


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


LEAVING = frozenset(  # domains leave such a node, so they do not bind the rest of their group to it
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
    """Return the state of each node."""
    owning = {domain.owner.node for domain in view.domains.values() if domain.owner}
    common = common_signs(view)
    return {
        name: _state(view, node, now, rules, owning=name in owning, shared=is_common(view, name, common))
        for name, node in view.nodes.items()
    }


def _state(view: ClusterView, node: NodeView, now: float, rules: Rules, *, owning: bool, shared: bool) -> NodeState:
    if node.unreadable:
        return NodeState.UNREADABLE
    fence = node.fence
    if node.absent is None:
        if fence is not None:
            return NodeState.ADMITTING if fence.state is FenceState.ADMITTING else NodeState.RETURNING
        return _present(view, node, now, rules, owning=owning, shared=shared)
    if fence is not None and fence.state is not FenceState.ADMITTING:
        return {
            FenceState.FENCING: NodeState.FENCING,
            FenceState.FAILED: NodeState.FENCE_FAILED,
            FenceState.FENCED: NodeState.FENCED,
        }[fence.state]
    return _absent(view, node, node.absent, rules)


def _present(view: ClusterView, node: NodeView, now: float, rules: Rules, *, owning: bool, shared: bool) -> NodeState:
    old = outdated(view, node)
    if not old and cut_off(view, node, rules):  # an older version may be unable to write heartbeats while domains run
        return NodeState.CUT_OFF
    if node.intent is not None and node.intent.kind is IntentKind.DRAIN:
        return NodeState.DRAINING if owning else NodeState.MAINTENANCE
    settled = (node.present or 0.0) >= rules.use  # a node that has just come back may still report a newer verdict
    if node.health.verdict is NodeVerdict.EVACUATE and settled:
        return NodeState.SICK
    if node.health.verdict is NodeVerdict.QUARANTINE and settled and not shared:
        return NodeState.QUARANTINED
    if damped(node, now, rules):
        return NodeState.DAMPED
    if old:
        return NodeState.OUTDATED
    known = node.fresh or not node.record.has(Role.HYPERVISOR)  # a node that runs no domains gives no reading
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
    """Return for how many seconds the node has certainly written no heartbeat to storage, at most the time for which
    storage nodes have been watched."""
    return min(view.watched, node.sign.age) if node.sign is not None else view.watched


def watched_by_all(view: ClusterView) -> bool:
    """Return True if every storage node reports heartbeats now."""
    storage = sum(1 for node in view.nodes.values() if node.record.has(Role.STORAGE))
    return view.witnesses >= max(1, storage)


def cut_off(view: ClusterView, node: NodeView, rules: Rules) -> bool:
    """Return True if a present hypervisor has lost the storage.

    That is so if it has written heartbeats before, but none for `cutoff` seconds, while every storage node could report
    them. The heartbeats of another hypervisor must have continued for all that time: after a storage outage that
    affects all, one hypervisor always writes again first."""
    if not node.record.has(Role.HYPERVISOR) or node.sign is None or not watched_by_all(view):
        return False
    if unseen(view, node) < rules.cutoff or (node.present or 0.0) < rules.cutoff:
        return False
    others = (other for other in view.nodes.values() if other.name != node.name and other.record.has(Role.HYPERVISOR))
    return any(other.beating >= rules.cutoff for other in others)


def damped(node: NodeView, now: float, rules: Rules) -> bool:
    """Return True if the node was fenced at least `damp_count` times within the last `damp_window` seconds."""
    recent = [at for at in node.history.fenced if 0 <= now - at < rules.damp_window]
    return len(recent) >= rules.damp_count


def outdated(view: ClusterView, node: NodeView) -> str:
    """Return why a present hypervisor can take in no domain: its version does not support the cluster's level. Return
    "" for any other node."""
    if node.able is None or not node.record.has(Role.HYPERVISOR):
        return ""
    return levels.behind(node.able, view.level)


def usable(view: ClusterView, states: Mapping[str, NodeState]) -> tuple[str, ...]:
    """Return the hypervisors that may receive domains, sorted."""
    fit = (name for name, state in states.items() if state is NodeState.PRESENT)
    return tuple(sorted(name for name in fit if view.nodes[name].record.has(Role.HYPERVISOR)))


def waited(now: float, at: float, seconds: float) -> bool:
    """Return True if `seconds` have passed since `at`. A clock that was set back counts as passed: this only paces."""
    return not 0 <= now - at < seconds
