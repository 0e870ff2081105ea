"""Post-copy after COMMIT: the domain runs at its target, and the rest of its memory follows from its source.

The source sends the rest (`send_rest`), the target waits for it (`await_rest`). Both go on until it has arrived,
however often the stream breaks, and both start again from the journal after a restart. The source replaces a broken
stream: a new control connection to the target's relocation port, Mend, and then the hypervisors' bytes over it. Whether
the rest can still come the target finds out by itself: it asks the source, and only "gone" ends the instance. The
target waits for a source that does not answer, because its memory may still exist."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from veery.cluster.keys import NODES
from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.host.contexts import current
from veery.hypervisor.base import Lost, PostCopier, Rest
from veery.migrate import wire
from veery.migrate.base import MoveContext
from veery.migrate.journal import Line, Side
from veery.model.domain import DomainState
from veery.model.move import MoveProgress, Phase
from veery.model.node import Node
from veery.model.plan import Blocker, Obstacle

log = logging.getLogger(__name__)

STALL_S = 5.0
"""A stream is replaced after this time without a byte; the domain may be paused all that time."""
CONNECT_DEADLINE_S, ANSWER_DEADLINE_S = 5.0, 30.0
RETRY_INTERVAL_S = 1.0
LOOK_INTERVAL_S = 0.1
ASK_INTERVAL_S = 2.0
GRACE_S = 2.0
"""How long "gone" must hold until it is believed: the source's copy also goes once the source hears that everything
arrived."""

Publish = Callable[[MoveProgress], None]


class Standing(StrEnum):
    """The state of one side's copy of a domain after COMMIT."""

    HERE = "here"  # all of it is here
    PARTLY = "partly"  # source: it holds the rest; target: it waits for the rest
    GONE = "gone"  # there is no such copy
    LOST = "lost"  # target: state that it needs to run was lost on the way


async def obstacles(context: MoveContext) -> tuple[Blocker, ...]:
    """Return why no domain can move in here by post-copy."""
    hint = "another policy: veery migrate --policy must-finish"
    if not isinstance(context.driver, PostCopier):
        reason = f"its driver {context.driver.name} has no post-copy"
        return (Blocker(kind=Obstacle.DRIVER, reason=reason, hint=hint),)
    if reason := (await context.driver.abilities()).post_copy:
        return (Blocker(kind=Obstacle.VERSION, reason=f"no post-copy: {reason}", hint=hint),)
    return ()


# ---- the source


async def send_rest(context: MoveContext, line: Line, publish: Publish, target: Node | None = None) -> None:
    """Send the rest; returns when the target has it, or does not need it any more. Raises Lost when it cannot be sent.
    `target`: its record, if the caller has it."""
    driver = _driver(context)
    last_note = ""

    def say(text: str) -> None:
        nonlocal last_note
        if text != last_note:
            log.warning("move=%s domain=%s %s", line.move, line.domain, text)
            publish(MoveProgress(phase=Phase.CONFIRM, step="post-copy", note=text))
        last_note = text

    def report(progress: MoveProgress) -> None:
        publish(replace(progress, phase=Phase.CONFIRM, step="post-copy", dirty_rate=0.0))

    rest: Rest | None = None
    while True:
        async with contextlib.AsyncExitStack() as way:
            try:
                if rest is None:
                    await driver.release(line.uuid)
                elif await _open_again(context, line, rest, way, target):
                    return
                elif rest is Rest.BROKEN:
                    say("a new stream carries the rest of the memory")
                rest = await driver.drain(line.uuid, report, stall=STALL_S)
                if rest is Rest.SENT:
                    return
                if rest is Rest.BROKEN:
                    say(f"the stream broke: {line.domain} runs on {line.target} without the rest; opening a new stream")
            except Lost:
                raise
            except Refused as error:
                if not await _holds(context, line):
                    raise Lost(f"{line.domain}: its QEMU ended before all of its memory was sent") from error
                say(f"the stream is not replaced yet: {error.message}")
                await context.clock.sleep(RETRY_INTERVAL_S)
            except (VeeryError, OSError) as error:
                say(f"the stream is not replaced yet: {error}")
                await context.clock.sleep(RETRY_INTERVAL_S)


async def _open_again(
    context: MoveContext, line: Line, rest: Rest, way: contextlib.AsyncExitStack, target: Node | None
) -> bool:
    """Ask the target. Returns True when it needs nothing more. Else, where the stream had broken, a new one is open; it
    is carried until `way` is closed. Raises Lost, Failed, Refused."""
    channel = await _call(context, line.target, target)
    way.push_async_callback(channel.close)
    if rest is Rest.UNSURE:
        return await _ask(channel, line) is not Standing.PARTLY
    await channel.send(wire.Mend(line.move, line.uuid))
    answer = await channel.expect((wire.Mending, wire.Told), ANSWER_DEADLINE_S)
    if isinstance(answer, wire.Told):
        if answer.standing == Standing.LOST.value:
            raise Lost(f"{line.domain}: the state of its devices was lost on the way to {line.target}")
        return True
    near, far = socket.socketpair()
    way.callback(near.close)
    way.callback(far.close)
    far.setblocking(False)
    carrying = asyncio.create_task(channel.carry(far), name=f"{line.move} is carried")
    way.push_async_callback(tasks.stop, carrying)
    carrying.add_done_callback(lambda _: _shut_down(far))
    await _driver(context).reconnect(line.uuid, near)
    return False


