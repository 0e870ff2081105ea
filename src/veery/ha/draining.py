"""The orders to drain a node and to put it to use again. A drain is planned from the newest view. It is written only if
the records behind that plan are unchanged."""

from __future__ import annotations

from collections.abc import Callable

from veery.cluster.keys import DOMAINS, FENCES, INTENTS, RUNS, VOLUMES
from veery.cluster.store import Store, StoreUnavailable
from veery.errors import NotFound, Refused
from veery.ha import drainplan, orders
from veery.ha.context import DecisionContext
from veery.ha.drainplan import DrainPlan
from veery.ha.states import NodeState
from veery.host.clock import Clock
from veery.model.ha import ClusterView, IntentKind, NodeIntent, Rules

ATTEMPTS = 8  # an attempt fails when another drain or resume gets in between


async def served(store: Store, node: str) -> dict[str, tuple[str, ...]]:
    """Return the volumes that storage node `node` serves, each with the domains that use it as a disk. Raises
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
    """Order the drain of node `name`. `look` returns the newest view of the cluster.

    Raises Refused with every reason against it (nothing is changed then), StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        view = look()
        if view.disarmed is not None:
            by_whom = f" by {view.disarmed.by}" if view.disarmed.by else ""
            raise Refused(
                f"the cluster is disarmed{by_whom}: no domain would be moved", hint="veery arm, then drain again"
            )
        plan = drainplan.plan(view, name, clock.epoch(), rules, volumes=await served(store, name))
        if plan.blockers:
            hint = f"veery node drain {name} --plan"
            raise Refused(f"{name} cannot be drained: {'; '.join(plan.blockers)}", hint=hint)
        if plan.risks and not force:
            raise Refused(f"{name} should not be drained: {'; '.join(plan.risks)}", hint="to drain it anyway: --force")
        intent = NodeIntent(kind=IntentKind.DRAIN, by=by, since=clock.epoch(), force=force)
        if await orders.drain(store, name, intent, view.nodes):
            return plan
        await clock.sleep(rules.cycle)  # until the view shows the change
    raise StoreUnavailable("other drains or resumes kept changing the plan", hint="try again")


async def resume(
    store: Store, look: Callable[[], ClusterView], clock: Clock, rules: Rules, name: str, *, by: str, home: bool
) -> None:
    """Put node `name` to use again.

    Raises Refused for a node that is unknown or fenced, and for one that is not drained and has no domain to bring
    home. Raises StoreUnavailable, OutcomeUnknown."""
    if await FENCES.get(store, name) is not None:
        raise Refused(
            f"node {name} is fenced", hint=f"the cluster admits it by itself when it is back: veery why {name}"
        )
    coming = home and any(run.home == name for run in (await RUNS.readable(store)).values())  # e.g. after a fence
    if await INTENTS.get(store, name) is None and not coming:
        view = look()
        if name not in view.nodes:
            raise NotFound(f"no node {name!r}", hint=f"the nodes are {', '.join(view.nodes)}")
        if DecisionContext.of(view, clock.epoch(), rules).states[name] is not NodeState.DAMPED:
            raise Refused(f"node {name} is not drained", hint="veery cluster status shows the drained nodes")
    await orders.resume(store, name, home=home, by=by, now=clock.epoch())
