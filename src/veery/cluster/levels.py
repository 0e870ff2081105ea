"""The cluster's level: one number for the features that all of its nodes support. It rises with them and never falls.

Each node's presence contains the highest level of its version (`LEVEL`); a version without levels counts as 0. A voter
raises the level once every node of the cluster is present and supports more. A new node that does not support the
level is refused. Its admission writes the record `level` again, so of an admission and a rise at the same time only
one succeeds. A feature that older nodes do not support has a level, and is used only from that level on."""

from __future__ import annotations

import logging

import veery
from veery.cluster.keys import ALIVE, JOINING, LEVEL_KEY, LEVELS, NODES, Unreadable
from veery.cluster.store import Put, Store, Unchanged
from veery.errors import Refused
from veery.host.log import decision
from veery.model.cluster import LEVEL, ClusterLevel

log = logging.getLogger(__name__)


async def read(store: Store) -> int:
    """Return the cluster's level; 0 before its first rise. Raises StoreUnavailable, Unreadable."""
    record = await LEVELS.get(store, LEVEL_KEY)
    return record.level if record else 0


async def able(store: Store) -> dict[str, int]:
    """Return the level of each node, by name; 0 for an absent node. Raises StoreUnavailable."""
    nodes = [NODES.name(entry.key) for entry in (await store.scan(NODES.prefix)).entries]
    present = await ALIVE.readable(store)
    return {name: present[name].level if name in present else 0 for name in nodes}


async def rise(store: Store, by: str, *, epoch: float) -> int:
    """Raise the cluster's level to the lowest level of its nodes, and return it. `by`: the node that does it. While a
    node is joining, the level stays. Raises StoreUnavailable, OutcomeUnknown, Unreadable."""
    record = await LEVELS.get(store, LEVEL_KEY)
    now, revision = (record.level, record.revision) if record else (0, 0)
    if now >= LEVEL:
        return now
    common = min((await able(store)).values(), default=0)
    if common <= now:
        return now
    raised = ClusterLevel(level=common, since=epoch, by=by)
    conditions = [Unchanged(LEVEL_KEY, revision), Unchanged(JOINING, 0)]
    if not (await store.commit(conditions, [LEVELS.put(LEVEL_KEY, raised)])).held:
        return now
    log.info(decision("level.rise", level=common, before=now))
    return common


async def admission(store: Store, name: str, level: int) -> tuple[Unchanged, Put]:
    """Return the condition and the operation for the admission of node `name`, which supports `level`. Raises Refused
    if that is less than the cluster's level, StoreUnavailable, Unreadable."""
    record = await LEVELS.get(store, LEVEL_KEY)
    present = record or ClusterLevel(level=0)
    if level < present.level:
        raise Refused(
            f"the veery on {name} supports level {level}, the cluster is at level {present.level}",
            hint=f"install the cluster's version on {name}: veery node list shows it",
        )
    return Unchanged(LEVEL_KEY, present.revision), LEVELS.put(LEVEL_KEY, present)


def behind(level: int, cluster: int) -> str:
    """Return the fault of a node that supports `level` in a cluster at level `cluster`; "" if there is none."""
    return f"its veery supports level {level}, the cluster is at level {cluster}" if level < cluster else ""


def refusal(node: str, order: str, trouble: str, version: str = "") -> Refused:
    """Return the refusal of an order to `node`, which cannot carry it out because of `trouble` (see `behind`). `order`
    completes "cannot ...". `version`: the version of its veery, if known."""
    versions = f" ({node} has veery {version}, this node {veery.__version__})"
    known = versions if version not in ("", veery.__version__) else ""
    return Refused(
        f"{node} cannot {order}: {trouble}{known}",
        hint=f"upgrade veery on {node}; veery version -a shows all versions",
    )


async def fault(store: Store, node: str) -> tuple[str, str]:
    """Return the fault of `node` by its presence (see `behind`), and the version of its veery. Return "" for a node
    that is absent or whose presence cannot be read: its level is unknown. Raises StoreUnavailable, Unreadable."""
    try:
        presence = await ALIVE.get(store, node)
    except Unreadable:
        return "", ""
    if presence is None:
        return "", ""
    return behind(presence.level, await read(store)), presence.version


async def require(store: Store, node: str, order: str) -> None:
    """Check the level of `node` before it gets an order that a node below the cluster's level cannot carry out. Raises
    Refused (as `refusal`), StoreUnavailable, Unreadable."""
    found, version = await fault(store, node)
    if found:
        raise refusal(node, order, found, version)


async def told(store: Store) -> str:
    """Return the cluster's level in words, with the nodes that keep it from rising. Raises StoreUnavailable."""
    try:
        now = await read(store)
    except Unreadable as error:
        return error.message
    below = [f"{name} ({level})" for name, level in (await able(store)).items() if level < LEVEL]
    if now >= LEVEL or not below:
        return f"{now}"
    return f"{now}; it rises to {LEVEL} when these nodes are present and support it: {', '.join(below)}"