# ---- the target


async def await_rest(context: MoveContext, line: Line, started: float) -> None:
    """Let the domain run, which this node owns, and wait until all of its memory is here. When the source has nothing
    more to send, end the instance, so that its on_crash applies. `started`: as in Owner."""
    driver = _driver(context)
    asked, gone_since, last_note = context.clock.now(), 0.0, ""
    while True:
        try:
            await context.driver.finish(line.uuid, paused=line.paused, started=started)
            if await driver.whole(line.uuid):
                log.info("move=%s domain=%s all of its memory is here", line.move, line.domain)
                return
        except Refused:
            return  # the domain has ended, or was destroyed
        except VeeryError as error:
            if error.message != last_note:
                log.warning("move=%s domain=%s %s", line.move, line.domain, error.message)
            last_note = error.message
        now = context.clock.now()
        if gone_since and now - gone_since > GRACE_S:
            log.error("move=%s domain=%s ended: %s no longer has its memory", line.move, line.domain, line.source)
            await driver.lose(line.uuid)
            return
        if not gone_since and now - asked > ASK_INTERVAL_S:
            with contextlib.suppress(VeeryError):
                gone_since = now if await _source_is_gone(context, line) else 0.0
            asked = context.clock.now()
        await context.clock.sleep(LOOK_INTERVAL_S)


async def _source_is_gone(context: MoveContext, line: Line) -> bool:
    channel = await _call(context, line.source, None)
    try:
        return await _ask(channel, line) is Standing.GONE
    finally:
        await channel.close()


async def take(context: MoveContext, channel: wire.Channel, message: wire.Mend | wire.Ask) -> None:
    """Answer the other side of a move."""
    line = next((each for each in context.journal.open() if each.move == message.move), None)
    if line is not None and channel.peer not in {line.source, line.target}:
        raise Refused(f"{channel.peer} asks about a move between other nodes")
    if line is None and isinstance(message, wire.Mend):
        message = wire.Ask(message.move, message.uuid)  # that move has ended, or never existed
    standing = await _standing(context, line, message.uuid)
    if isinstance(message, wire.Ask) or standing is not Standing.PARTLY:
        await channel.send(wire.Told(standing.value))
        return
    try:
        stream = await _driver(context).rejoin(message.uuid)
    except Lost:
        await channel.send(wire.Told(Standing.LOST.value))
        return
    except VeeryError as error:
        await channel.send(wire.Problem.of(error))
        return
    with contextlib.closing(stream):
        log.info("move=%s domain=%s takes the rest from a new stream", message.move, line and line.domain)
        await channel.send(wire.Mending())
        await channel.carry(stream)
        _shut_down(stream)


async def _standing(context: MoveContext, line: Line | None, uuid: str) -> Standing:
    reading = next((each for each in await context.driver.list() if each.uuid == uuid), None)
    if reading is None:
        return Standing.GONE
    if line is None:
        return Standing.HERE if reading.state is not DomainState.INCOMING else Standing.PARTLY
    if line.side is Side.SOURCE:
        return Standing.PARTLY
    with contextlib.suppress(Failed):
        return Standing.HERE if await _driver(context).whole(uuid) else Standing.PARTLY
    return Standing.PARTLY


# ---- both


def _driver(context: MoveContext) -> PostCopier:
    assert isinstance(context.driver, PostCopier)
    return context.driver


async def _holds(context: MoveContext, line: Line) -> bool:
    return any(reading.uuid == line.uuid for reading in await context.driver.list())


async def _call(context: MoveContext, name: str, node: Node | None) -> wire.Channel:
    """Open a control connection to node `name`; its record is `node`, else the one in the store. Raises Refused,
    Failed."""
    found = node or await NODES.get(context.store, name)
    if found is None:
        raise Failed(f"{name} is no longer a node of the cluster")
    return await wire.open_control(
        found.relocation_address or found.address,
        found.relocation_port,
        name,
        current(context.client_tls),
        CONNECT_DEADLINE_S,
    )


async def _ask(channel: wire.Channel, line: Line) -> Standing:
    await channel.send(wire.Ask(line.move, line.uuid))
    return Standing((await channel.expect(wire.Told, ANSWER_DEADLINE_S)).standing)


def _shut_down(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
