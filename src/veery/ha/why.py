"""`veery why`: describes a node or a domain in sentences, from the same view and the same decision that the brain acts
on.

Pure, so any node that observes can answer."""

from __future__ import annotations

from veery.errors import NotFound
from veery.ha.context import DecisionContext, seconds
from veery.ha.decide import decide
from veery.ha.states import NodeState
from veery.model.ha import SHUTDOWN_LAPSE_S, ClusterView, DomainView, Note, Policy, Rules
from veery.model.verdict import NodeVerdict

NODE_WORDS: dict[NodeState, str] = {
    NodeState.PRESENT: "is well, and may receive domains",
    NodeState.ARRIVING: "has only just joined or come back: it receives no domains yet",
    NodeState.DRAINING: "is being drained",
    NodeState.MAINTENANCE: "is drained: it stays empty until it is resumed",
    NodeState.SICK: "is sick: it receives no domains, and its own are moved away",
    NodeState.QUARANTINED: "is in quarantine: it keeps its domains, and receives no others",
    NodeState.DAMPED: "was fenced too often recently: it receives no domains for a while, or until it is resumed",
    NodeState.OUTDATED: "has a veery older than the cluster's level: it keeps its domains, and receives no others",
    NodeState.CUT_OFF: "has lost the storage",
    NodeState.AWAY: "is restarting its daemon, as announced",
    NodeState.SILENT: "does not answer",
    NodeState.UNWATCHED: "does not answer, and no storage node can be asked about it",
    NodeState.ISOLATED: "is unreachable for the cluster, but writes heartbeats to storage",
    NodeState.LOST: "is lost: neither the cluster nor the storage hears from it",
    NodeState.FENCING: "is being fenced",
    NodeState.FENCE_FAILED: "could not be fenced: its domains wait",
    NodeState.FENCED: "is fenced: it cannot write to volumes",
    NodeState.RETURNING: "is back after a fence, but not in use yet",
    NodeState.ADMITTING: "is being admitted to the storage again",
    NodeState.UNREADABLE: "has a record that cannot be read: the cluster leaves it alone",
}

ASKS = {
    NodeVerdict.WELL: "nothing",
    NodeVerdict.QUARANTINE: "quarantine",
    NodeVerdict.EVACUATE: "evacuation of the node",
}


def why(view: ClusterView, name: str, now: float, rules: Rules) -> tuple[str, ...]:
    """Return sentences about the node or domain `name`, the most important first. Raises Refused if neither exists."""
    if view.restored and name not in view.nodes and name not in view.domains:
        return tuple(each.reason for each in decide(view, now, rules))  # a brain that has just started knows no names
    if name not in view.nodes and name not in view.domains:
        raise NotFound(f"no node and no domain {name!r}", hint="veery node list and veery list -A show them")
    lines = []
    actions = decide(view, now, rules)
    lines += [each.reason for each in actions if each.subject == "cluster"]
    owner = view.domains[name].owner if name in view.domains else None
    subjects = [
        f"move/{name}",
        f"domain/{name}",
        f"node/{name}",
        f"health/{name}",
        *([f"node/{owner.node}", f"health/{owner.node}"] if owner and owner.node != name else []),
    ]
    for subject in subjects:
        about = "" if subject.partition("/")[2] == name else f"{subject.replace('/', ' ')}: "
        lines += [
            f"{about}{each.reason}" if isinstance(each, Note) else f"{about}next action: {each.reason}"
            for each in actions
            if each.subject == subject
        ]
        if subject in view.resting:
            lines.append(f"the last try failed: {view.resting[subject]}")
    context = DecisionContext.of(view, now, rules)
    if name in view.nodes:
        lines.append(_node(context, name))
        lines += _signs(context, name)
    if name in view.domains:
        lines += _domain(context, view.domains[name])
    return tuple(dict.fromkeys(lines))


def _node(context: DecisionContext, name: str) -> str:
    domains = context.on[name]
    holds = f"; it owns {', '.join(each.name for each in domains)}" if domains else ""
    state = context.states[name]
    resume = f": veery node resume {name}" if state in (NodeState.MAINTENANCE, NodeState.DAMPED) else ""
    return f"node {name} {NODE_WORDS[state]}{resume}{holds}"


def _signs(context: DecisionContext, name: str) -> list[str]:
    """Return what the node's sensors found, and since when."""
    lines = []
    for sign in context.view.nodes[name].health.signs:
        told = "" if sign.asks is sign.would else f"; without its limit the sensor would ask for: {ASKS[sign.would]}"
        age = seconds(max(0.0, context.now - sign.since))
        lines.append(f"{sign.text}; {sign.level}, for {age}; asks for: {ASKS[sign.asks]}{told}")
    return lines


def _domain(context: DecisionContext, domain: DomainView) -> list[str]:
    lines, ha = [], domain.ha
    if domain.move:
        lines.append(f"{domain.name} is being moved from {domain.move.source} to {domain.move.target}")
    if domain.owner:
        state = context.states.get(domain.owner.node)
        known = f", which {NODE_WORDS[state]}" if state else ""
        lines.append(f"{domain.name} belongs to {domain.owner.node}{known}")
    elif domain.unreadable:
        lines.append(f"{domain.name}: {'; '.join(domain.unreadable)}")
    elif not ha.wanted:
        lines.append(f"{domain.name} is off: it was ended on purpose; veery create starts it")
    else:
        lines.append(f"{domain.name} has no owner")
    if said := now_said(context, domain):
        lines.append(f"{domain.name} {said}" if domain.owner else said)
    words = {
        Policy.RESTART: f"restarted when it or its node dies, priority {ha.priority}"
        if ha.wanted and ha.max_restarts
        else "not restarted",
        Policy.MIGRATE_ONLY: "moved away from sick nodes, never restarted",
        Policy.OFF: f"the cluster leaves it alone; to have it restarted: veery ha set {domain.name} restart",
    }
    lines.append(f"policy {ha.policy}: {words[ha.policy]}")
    if domain.run and domain.run.home:
        lines.append(f"its home is {domain.run.home}: to bring it back: veery node resume --home {domain.run.home}")
    return lines


def now_said(context: DecisionContext, domain: DomainView) -> str:
    """Return the state of a domain that has an owner, if there is more to say than that it runs; "" otherwise."""
    owner = domain.owner
    if owner is None or domain.unreadable:
        return ""
    said = []
    node = context.view.nodes.get(owner.node)
    if node is not None and node.reading is not None and node.absent is None:
        said += [copy.said for copy in node.reading.copies if copy.domain == domain.name and copy.said]
    if domain.ha.stopping and not domain.ha.wanted:
        said.append(_shutting_down(domain, context.now))
    elif not domain.ha.wanted and domain.ha.policy is Policy.RESTART:
        again = f"to have it restarted: veery ha set {domain.name} restart"
        said.append(f"is not restarted: it was asked to end, or has ended by itself; {again}")
    return "; ".join(said)


def _shutting_down(domain: DomainView, now: float) -> str:
    """Return the sentence about a domain whose guest was asked to shut down and still runs."""
    asked_s, left_s = max(0.0, now - domain.ha.stopping), max(0.0, domain.ha.stopping + SHUTDOWN_LAPSE_S - now)
    again = f"to take it back now: veery ha set {domain.name} {domain.ha.policy}"
    not_restarted = " and is not restarted" if domain.ha.policy is Policy.RESTART else ""
    return f"was asked to shut down {asked_s:.0f} s ago{not_restarted}; the request lapses in {left_s:.0f} s; {again}"
