"""Requests to a nested node's agent from this process, in any network namespace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from veery.errors import Failed, OutcomeUnknown
from veery.host.process import Process
from veery.lab.members import Member
from veery.lab.setns import within
from veery.lab.xen.agent import PORT, THERE, frame, read_frame

_REPLY_TIMEOUT_S = 30.0


async def answers(namespace: Path, *, deadline: float) -> None:
    """Return once the agent answers. Raises Failed."""
    ends = time.monotonic() + deadline
    while True:
        try:
            await _ask(namespace, b"P", deadline=20.0)
            return
        except (Failed, OutcomeUnknown) as error:
            if time.monotonic() > ends:
                raise Failed(f"the agent in {namespace.name} does not answer") from error
        await asyncio.sleep(0.05)


async def born(namespace: Path) -> None:
    """Set the node's clock, and give it its own randomness."""
    order = {"epoch": time.time(), "entropy": os.urandom(64).hex()}
    await _ask(namespace, b"B", order)


async def members(namespace: Path) -> tuple[Member, ...]:
    """Return the processes inside the node. Their pids are the node's: never signal them on this machine."""
    rows = json.loads(await _ask(namespace, b"P"))
    return tuple(Member(Process(pid, ticks), tuple(words)) for pid, ticks, words in rows)


async def send(namespace: Path, process: Process, number: signal.Signals) -> None:
    """Send a signal to a process inside the node; after SIGKILL, return when it has ended."""
    await _ask(namespace, b"K", {"pid": process.pid, "ticks": process.ticks, "signal": int(number)})


async def connect(namespace: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection to the agent, without the first frame. Raises OSError; has no deadline."""
    link = await asyncio.to_thread(_socket, namespace)
    try:
        await asyncio.get_running_loop().sock_connect(link, (THERE, PORT))
        return await asyncio.open_connection(sock=link)
    except BaseException:
        link.close()
        raise


async def _ask(
    namespace: Path, kind: bytes, order: dict[str, Any] | None = None, *, deadline: float = _REPLY_TIMEOUT_S
) -> bytes:
    """Send one request; return its answer. Raises Failed if the agent is unreachable, OutcomeUnknown without answer."""
    try:
        async with asyncio.timeout(deadline):
            reader, writer = await connect(namespace)
            try:
                writer.write(frame(kind, json.dumps(order).encode() if order else b""))
                await writer.drain()
                return (await read_frame(reader))[1]
            finally:
                writer.close()
    except TimeoutError as error:
        raise OutcomeUnknown(f"the agent in {namespace.name} did not answer within {deadline:g} s") from error
    except (OSError, EOFError) as error:
        raise Failed(f"cannot connect to the agent in {namespace.name}: {error}") from error


def _socket(namespace: Path) -> socket.socket:
    """Return a TCP socket of that namespace."""

    def made() -> socket.socket:
        link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        link.setblocking(False)
        return link

    return within(namespace, made)
