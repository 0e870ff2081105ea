"""What the brain works through: it asks nodes (`Probes`), sees the cluster (`Observer`), orders nodes (`NodeControl`).

The daemon has the real ones, `veery.ha.simulation` those of a simulated cluster; nothing else of the brain differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from veery.model.ha import ClusterView, NodeReading, Proof, StorageHeartbeats, Ticket


class Probes(Protocol):
    """What the store does not know. Both calls end within a second or two: who does not answer is left out."""

    async def signs(self) -> StorageHeartbeats:
        """Ask every storage node for the ages of the heartbeats that nodes write to it; of several storage nodes the
        youngest counts. Raises nothing: a storage node that does not answer is no witness."""
        ...

    async def readings(self) -> Mapping[str, NodeReading]:
        """What each node that answers says of itself, asked just now. Raises nothing."""
        ...


class Observer(Protocol):
    """One observation, and what goes on between two."""

    async def run(self) -> None:
        """For ever: follow the store, so that a look costs it little. Somebody's task; without it `observe` works too,
        slower."""
        ...

    async def observe(self) -> ClusterView:
        """The whole cluster at one revision of the store. Never raises for a store that does not answer: then
        `quorum` is False, and the rest is as it was last seen."""
        ...


class NodeControl(Protocol):
    """The world that the brain acts through. Every call may be made again: it finds what is done already, and does the
    rest. Raises Refused (nothing changed), Failed, or OutcomeUnknown; the brain looks again before it goes on.

    What the brain itself writes to the store is no part of this: `ha.act` does it, guarded by the leader's key."""

    async def fence(self, node: str, method: str, absent: float) -> Proof:
        """Make sure by `method` that `node` cannot write, and prove it by looking. fence/NODE stands when this is
        called. `absent` is for how long (seconds) the leader has seen the node's lease gone.

        Raises Failed where there is no proof, whatever was done: an order that was taken is none."""
        ...

    async def admit(self, node: str, revision: int) -> None:
        """Let `node` use the storage again. The storage node reads fence/NODE under the lock under which it fences, and
        lets in only where that key is at `revision` and ADMITTING; else Refused: a late order changes nothing."""
        ...

    async def start(self, ticket: Ticket) -> None:
        """Start the domain on the ticket's node, which claims it with `ha.orders.claim` (the ticket's revision is a
        condition of the claim). Returns when it runs. Raises Refused or Failed: it does not run there and has no
        owner; OutcomeUnknown: look at the owner key."""
        ...

    async def move(self, domain: str, source: str, target: str, *, urgent: bool = False) -> None:
        """Move a running domain; returns when it has ended well. `urgent`: slow the domain down rather than take long.
        Raises as a move does: the owner key tells where it runs."""
        ...

    async def end(self, node: str, domain: str, boot: str) -> None:
        """End that one run of the domain on `node`; returns when its process is gone for certain (pidfd), and its
        owner key, if it names this node and boot, is given back."""
        ...
