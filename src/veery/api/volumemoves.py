"""Routes for the move of a volume: the order of a user, and the requests between the nodes that take part."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from veery.api.bodies import LetGo, MoveVolume
from veery.api.errors import Malformed, error_body
from veery.api.route import bind
from veery.api.server import Lines, answer, body, convert, forward, order
from veery.api.table.volumes import VOLUME_MOVES
from veery.errors import Failed, Refused, VeeryError
from veery.model.volume import Volume, VolumeMove
from veery.node.peers import Peers
from veery.node.volume_moves.common import Report
from veery.node.volume_moves.moves import VolumeMoves
from veery.node.volumes import VolumeService
from veery.storage.extents import extents

log = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.25  # between two lines of progress
REPEAT_INTERVAL_S = 5.0  # repeat the last line after so long without progress
PIECE_BYTES = 1 << 20


class MoveRoutes:
    """Routes of volume moves. `move` and `move/cancel` are for users, on the volume's node. Nodes call the others."""

    def __init__(self, volumes: VolumeService, moves: VolumeMoves, peers: Peers) -> None:
        self._volumes, self._moves, self._peers = volumes, moves, peers

    def table(self) -> list[web.RouteDef]:
        """Return the routes."""
        return bind(VOLUME_MOVES, self)

    async def move(self, request: web.Request) -> web.StreamResponse:
        """Move a volume to another storage node, and stream the progress. A disconnected caller does not stop it."""
        volume = await self._volumes.find(request.match_info["name"])
        if volume.node != self._volumes.node:
            return await forward(request, self._peers, volume.node)
        wish = await order(request, MoveVolume)
        if wish.rate < 0:
            raise Malformed("the field 'rate' is wrong: it is negative", field="rate")

        def work(report: Report) -> Awaitable[Any]:
            return self._moves.source.start(
                volume.name, wish.storage, rate=wish.rate, remove_source=wish.remove_source, report=report
            )

        return await _streamed(request, work)

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Cancel the move of a volume."""
        volume = await self._volumes.find(request.match_info["name"])
        if volume.node != self._volumes.node:
            return await forward(request, self._peers, volume.node)
        await self._moves.source.cancel(volume.name)
        return answer({})

    async def place(self, request: web.Request) -> web.Response:
        """Return the record that the volume would have on this node."""
        return answer(await self._moves.target.place(convert(await body(request), Volume, keep=True)))

    async def take_in(self, request: web.Request) -> web.Response:
        """Create the backing and the target of the volume on this node."""
        work = self._moves.target.take_in(convert(await body(request), VolumeMove, keep=True))
        await asyncio.shield(asyncio.ensure_future(work))
        return answer({})

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """Copy a volume that no domain uses from its node."""
        move = convert(await body(request), VolumeMove, keep=True)
        return await _streamed(request, lambda report: self._moves.target.fetch(move, report))

    async def mirror(self, request: web.Request) -> web.StreamResponse:
        """Copy a volume under the domain that runs here, and switch the domain to the copy."""
        move = convert(await body(request), VolumeMove, keep=True)
        return await _streamed(request, lambda report: self._moves.domain.mirror(move, report))

    async def let_go(self, request: web.Request) -> web.Response:
        """Return whether the domain here no longer takes part in a finished move."""
        return answer({"released": await self._moves.domain.let_go((await order(request, LetGo)).move)})

    async def settle(self, _: web.Request) -> web.Response:
        """Settle the open moves of this node now."""
        await self._moves.settle()
        return answer({})

    async def extents(self, request: web.Request) -> web.Response:
        """Return the extents with data: offsets and lengths."""
        volume = await self._here(request)
        return answer(await asyncio.to_thread(extents, Path(volume.path), volume.size))

    async def content(self, request: web.Request) -> web.StreamResponse:
        """Return `length` bytes of the volume, from `offset` on."""
        volume = await self._here(request)
        try:
            offset = int(request.query.get("offset", "0"))
            length = int(request.query.get("length", str(volume.size - offset)))
        except ValueError as error:
            raise Malformed("'offset' and 'length' must be numbers of bytes", field="offset") from error
        if offset < 0 or length < 0 or offset + length > volume.size:
            raise Refused(f"volume {volume.name} has {volume.size} bytes", hint="ask for fewer bytes")
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = length
        await response.prepare(request)
        with await asyncio.to_thread(Path(volume.path).open, "rb", buffering=0) as file:
            await asyncio.to_thread(file.seek, offset)
            while length:
                data = await asyncio.to_thread(file.read, min(PIECE_BYTES, length))
                if not data:
                    raise Failed(f"volume {volume.name} ends too soon")
                await response.write(data)
                length -= len(data)
        await response.write_eof()
        return response

    async def _here(self, request: web.Request) -> Volume:
        return await self._volumes.mine().sound(request.match_info["name"])


async def _streamed(request: web.Request, work: Callable[[Report], Awaitable[Any]]) -> web.StreamResponse:
    """Run `work`, and stream its progress and its end. It continues when the caller has disconnected."""
    news, latest = asyncio.Event(), [("beginning", 0, 0)]

    def report(step: str, done: int, total: int) -> None:
        latest[0] = step, done, total
        news.set()

    task = asyncio.ensure_future(work(report))
    task.add_done_callback(lambda _: news.set())
    async with Lines(request) as lines:
        while not task.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPEAT_INTERVAL_S):
                    await news.wait()
            news.clear()
            if not task.done():
                step, done, total = latest[0]
                await lines.say("progress", step=step, done=done, total=total)
                await asyncio.wait({task}, timeout=PROGRESS_INTERVAL_S)
        try:
            await lines.say("done", result=task.result())
        except VeeryError as error:
            await lines.say("error", **error_body(error))
        except asyncio.CancelledError:
            await lines.say(
                "error", **error_body(Failed("veeryd is stopping", hint="veery volume list shows where it is"))
            )
        except Exception as error:
            log.exception("%s", request.path)
            failed = Failed(f"{type(error).__name__}: {error}", hint="see veeryd's log")
            await lines.say("error", **error_body(failed))
    return lines.response
