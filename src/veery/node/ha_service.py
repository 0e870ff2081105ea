"""Answers questions about the brain and passes orders to it, on any node: the leader's view, its reasons, its
drains."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from veery.cluster.keys import DISARM, DISARMED, INTENTS, LEADER, LEADERS, OWNERS, POLICIES, RUNS
from veery.cluster.store import Store, StoreRestored
from veery.errors import Failed, NotFound, Refused, VeeryError
from veery.ha import draining, drainplan, orders
from veery.ha.context import DecisionContext
from veery.ha.drainplan import DrainPlan
from veery.ha.loop import Brain
from veery.ha.why import now_said, why
from veery.host.clock import Clock
from veery.model.codec import convert
from veery.model.ha import ClusterView, HaRecord, Note, Rules
from veery.model.plan import Plan
from veery.node.peers import Peers

log = logging.getLogger(__name__)

QUORUM_TIMEOUT_S = 1.5  # seconds for the store to answer, which shows that it has a quorum
FORECAST_DEADLINE_S = 30.0  # seconds for one node to forecast one move
FORECASTS_AT_ONCE = 2  # forecasts that are requested at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """One node as the brain sees it. `state` is a NodeState, `reason` the latest reason, `domains` those that it
    owns."""

    name: str
    state: str
    reason: str
    domains: tuple[str, ...] = ()
    intent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The state of the cluster. `asked`: the node that answers. `leader`: "" if there is none. Without a quorum the
    nodes are as they were last seen. `restored`: why the store is not trusted, "" if it is."""

    asked: str
    quorum: bool
    leader: str
    disarmed: str = ""
    restored: str = ""
    why: tuple[str, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HaStatus:
    """One domain: its policy, its node ("" if none), its failed starts in a row, its last error. `now`: its state at
    this moment; "" if it simply runs, or if this node does not know."""

    domain: str
    policy: HaRecord
    node: str = ""
    tries: int = 0
    error: str = ""
    home: str = ""
    now: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMove:
    """One move of a drain. The times are in ms, as forecast by the source. `why`: what the source could not
    forecast."""

    domain: str
    target: str
    total_ms: float = 0.0
    gap_ms: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """The plan for draining `node`. `force` overrides `risks`, but not `blockers`."""

    node: str
    moves: tuple[PlannedMove, ...] = ()
    side_by_side: int = 1
    total_ms: float = 0.0
    blockers: tuple[str, ...] = ()
    risks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default_factory=tuple)


