"""Routes of a volume's move: the order, and what the nodes that have a part in it ask of each other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from veery.api.server import Lines, answer, body, convert, error_body, forward
from veery.errors import Failed, Refused, VeeryError
from veery.model.volume import Volume, VolumeMove
from veery.node.peers import Peers
from veery.node.volumemoves import Report, VolumeMoves
from veery.node.volumes import VolumeService
from veery.storage.extents import extents

log = logging.getLogger(__name__)

EVERY = 0.25  # seconds between two lines of progress
BEAT = 5.0  # seconds after which a line is said again though nothing happened
PIECE = 1 << 20


class MoveRoutes:
    """`move` and `move/cancel` are for users, and go to the volume's node; the others are between nodes."""

    def __init__(self, volumes: VolumeService, moves: VolumeMoves, peers: Peers) -> None:
        self._volumes, self._moves, self._peers = volumes, moves, peers

    def table(self) -> list[web.RouteDef]:
        """The routes."""
        one = "/v1/volumes/{name}"
        return [
            web.post(f"{one}/move", self.move),
            web.post(f"{one}/move/cancel", self.cancel),
            web.post(f"{one}/place", self.place),
            web.post(f"{one}/take-in", self.take_in),
            web.post(f"{one}/fetch", self.fetch),
            web.post(f"{one}/mirror", self.mirror),
            web.post(f"{one}/let-go", self.let_go),
            web.post(f"{one}/settle", self.settle),
            web.get(f"{one}/extents", self.extents),
            web.get(f"{one}/content", self.content),
        ]

    async def move(self, request: web.Request) -> web.StreamResponse:
        """Move it to another storage node; progress in lines. It goes on when the caller has left."""
        volume = await self._volumes.find(request.match_info["name"])
        if volume.node != self._volumes.node:
            return await forward(request, self._peers, volume.node)
        data = await body(request, storage=str)
        rate = data.get("rate") or 0
        if not isinstance(rate, int) or rate < 0:
            raise Refused("'rate' is a number of bytes a second", hint="see docs/api.md")

        def work(report: Report) -> Awaitable[Any]:
            remove = bool(data.get("remove_source"))
            return self._moves.start(volume.name, data["storage"], rate=rate, remove_source=remove, report=report)

        return await _told(request, work)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Stop its move."""
        volume = await self._volumes.find(request.match_info["name"])
        if volume.node != self._volumes.node:
            return await forward(request, self._peers, volume.node)
        await self._moves.cancel(volume.name)
        return answer({})

    async def place(self, request: web.Request) -> web.Response:
        """Where it would be here."""
        return answer(await self._moves.place(convert(await body(request), Volume, keep=True)))

    async def take_in(self, request: web.Request) -> web.Response:
        """Make its bytes here."""
        work = self._moves.take_in(convert(await body(request), VolumeMove, keep=True))
        await asyncio.shield(asyncio.ensure_future(work))
        return answer({})

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """Copy it from its node; nobody uses it."""
        move = convert(await body(request), VolumeMove, keep=True)
        return await _told(request, lambda report: self._moves.fetch(move, report))

    async def mirror(self, request: web.Request) -> web.StreamResponse:
        """Copy it under the domain that runs here, and turn that to it."""
        move = convert(await body(request), VolumeMove, keep=True)
        return await _told(request, lambda report: self._moves.mirror(move, report))

    async def let_go(self, request: web.Request) -> web.Response:
        """Whether the domain here has nothing more to do with a move that is over."""
        return answer({"released": await self._moves.let_go((await body(request, move=str))["move"])})

    async def settle(self, _: web.Request) -> web.Response:
        """Look now at what is open."""
        await self._moves.settle()
        return answer({})

    async def extents(self, request: web.Request) -> web.Response:
        """Where its data is: offsets and lengths."""
        volume = await self._here(request)
        return answer(await asyncio.to_thread(extents, Path(volume.path), volume.size))

    async def content(self, request: web.Request) -> web.StreamResponse:
        """Its bytes, `length` of them from `offset` on."""
        volume = await self._here(request)
        try:
            offset = int(request.query.get("offset", "0"))
            length = int(request.query.get("length", str(volume.size - offset)))
        except ValueError as error:
            raise Refused("offset and length are numbers of bytes", hint="see docs/api.md") from error
        if offset < 0 or length < 0 or offset + length > volume.size:
            raise Refused(f"volume {volume.name} has {volume.size} bytes", hint="ask for less")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = length
        await response.prepare(request)
        with await asyncio.to_thread(Path(volume.path).open, "rb", buffering=0) as file:
            await asyncio.to_thread(file.seek, offset)
            while length:
                data = await asyncio.to_thread(file.read, min(PIECE, length))
                if not data:
                    raise Failed(f"volume {volume.name} ends too soon")
                await response.write(data)
                length -= len(data)
        await response.write_eof()
        return response

    async def _here(self, request: web.Request) -> Volume:
        return await self._volumes.mine().sound(request.match_info["name"])


async def _told(request: web.Request, work: Callable[[Report], Awaitable[Any]]) -> web.StreamResponse:
    """Do `work`, its progress and its end told in lines; it goes on when the caller has left."""
    news, latest = asyncio.Event(), [("beginning", 0, 0)]

    def report(step: str, done: int, total: int) -> None:
        latest[0] = step, done, total
        news.set()

    task = asyncio.ensure_future(work(report))
    task.add_done_callback(lambda _: news.set())
    async with Lines(request) as lines:
        while not task.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await news.wait()
            news.clear()
            if not task.done():
                step, done, total = latest[0]
                await lines.say("progress", step=step, done=done, total=total)
                await asyncio.wait({task}, timeout=EVERY)
        try:
            await lines.say("done", result=task.result())
        except VeeryError as error:
            await lines.say("error", **error_body(error))
        except asyncio.CancelledError:
            await lines.say(
                "error", **error_body(Failed("veeryd is ending", hint="veery volume list tells where it is"))
            )
        except Exception as error:
            log.exception("%s", request.path)
            failed = Failed(f"{type(error).__name__}: {error}", hint="see veeryd's log")
            await lines.say("error", **error_body(failed))
    return lines.response
