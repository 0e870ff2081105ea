"""Routes for alarms to operators."""

from __future__ import annotations

from aiohttp import web

from veery.api.route import bind
from veery.api.server import CALLER, answer
from veery.api.table.nodes import ALARMS
from veery.errors import Refused
from veery.node.alarms import Alarms


class AlarmRoutes:
    """Routes for the ways in which this node sends alarms, and for a test."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(ALARMS, self)

    async def list(self, _: web.Request) -> web.Response:
        """Return each way, with the result of its last message."""
        return answer(self._alarms.ways())

    async def test(self, request: web.Request) -> web.Response:
        """Send a test message by each way, and return the results."""
        if not self._alarms.ways():
            raise Refused(
                "this node sends no alarms", hint="configure a way in [alarms] of veery.toml: docs/settings.md"
            )
        return answer(await self._alarms.test(str(request[CALLER])))
