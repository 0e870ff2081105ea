"""The interfaces of the brain. `Probes` asks nodes, `Observer` reads the whole cluster, `NodeControl` gives orders to
nodes.

The daemon implements them for real nodes, and `veery.ha.simulation` for a simulated cluster. The rest of the brain is
the same in both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from veery.model.ha import ClusterView, NodeReading, Proof, StorageHeartbeats, Ticket
from veery.model.verdict import MoveOutcome, MovePromise


class Probes(Protocol):
    """Facts that the store does not hold. Both calls return within a second or two and leave out nodes that do not
    answer."""

    async def signs(self) -> StorageHeartbeats:
        """Return the ages of the heartbeats that nodes write to storage. Every storage node is asked, and the youngest
        age counts.

        Raises nothing. A storage node that does not answer is not counted as a witness."""
        ...

    async def readings(self) -> Mapping[str, NodeReading]:
        """Return what each node reports about itself now, for the nodes that answer. Raises nothing."""
        ...


class Observer(Protocol):
    """Reads the cluster, and follows the store between two readings."""

    async def run(self) -> None:
        """Follow the store until cancelled, so that `observe` costs the store little. The caller owns the task.
        `observe` also works without it, but slower."""
        ...

    async def observe(self) -> ClusterView:
        """Return the whole cluster at one revision of the store.

        Does not raise when the store does not answer. Then `quorum` is False, and the rest is the last view."""
        ...


class NodeControl(Protocol):
    """The actions that the brain can take on nodes. A call can be repeated: it skips what is already done and does the
    rest. Raises Refused (nothing changed), Failed, or OutcomeUnknown. The brain observes again before it continues.

    Writes of the brain to the store are not part of this interface. `ha.act` makes them, guarded by the leader's
    key."""

    async def fence(self, node: str, method: str, absent: float) -> Proof:
        """Stop `node` from writing by `method`, and verify that it cannot. The record fence/NODE exists before this
        call. `absent` is how long (seconds) the leader has seen the node's lease missing.

        Raises Failed without proof, whatever was done: a method that accepts the order proves nothing."""
        ...

    async def admit(self, node: str, revision: int) -> None:
        """Let `node` use the storage again. The storage node reads fence/NODE under the same lock as its fencing. It
        admits the node only if that key is at `revision` and its state is ADMITTING. Otherwise it raises Refused, so a
        late order changes nothing."""
        ...

    async def start(self, ticket: Ticket) -> None:
        """Start the domain on the ticket's node. That node claims the domain with `ha.orders.claim`, which requires the
        ticket's revision. Returns when the domain runs.

        Raises Refused or Failed: the domain does not run there and has no owner. Raises OutcomeUnknown: the owner key
        tells."""
        ...

    async def forecast(self, domain: str, source: str, target: str, *, urgent: bool = False) -> MovePromise:
        """Return the forecast of a move, as its source makes it. `urgent`: only from what the source knows already.
        Changes nothing. Raises Failed or OutcomeUnknown without a forecast."""
        ...

    async def move(self, domain: str, source: str, target: str, *, urgent: bool = False) -> MoveOutcome:
        """Move a running domain, and return the figures of the move when it has succeeded. `urgent`: slow the domain
        down so that the move ends sooner. Raises as a move does; the owner key tells where the domain runs."""
        ...

    async def end(self, node: str, domain: str, boot: str) -> None:
        """Kill that one instance of the domain on `node`. Returns when its process is certainly gone (pidfd). Releases
        its owner key if the key names this node and boot."""
        ...
