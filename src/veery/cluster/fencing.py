"""Fences in the store: who is kept from the disks, by compare-and-set.

    begin   a record fence/NODE: from then on no target lets the node in, whatever else happens
    lift    takes the record away, if the node's copies still are what it says they are

The brain writes the same record as a fence goes on (model/ha.py, FenceState), and takes an operator's word
(ha/orders.py, confirm); these are what an operator needs besides.
`lift` asks for the owner keys of the domains that run on the node as they were; whoever gives such a domain to another
node must ask for the fence's key as it was (`standing`). Only one of the two can find both."""

from __future__ import annotations

import logging

from veery.cluster import keys
from veery.cluster.store import Delete, Store, Unchanged
from veery.errors import Refused
from veery.host.log import decision
from veery.model.fence import Clean, Fenced
from veery.model.ha import FenceRecord, FenceState

log = logging.getLogger(__name__)


async def read(store: Store, node: str) -> Fenced | None:
    """The fence of `node`, if one stands. Raises StoreUnavailable."""
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
    """As `read`. Raises Refused where there is none."""
    found = await read(store, node)
    if found is None:
        raise Refused(f"{node} is not fenced", hint="veery fence list shows who is")
    return found


async def refuse(store: Store, node: str) -> None:
    """Raises Refused while a fence of `node` stands, whatever is written in it; StoreUnavailable."""
    if await store.get(keys.FENCES.key(node)) is not None:
        raise Refused(f"{node} is fenced: it starts nothing", hint=f"veery why {node} tells when it is let in")


async def begin(store: Store, node: str, *, by: str, epoch: float) -> Fenced:
    """The fence of `node`, made where there is none. Raises Refused for an unknown node, StoreUnavailable,
    OutcomeUnknown: ask again, a fence is made once."""
    there = await read(store, node)
    if there is not None:
        return there
    if await keys.NODES.get(store, node) is None:
        raise Refused(f"no node {node!r}", hint="veery node list shows the nodes")
    key = keys.FENCES.key(node)
    record = FenceRecord(state=FenceState.FENCING, at=epoch)
    done = await store.commit([Unchanged(key, 0)], [keys.FENCES.put(node, record)])
    if done.held:
        log.warning(decision("fence.begun", node=node, by=by))
    return await require(store, node)


def standing(fence: Fenced) -> Unchanged:
    """The condition that `fence` still is as it was: for each transaction that takes a domain from its node."""
    return Unchanged(keys.FENCES.key(fence.node), fence.record.revision)


async def lift(store: Store, fence: Fenced, clean: Clean) -> None:
    """Let the node in again, which says `clean`. Raises Refused while it has stale copies, or when its domains or the
    fence changed since it looked."""
    if clean.stale:
        raise Refused(
            f"{fence.node} still has stale copies of {', '.join(clean.stale)}",
            hint="its veeryd ends them by itself within seconds; try again then",
        )
    if clean.fence != fence.created:
        raise Refused(f"{fence.node} speaks of another fence", hint="ask again")
    kept = [Unchanged(keys.OWNERS.key(domain), revision) for domain, revision in sorted(clean.kept.items())]
    if not (await store.commit([standing(fence), *kept], [Delete(keys.FENCES.key(fence.node))])).held:
        raise Refused(f"{fence.node}: its domains or its fence changed meanwhile", hint="ask again")
    log.warning(decision("fence.lifted", node=fence.node, kept=",".join(sorted(clean.kept)) or "-"))
