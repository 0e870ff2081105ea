"""The orders to drain a node and to put it to use again. A drain is planned by the newest view, and
written only while what it was planned by still holds."""

from __future__ import annotations

from collections.abc import Callable

from veery.cluster.keys import DOMAINS, FENCES, INTENTS, RUNS, VOLUMES
from veery.cluster.store import Store, StoreUnavailable
from veery.errors import Refused
from veery.ha import drainplan, orders
from veery.ha.context import DecisionContext
from veery.ha.drainplan import DrainPlan
from veery.ha.states import NodeState
from veery.host.clock import Clock
from veery.model.ha import ClusterView, IntentKind, NodeIntent, Rules

ATTEMPTS = 8  # each lost to somebody else's drain or resume


async def served(store: Store, node: str) -> dict[str, tuple[str, ...]]:
    """The volumes that storage node `node` serves, each with the domains that have it as a disk. Raises
    StoreUnavailable."""
    names = [volume.name for volume in (await VOLUMES.readable(store)).values() if volume.node == node]
    if not names:
        return {}
    users: dict[str, list[str]] = {name: [] for name in sorted(names)}
    for domain, record in sorted((await DOMAINS.readable(store)).items()):
        for disk in record.spec.disks:
            if disk.volume in users and domain not in users[disk.volume]:
                users[disk.volume].append(domain)
    return {name: tuple(domains) for name, domains in users.items()}


async def drain(
    store: Store, look: Callable[[], ClusterView], clock: Clock, rules: Rules, name: str, *, by: str, force: bool
) -> DrainPlan:
    """Have node `name` emptied. `look` gives the newest view of the cluster.

    Raises Refused with every reason against it (nothing is changed then), StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        view = look()
        if view.disarmed is not None:
            by_whom = f" by {view.disarmed.by}" if view.disarmed.by else ""
            raise Refused(f"the cluster is disarmed{by_whom}: nothing would be moved", hint="veery arm, then again")
        plan = drainplan.plan(view, name, clock.epoch(), rules, volumes=await served(store, name))
        if plan.blockers:
            hint = f"veery node drain {name} --plan"
            raise Refused(f"{name} cannot be drained: {'; '.join(plan.blockers)}", hint=hint)
        if plan.risks and not force:
            raise Refused(f"{name} should not be drained: {'; '.join(plan.risks)}", hint="--force does it all the same")
        intent = NodeIntent(kind=IntentKind.DRAIN, by=by, since=clock.epoch(), force=force)
        if await orders.drain(store, name, intent, view.nodes):
            return plan
        await clock.sleep(rules.cycle)  # until the change is in the view
    raise StoreUnavailable("other nodes are drained or resumed all the time", hint="try again")


async def resume(
    store: Store, look: Callable[[], ClusterView], clock: Clock, rules: Rules, name: str, *, by: str, home: bool
) -> None:
    """Put node `name` to use again. Raises Refused for one that is unknown, whose fence still stands, or that is not
    drained and has nothing to come home; StoreUnavailable, OutcomeUnknown."""
    if await FENCES.get(store, name) is not None:
        raise Refused(f"node {name} is fenced", hint=f"it is let in by itself once it is back: veery why {name}")
    coming = home and any(run.home == name for run in (await RUNS.readable(store)).values())  # after a fence, say
    if await INTENTS.get(store, name) is None and not coming:
        view = look()
        if name not in view.nodes:
            raise Refused(f"no node {name!r}", hint=f"the nodes are {', '.join(view.nodes)}")
        if DecisionContext.of(view, clock.epoch(), rules).states[name] is not NodeState.DAMPED:
            raise Refused(f"node {name} is not drained", hint="veery cluster status shows which are")
    await orders.resume(store, name, home=home, by=by, now=clock.epoch())