class HaService:
    """The HA service of a daemon. `brain` is None on a node that is not a voter."""

    def __init__(
        self,
        node: str,
        store: Store,
        *,
        records: Store,
        brain: Brain | None,
        rules: Rules,
        peers: Peers,
        clock: Clock,
    ) -> None:
        """`node` is the name of this node. `records` is the store for reading only, also while it is not trusted.
        `peers` finds addresses without the store."""
        self.node, self.store, self.records, self.brain = node, store, records, brain
        self._rules, self._peers, self._clock = rules, peers, clock

    # ---- the leader and the view
    async def leader(self) -> str:
        """Return the node that leads, "" if there is none. Raises StoreUnavailable within QUORUM_TIMEOUT_S seconds."""
        try:
            async with asyncio.timeout(QUORUM_TIMEOUT_S):
                found = await LEADERS.get(self.store, LEADER)
        except TimeoutError:
            raise Failed("the store has no quorum: domains run on, but no change is possible", hint=NO_QUORUM) from None
        return found.node if found else ""

    def leads(self) -> bool:
        """Return True if this node leads."""
        return self.brain is not None and self.brain.leadership.held()

    def view(self) -> ClusterView:
        """Return the view of this node's brain. Raises Failed if it has not observed yet, or if there is no brain."""
        if self.brain is None:
            raise Failed(
                f"{self.node} has no brain, as it is not a voter", hint="ask a voter, with --node: veery node list"
            )
        return self.brain.view_now()

    # ---- status
    async def status(self) -> ClusterStatus:
        """Return the cluster as this node's brain sees it. Answers quickly also if the store has no quorum."""
        restored = ""
        try:
            leader, quorum = await self.leader(), True
        except VeeryError as error:
            leader, quorum = "", False
            restored = error.message if isinstance(error, StoreRestored) else ""
        try:
            view = self.view()
        except VeeryError:
            return ClusterStatus(asked=self.node, quorum=quorum, leader=leader, restored=restored)
        lines: list[str] = []
        if restored:
            lines.append(
                f"{restored}: domains run on, but the cluster decides nothing; next: veery cluster adopt --plan"
            )
        elif not quorum:
            lines.append("the store has no quorum: domains run on, but the cluster decides nothing")
        context = DecisionContext.of(view, self._clock.epoch(), self._rules)
        return ClusterStatus(
            asked=self.node,
            quorum=quorum,
            leader=leader,
            disarmed=_disarmed(view),
            restored=restored,
            why=tuple(lines),
            nodes=tuple(self._node(context, name, quorum=quorum) for name in view.nodes),
        )

    def _node(self, context: DecisionContext, name: str, *, quorum: bool) -> NodeStatus:
        found = self.brain.found(f"node/{name}") if self.brain else None
        node = context.view.nodes[name]
        return NodeStatus(
            name=name,
            state=context.states[name].value if quorum else "unknown",
            reason=found.action.reason if found and quorum else "",
            domains=tuple(domain.name for domain in context.on[name]),
            intent=node.intent.kind.value if node.intent else "",
        )

    def why(self, name: str) -> tuple[str, ...]:
        """Return sentences about a node or a domain. Raises Refused if neither exists, Failed."""
        return why(self.view(), name, self._clock.epoch(), self._rules)

    async def policies(self) -> tuple[HaStatus, ...]:
        """Return every domain that has an HA policy. Raises StoreUnavailable."""
        policies, owned, runs = await asyncio.gather(
            POLICIES.readable(self.store), OWNERS.readable(self.store), RUNS.readable(self.store)
        )
        found = []
        context = self._context()
        for name, policy in policies.items():
            run = runs.get(name)
            found.append(
                HaStatus(
                    domain=name,
                    policy=policy,
                    node=owned[name].node if name in owned else "",
                    tries=run.tries if run else 0,
                    error=run.error if run else "",
                    home=run.home if run else "",
                    now=self._now(context, name, policy) if context else "",
                )
            )
        return tuple(found)

    def _context(self) -> DecisionContext | None:
        """Return the context of this node's brain, or None if it has not observed yet or there is no brain."""
        try:
            return DecisionContext.of(self.view(), self._clock.epoch(), self._rules)
        except VeeryError:
            return None

    def _now(self, context: DecisionContext, name: str, policy: HaRecord) -> str:
        """Return the state of a domain now. `policy` is as the store has it now; the view may be older."""
        found = self.brain.found(f"domain/{name}") if self.brain else None
        domain = context.view.domains.get(name)
        said = [found.action.reason] if found and not found.outcome else []
        said += [now_said(context, replace(domain, ha=policy))] if domain else []
        return "; ".join(filter(None, said))

    async def policy(self, name: str) -> HaStatus:
        """Return the status of one domain. Raises Refused if it has no policy."""
        for each in await self.policies():
            if each.domain == name:
                return each
        raise Refused(f"domain {name!r} has no HA policy", hint=f"set one: veery ha set {name} restart")

    # ---- drains
    async def plan(self, name: str, *, forecast: bool) -> Drain:
        """Return the plan of a drain. With `forecast`, each move's source forecasts how long the move takes. Raises
        Refused for an unknown node, Failed, StoreUnavailable."""
        view = self.view()
        if name not in view.nodes:
            raise NotFound(f"no node {name!r}", hint=f"the nodes are {', '.join(view.nodes)}")
        volumes = await draining.served(self.store, name)
        found = drainplan.plan(view, name, self._clock.epoch(), self._rules, volumes=volumes)
        moves = tuple(PlannedMove(domain=domain, target=target) for domain, target in found.moves)
        if forecast and not found.blockers:
            gate = asyncio.Semaphore(FORECASTS_AT_ONCE)
            moves = tuple(await asyncio.gather(*(self._foretold(name, move, gate) for move in moves)))
        return _shown(found, moves)

    async def _foretold(self, source: str, move: PlannedMove, gate: asyncio.Semaphore) -> PlannedMove:
        path = f"/v1/domains/{quote(move.domain, safe='')}/plan"
        try:
            async with gate:
                told = await self._peers.call(
                    source, "POST", path, {"target": move.target}, deadline=FORECAST_DEADLINE_S
                )
            plan = convert(told, Plan)
        except VeeryError as error:
            return PlannedMove(domain=move.domain, target=move.target, why=error.message)
        if not plan.possible:
            why = "; ".join(blocker.reason for blocker in plan.blockers)
            return PlannedMove(domain=move.domain, target=move.target, why=f"{BLOCKED} {move.target}: {why}")
        if plan.forecast is None:
            return PlannedMove(domain=move.domain, target=move.target, why="the source gives no forecast")
        return PlannedMove(
            domain=move.domain,
            target=move.target,
            total_ms=plan.forecast.total_ms,
            gap_ms=plan.forecast.gap_ms,
            why=plan.forecast.why,
        )

    async def drain(self, name: str, *, by: str, force: bool) -> Drain:
        """Order the drain of node `name`. The brain carries it out, and any later leader continues it. Raises Refused
        with every reason against it; nothing is changed then."""
        found = await draining.drain(self.store, self.view, self._clock, self._rules, name, by=by, force=force)
        return _shown(found, tuple(PlannedMove(domain=domain, target=target) for domain, target in found.moves))

    async def resume(self, name: str, *, by: str, home: bool) -> None:
        """Put node `name` to use again. Raises Refused for a node that is unknown or fenced."""
        await draining.resume(self.store, self.view, self._clock, self._rules, name, by=by, home=home)

    async def progress(self, name: str) -> dict[str, object]:
        """Return how far a drain or resume has come: the node's state, its domains, and the latest reason about
        each."""
        view = self.view()
        if name not in view.nodes:
            raise NotFound(f"no node {name!r}", hint=f"the nodes are {', '.join(view.nodes)}")
        context = DecisionContext.of(view, self._clock.epoch(), self._rules)
        coming = [each.name for each in view.domains.values() if each.run and each.run.home == name]
        words = {}
        for domain in [*(each.name for each in context.on[name]), *coming]:
            found = self.brain.found(f"domain/{domain}") if self.brain else None
            if found:
                words[domain] = {"reason": found.action.reason, "stuck": _stuck(found.action), "outcome": found.outcome}
        return {
            "state": context.states[name],
            "intent": await INTENTS.get(self.store, name),  # the view may be older than the order
            "domains": [each.name for each in context.on[name]],
            "coming": coming,
            "words": words,
            "disarmed": _disarmed(view),
        }

    # ---- arming
    async def disarm(self, *, by: str, reason: str) -> None:
        """Stop the brain from acting until `arm`. Raises StoreUnavailable."""
        await orders.disarm(self.store, by=by, reason=reason, now=self._clock.epoch())

    async def arm(self) -> None:
        """Let the brain act again. Raises Refused if it is armed."""
        if await DISARM.get(self.store, DISARMED) is None:
            raise Refused("the cluster is armed", hint="nothing to do: veery cluster status shows it")
        await orders.arm(self.store)


BLOCKED = "cannot move to"
NO_QUORUM = "veery cluster status; most voters must be up and reach each other"


def _shown(found: DrainPlan, moves: tuple[PlannedMove, ...]) -> Drain:
    """Return the plan for the API. A move that its source calls impossible becomes a blocker."""
    blocked = tuple(f"domain {move.domain}: {move.why}" for move in moves if move.why.startswith(BLOCKED))
    return Drain(
        node=found.node,
        moves=moves,
        side_by_side=found.side_by_side,
        total_ms=sum(move.total_ms for move in moves) / max(1, found.side_by_side),
        blockers=found.blockers + blocked,
        risks=found.risks,
        warnings=found.warnings,
    )


def _disarmed(view: ClusterView) -> str:
    if view.disarmed is None:
        return ""
    by = f" by {view.disarmed.by}" if view.disarmed.by else ""
    return f"disarmed{by}" + (f": {view.disarmed.reason}" if view.disarmed.reason else "")


def _stuck(action: object) -> bool:
    return isinstance(action, Note) and action.state == "stuck"
