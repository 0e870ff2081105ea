"""The cluster's level: what all of its nodes can do, as one number. It rises when all can, and never falls.

Each node tells in its presence the highest level that its version can do (`LEVEL`); a node of a version without levels
tells none, which counts as 0. A voter raises the level once every node of the cluster is present and can do more. A
newcomer that cannot do the level is not let in: its admission writes the record `level` again, so that of an admission
and a rise at the same time only one is taken. A change that older nodes could not follow may be used from the level on
that was given to it."""

from __future__ import annotations

import logging

from veery.cluster.keys import ALIVE, JOINING, LEVEL_KEY, LEVELS, NODES, Unreadable
from veery.cluster.store import Put, Store, Unchanged
from veery.errors import Refused
from veery.host.log import decision
from veery.model.cluster import LEVEL, ClusterLevel

log = logging.getLogger(__name__)


async def read(store: Store) -> int:
    """The cluster's level; 0 before it rose for the first time. Raises StoreUnavailable, Unreadable."""
    record = await LEVELS.get(store, LEVEL_KEY)
    return record.level if record else 0


async def able(store: Store) -> dict[str, int]:
    """The level that each node can do, by name; 0 for one that is absent. Raises StoreUnavailable."""
    nodes = [NODES.name(entry.key) for entry in (await store.scan(NODES.prefix)).entries]
    present = await ALIVE.readable(store)
    return {name: present[name].level if name in present else 0 for name in nodes}


async def rise(store: Store, by: str, *, epoch: float) -> int:
    """Raise the level to what every node can do; the level. `by`: the node that looks. Nothing is done while a node is
    being let in. Raises StoreUnavailable, OutcomeUnknown, Unreadable."""
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
    """The condition and the operation with which node `name`, which can do `level`, may come in. Raises Refused where
    that is less than the cluster's level, StoreUnavailable, Unreadable."""
    record = await LEVELS.get(store, LEVEL_KEY)
    standing = record or ClusterLevel(level=0)
    if level < standing.level:
        raise Refused(
            f"the veery on {name} can do level {level}, the cluster is at level {standing.level}",
            hint=f"install on {name} the version of the cluster: veery node list shows it",
        )
    return Unchanged(LEVEL_KEY, standing.revision), LEVELS.put(LEVEL_KEY, standing)


def behind(level: int, cluster: int) -> str:
    """What is wrong with a node that can do `level` in a cluster at level `cluster`; "" where nothing is."""
    return f"its veery can do level {level}, the cluster is at level {cluster}" if level < cluster else ""


async def told(store: Store) -> str:
    """The cluster's level in words, and which nodes keep it from rising. Raises StoreUnavailable."""
    try:
        now = await read(store)
    except Unreadable as error:
        return error.message
    below = [f"{name} ({level})" for name, level in (await able(store)).items() if level < LEVEL]
    if now >= LEVEL or not below:
        return f"{now}"
    return f"{now}; it rises to {LEVEL} when these nodes are present and can do that: {', '.join(below)}"
