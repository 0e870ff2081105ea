"""Fences in the store: records of the nodes that have no access to the disks, changed by compare-and-set.

    begin   writes fence/NODE: from then on no target accepts the node
    lift    deletes the record, if the node's copies are still the ones that it reported

The HA leader updates the same record while it fences (model/ha.py, FenceState), and on an operator's confirmation
(ha/orders.py, confirm). This module has the other operations that an operator needs.
`lift` requires that the owner keys of the node's domains are unchanged. A transaction that gives such a domain to
another node requires that the fence's key is unchanged (`standing`). So only one of the two can succeed."""

from __future__ import annotations

import logging

from veery.cluster import keys
from veery.cluster.store import Delete, Store, Unchanged
from veery.errors import NotFound, Refused
from veery.host.log import decision
from veery.model.fence import Clean, Fenced
from veery.model.ha import FenceRecord, FenceState

log = logging.getLogger(__name__)


async def read(store: Store, node: str) -> Fenced | None:
    """Return the fence of `node`, or None. Raises StoreUnavailable."""
    entry = await store.get(keys.FENCES.key(node))
    if entry is None:
        return None
    initiator = await keys.INITIATORS.get(store, node)
    return Fenced(
        node=node,
        iqn=initiator.iqn if initiator else "",
        created=entry.created,
        record=keys.FENCES.value(entry),
    )


async def require(store: Store, node: str) -> Fenced:
    """Return the fence of `node`. Raises Refused if the node is not fenced; otherwise as `read`."""
    found = await read(store, node)
    if found is None:
        raise Refused(f"{node} is not fenced", hint="veery fence list shows the fenced nodes")
    return found


async def refuse(store: Store, node: str) -> None:
    """Raise Refused while `node` has a fence, whatever its record contains; StoreUnavailable."""
    if await store.get(keys.FENCES.key(node)) is not None:
        raise Refused(f"{node} is fenced: it starts nothing", hint=f"veery why {node} shows when the fence is lifted")


async def begin(store: Store, node: str, *, by: str, epoch: float) -> Fenced:
    """Return the fence of `node`; make it if there is none. Raises Refused for an unknown node, StoreUnavailable,
    OutcomeUnknown: call again, since a fence is made only once."""
    present = await read(store, node)
    if present is not None:
        return present
    if await keys.NODES.get(store, node) is None:
        raise NotFound(f"no node {node!r}", hint="veery node list shows the nodes")
    key = keys.FENCES.key(node)
    record = FenceRecord(state=FenceState.FENCING, at=epoch)
    done = await store.commit([Unchanged(key, 0)], [keys.FENCES.put(node, record)])
    if done.held:
        log.warning(decision("fence.begun", node=node, by=by))
    return await require(store, node)


def standing(fence: Fenced) -> Unchanged:
    """Return the condition that `fence` is unchanged: for each transaction that takes a domain from its node."""
    return Unchanged(keys.FENCES.key(fence.node), fence.record.revision)


async def lift(store: Store, fence: Fenced, clean: Clean) -> None:
    """Lift the fence of a node that reports `clean`. Raises Refused while the node has stale copies, or if its domains
    or the fence changed since the report."""
    if clean.stale:
        raise Refused(
            f"{fence.node} still has stale copies of {', '.join(clean.stale)}",
            hint="its veeryd ends them by itself within seconds; try again then",
        )
    if clean.fence != fence.created:
        raise Refused(f"{fence.node} reports on another fence", hint="try again")
    kept = [Unchanged(keys.OWNERS.key(domain), revision) for domain, revision in sorted(clean.kept.items())]
    if not (await store.commit([standing(fence), *kept], [Delete(keys.FENCES.key(fence.node))])).held:
        raise Refused(f"{fence.node}: its domains or its fence changed meanwhile", hint="try again")
    log.warning(decision("fence.lifted", node=fence.node, kept=",".join(sorted(clean.kept)) or "-"))
