"""Routes for volumes, targets, images and networks."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web

from veery.api.bodies import BuildImage, CreateVolume, Resize
from veery.api.errors import Malformed, error_body
from veery.api.route import bind
from veery.api.server import Lines, answer, body, checked, forward, order
from veery.api.table.volumes import NETWORKS, VOLUMES
from veery.api.volumemoves import MoveRoutes
from veery.errors import Failed, VeeryError
from veery.model.node import Role
from veery.model.volume import Backing
from veery.network.bridge import bridges
from veery.node.devices import Devices
from veery.node.images import Images
from veery.node.machine import Machine
from veery.node.peers import Peers
from veery.node.volume_moves.moves import VolumeMoves
from veery.node.volumes import VolumeService

log = logging.getLogger(__name__)


class StorageRoutes:
    """Routes for users' orders on storage. Orders for a volume of another node are forwarded to that node."""

    def __init__(
        self,
        volumes: VolumeService,
        images: Images,
        devices: Devices,
        machine: Machine,
        moves: VolumeMoves,
        *,
        peers: Peers,
    ) -> None:
        self._volumes, self._images, self._devices, self._moves = volumes, images, devices, moves
        self._machine, self._peers = machine, peers

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        moves = MoveRoutes(self._volumes, self._moves, self._peers)
        return [*bind(VOLUMES, self), *moves.table(), *bind(NETWORKS, self)]

    async def list(self, _: web.Request) -> web.Response:
        """Return all volumes of the cluster."""
        return answer(await self._volumes.list())

    async def show(self, request: web.Request) -> web.Response:
        """Return one volume and the domains that use it."""
        volume = await self._volumes.find(request.match_info["name"])
        return answer({"volume": volume, "used_by": await self._volumes.records.users(volume.name)})

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Create a volume on a storage node."""
        data = await body(request)
        wish = checked(data, CreateVolume)
        node = await self._volumes.storage_node(wish.node)
        if node != self._volumes.node:
            await self._peers.awake(node)
            return answer(await self._peers.call(node, "POST", "/v1/volumes", {**data, "node": node}, deadline=120))
        backing = wish.backing or Backing.FILE
        if backing not in tuple(Backing):
            raise Malformed("the field 'backing' is wrong", field="backing", hint=f"one of {', '.join(Backing)}")
        work = self._volumes.mine().create(wish.name, wish.size, Backing(backing))
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Delete a volume and its data."""
        if away := await self._away(request):
            return await forward(request, self._peers, away)
        work = self._volumes.mine().delete(request.match_info["name"])
        await asyncio.shield(asyncio.ensure_future(work))
        return answer({})

    async def resize(self, request: web.Request) -> web.StreamResponse:
        """Grow a volume."""
        if away := await self._away(request):
            return await forward(request, self._peers, away)
        size = (await order(request, Resize)).size
        work = self._volumes.resize(request.match_info["name"], size)
        return answer(await asyncio.shield(asyncio.ensure_future(work)))

    async def resized(self, request: web.Request) -> web.Response:
        """Pass the new size of a volume, sent by its storage node, to the domains here that use the volume."""
        size = (await order(request, Resize)).size
        domains = await self._devices.resized(request.match_info["name"], size)
        return answer({"told": domains})

    async def content(self, request: web.Request) -> web.StreamResponse:
        """Fill a volume with the bytes of the request."""
        if away := await self._away(request):
            return await forward(request, self._peers, away)
        chunks = request.content.iter_chunked(1 << 20)
        return answer(
            await self._volumes.mine().write(request.match_info["name"], chunks, length=request.content_length)
        )

    async def image(self, request: web.Request) -> web.StreamResponse:
        """Build an image into a volume. The work continues when the caller has disconnected."""
        if away := await self._away(request):
            return await forward(request, self._peers, away)
        kind = (await order(request, BuildImage)).image
        name = request.match_info["name"]
        self._volumes.mine()
        async with Lines(request) as lines:
            steps: asyncio.Queue[tuple[str, float] | None] = asyncio.Queue()
            work = asyncio.create_task(
                self._images.build(kind, name, lambda step, part: steps.put_nowait((step, part)))
            )
            work.add_done_callback(lambda _: steps.put_nowait(None))
            while (news := await steps.get()) is not None:
                await lines.say("progress", step=news[0], fraction=news[1])
            try:
                await lines.say("done", result=await work)
            except VeeryError as error:
                await lines.say("error", **error_body(error))
            except Exception as error:
                log.exception("image %s into %s", kind, name)
                await lines.say(
                    "error", **error_body(Failed(f"{type(error).__name__}: {error}", hint="see veeryd's log"))
                )
        return lines.response

    async def targets(self, request: web.Request) -> web.Response:
        """Return the targets of tgtd on each storage node; with ?here=1 those of this node only."""
        found: dict[str, Any] = {}
        if request.query.get("here"):
            return answer({self._volumes.node: await self._volumes.mine().targets()})
        for row in await self._machine.nodes():
            node = row["node"]
            if not node.has(Role.STORAGE):
                continue
            if node.name == self._volumes.node:
                found[node.name] = await self._volumes.mine().targets()
            else:
                told = await self._peers.call(node.name, "GET", "/v1/targets?here=1", deadline=15)
                found[node.name] = told.get(node.name, [])
        return answer(found)

    async def networks(self, _: web.Request) -> web.Response:
        """Return the bridges of this node."""
        return answer({"node": self._volumes.node, "bridges": await bridges()})

    async def _away(self, request: web.Request) -> str:
        """Return the storage node of the request's volume if it is another node; else ""."""
        volume = await self._volumes.find(request.match_info["name"])
        return volume.node if volume.node != self._volumes.node else ""
