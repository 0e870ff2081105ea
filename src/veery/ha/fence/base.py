"""The interface that every fence method implements."""

from __future__ import annotations

from typing import Any, Protocol

from veery.errors import Failed
from veery.model.fence import Fenced, Method
from veery.model.ha import Proof


class NotProven(Failed):
    """The proof is missing, or not complete yet: no domain of the node may start elsewhere. The message says what is
    missing."""


class Ask(Protocol):
    """Calls another node's API and returns its JSON answer."""

    async def __call__(self, node: str, method: str, path: str, *, deadline: float) -> Any:
        """Call the API. Raises what that node raised, Refused if the node is not reachable, OutcomeUnknown without an
        answer."""
        ...


class Fence(Protocol):
    """One fence method. The record fence/NODE must exist before any call, and `fence` is what was read of it. `absent`
    is for how many seconds the leader has seen the node's lease missing, by its own clock."""

    method: Method

    async def off(self, fence: Fenced, absent: float) -> None:
        """Make the node unable to write. Repeating the call is safe. Ends within a minute.

        Raises VeeryError with what prevents it. The caller then waits and reports that; it is never a proof."""
        ...

    async def proof(self, fence: Fenced, absent: float) -> Proof:
        """Check again that the node cannot write, and return the proof. Changes nothing. Raises NotProven."""
        ...

    async def test(self, node: str) -> str:
        """Return in one line whether the method would work for `node` now. Changes nothing. Raises VeeryError with the
        defect."""
        ...
