"""Clears a move of the domain, under way or not settled, out of the way of a `destroy`."""

from __future__ import annotations

from veery.cluster import owner as owners
from veery.cluster.keys import ALIVE
from veery.cluster.store import Store, StoreUnavailable
from veery.errors import OutcomeUnknown, Refused
from veery.migrate.moves import Moves
from veery.migrate.receiver import Receiver
from veery.model.domain import DomainReading


async def make_way(store: Store, node: str, moves: Moves, receiver: Receiver, reading: DomainReading) -> str:
    """Cancel the domain's move if it can still be undone; return when the copy on `node` may be destroyed.

    A move that does not end is no obstacle: when its copy is gone, it settles as the owner key says. The result is "",
    or, if the store does not answer, the other node that may own the domain.

    Raises Refused if another living node owns the domain, and if that node still needs the memory that is here."""
    name = reading.name
    await moves.withdraw(name)
    offer = receiver.arriving(name)
    if offer is None and not moves.busy(name):
        return ""
    try:
        owner = await owners.read(store, name)
        elsewhere = owner is not None and owner.node != node
        if owner is None or not elsewhere or await ALIVE.get(store, owner.node) is None:
            return ""
    except (StoreUnavailable, OutcomeUnknown) as error:
        if target := moves.remains(name):
            raise Refused(
                f"{target} may run {name} and may still need its memory on this node: {error.message}",
                hint=f"veery --node {target} destroy {name}",
            ) from error
        return offer.source if offer else "another node"
    raise Refused(f"{name} belongs to {owner.node}, not to {node}", hint=f"veery --node {owner.node} destroy {name}")
