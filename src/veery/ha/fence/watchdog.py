"""Fencing by the node's own watchdog: this method only waits.

The node feeds its watchdog while its lease holds by the node's own clock. That clock began each renewal before the
store did, so the last feed is older than the moment at which the leader saw the lease missing.

If the store itself was down for all, feeding goes on until some voter knows a leader again. A new leader of the store
then gives each lease its full time once more. That time is longer than the age of any answer that allowed a feed."""

from __future__ import annotations

from veery.cluster.keys import ARMED
from veery.cluster.store import Store
from veery.errors import Failed, Refused
from veery.ha.fence.base import NotProven
from veery.model.fence import Armed, Fenced, Method
from veery.model.ha import Proof

MARGIN_S = 5.0
"""Seconds added to a watchdog's timeout, for the drift of two clocks and for a driver that rounds."""


def fires_after(armed: Armed | None) -> float:
    """Return the seconds of absence, by the leader's clock, after which the watchdog has certainly fired; 0 without
    one."""
    return armed.timeout + MARGIN_S if armed else 0.0


class WatchdogFence:
    """`Fence` by waiting for the node's watchdog."""

    method = Method.WATCHDOG

    def __init__(self, store: Store) -> None:
        self._store = store

    async def off(self, fence: Fenced, absent: float) -> None:
        """As Fence.off. Nothing to do: an armed watchdog fires by itself."""
        await self._armed(fence.node)

    async def proof(self, fence: Fenced, absent: float) -> Proof:
        """As Fence.proof."""
        try:
            armed = await self._armed(fence.node)
        except Refused as error:
            raise NotProven(error.message, hint=error.hint) from error
        left = fires_after(armed) - absent
        if left > 0:
            raise NotProven(f"the watchdog of {fence.node} will have fired for certain in {left:.0f} s", hint="wait")
        seen = f"absent for {absent:.0f} s, and its watchdog fires after {armed.timeout} s without its lease"
        return Proof(method=self.method, seen=seen)

    async def test(self, node: str) -> str:
        """As Fence.test."""
        armed = await self._armed(node)
        return f"{armed.device} is armed, with {armed.timeout} s"

    async def _armed(self, node: str) -> Armed:
        armed = await ARMED.get(self._store, node)
        if armed is None:
            raise Refused(f"{node} has no armed watchdog", hint=f"set watchdog.device in {node}'s veery.toml")
        if armed.timeout <= 0:
            raise Failed(
                f"the record of {node}'s watchdog says {armed.timeout} s", hint=f"on {node}: systemctl restart veeryd"
            )
        return armed
