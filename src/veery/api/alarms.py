"""Routes of the alarms that call somebody."""

from __future__ import annotations

from aiohttp import web

from veery.api.server import CALLER, answer
from veery.errors import Refused
from veery.node.alarms import Alarms


class AlarmRoutes:
    """How this node calls somebody, and a test of it."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        return [web.get("/v1/alarms", self.list), web.post("/v1/alarms/test", self.test)]

    async def list(self, _: web.Request) -> web.Response:
        """Each way, and what came of its last message."""
        return answer(self._alarms.ways())

    async def test(self, request: web.Request) -> web.Response:
        """Send a test message each way; what came of it."""
        if not self._alarms.ways():
            raise Refused("this node calls nobody", hint="name a way under [alarms] in veery.toml: docs/settings.md")
        return answer(await self._alarms.test(str(request[CALLER])))
