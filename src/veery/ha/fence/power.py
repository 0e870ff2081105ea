"""Fencing by power, through Debian's fence-agents (fence_ipmilan, fence_redfish, ...).

An agent reads "name=value" lines from its standard input. For `action=status` the exit status is 0 for on, 2 for off
and 1 for anything else, including an unreachable board (ClusterLabs/fence-agents, doc/FenceAgentAPI.md and
lib/fencing.py, fence_action). Only a status 2 that was asked for after the order is proof."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from veery.config.settings import PowerSettings
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.ha.fence.base import NotProven
from veery.host.run import Result, run
from veery.model.fence import Fenced, Method
from veery.model.ha import Proof

log = logging.getLogger(__name__)

ON, OFF = 0, 2


class PowerFence:
    """`Fence` by switching the node's power off."""

    method = Method.POWER

    def __init__(self, boards: Mapping[str, PowerSettings], env: Mapping[str, str] | None = None) -> None:
        """`boards` by node name; `env` is added to the agents' environment."""
        self._boards, self._env = boards, env

    def has(self, node: str) -> bool:
        """Return True if a board is set for `node`."""
        return node in self._boards

    async def off(self, fence: Fenced, absent: float) -> None:
        """As Fence.off."""
        result = await self._agent(fence.node, "off")
        if result.code:
            raise Failed(f"{self._name(fence.node)} did not switch off: {_said(result)}", hint=_HINT)

    async def proof(self, fence: Fenced, absent: float) -> Proof:
        """As Fence.proof."""
        try:
            result = await self._agent(fence.node, "status")
        except (Failed, OutcomeUnknown, Refused) as error:
            raise NotProven(error.message, hint=error.hint) from error
        if result.code == OFF:
            return Proof(method=self.method, seen=f"its power is off: {self._boards[fence.node].agent} reports it")
        said = "it is on" if result.code == ON else _said(result)
        raise NotProven(f"{self._name(fence.node)} does not report that it is off: {said}", hint=_HINT)

    async def test(self, node: str) -> str:
        """As Fence.test."""
        result = await self._agent(node, "status")
        if result.code not in (ON, OFF):
            raise Failed(f"{self._name(node)}: {_said(result)}", hint=_HINT)
        return f"{self._boards[node].agent} reports that its power is {'on' if result.code == ON else 'off'}"

    def _name(self, node: str) -> str:
        return f"{self._boards[node].agent} for {node}"

    async def _agent(self, node: str, action: str) -> Result:
        board = self._boards.get(node)
        if board is None:
            raise Refused(f"no power board is set for {node}", hint=f"set [power.{node}] in veery.toml")
        options = {**board.options, "action": action}
        if board.password_file:
            options["password"] = _password(Path(board.password_file))
        text = "".join(f"{name}={value}\n" for name, value in options.items())
        return await run([board.agent], deadline=board.deadline, check=False, stdin=text.encode(), env=self._env)


_HINT = "check the board and its settings, then: veery fence test NODE"


def _said(result: Result) -> str:
    """Return the agent's own message, without its time stamp and usage."""
    lines = [line.strip() for line in (result.err + result.out).splitlines() if line.strip()]
    telling = [line for line in lines if "ERROR" in line and "Please use" not in line] or lines
    return telling[0].partition("ERROR: ")[2] or telling[0] if telling else f"exit status {result.code}"


def _password(path: Path) -> str:
    """Return what the file holds. Raises Refused if others may read it, or it does not exist."""
    try:
        if path.stat().st_mode & 0o077:
            raise Refused(f"{path} may be read by others", hint=f"chmod 600 {path}")
        text = path.read_text().strip()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", hint="this file must hold the board's password") from error
    if not text or "\n" in text:
        raise Refused(f"{path} does not hold one line", hint="this file must hold the board's password")
    return text
