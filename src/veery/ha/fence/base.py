"""What each way of fencing promises."""

from __future__ import annotations

from typing import Any, Protocol

from veery.errors import Failed
from veery.model.fence import Fenced, Method
from veery.model.ha import Proof


class NotProven(Failed):
    """There is no proof, or not yet: nothing of the node may be started elsewhere. The message says what is missing."""


class Ask(Protocol):
    """A request to another node's API; its JSON answer."""

    async def __call__(self, node: str, method: str, path: str, *, deadline: float) -> Any:
        """Raises what that node raised, Refused when it is not reachable, OutcomeUnknown without an answer."""
        ...


class Fence(Protocol):
    """One way. The record fence/NODE must stand before any call, `fence` is what was read of it; `absent` is for how
    long, in seconds, the leader has seen the node's lease gone by its own clock."""

    method: Method

    async def off(self, fence: Fenced, absent: float) -> None:
        """Do what makes the node unable to write. Asking again does no harm. Ends within a minute; raises VeeryError
        with what stands in the way: that is a state to wait in and to tell of, never a proof."""
        ...

    async def proof(self, fence: Fenced, absent: float) -> Proof:
        """Proof that the node cannot write, looked for anew. Changes nothing. Raises NotProven."""
        ...

    async def test(self, node: str) -> str:
        """Whether it would work for `node` now, as one line. Changes nothing. Raises VeeryError with what is amiss."""
        ...
