"""Strangers at the ports of nodes: `python -m bench.crowd IDLE BUSY SECONDS HOST:PORT ...`, in the client's namespace.

An idle one connects and says nothing. When it is turned away it comes back a second later. A busy one asks for the CA's
certificate, sends a join request that is none, or sends bytes to the relocation port, once a second each. They have no
certificate. They come in turn from the addresses in the environment variable CROWD_FROM. All ends after SECONDS, or
when stdin ends. A line of JSON at the end counts what happened."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

CONNECT_S, ANSWER_S = 5.0, 15.0
PAUSE_S = 1.0
MOST = 5000  # strangers in all
LONGEST_S = 3600.0
CONTROL = 8001  # the API's port; the other one is the relocation port

Address = tuple[str, int]


class Crowd:
    """The strangers, and what they count."""

    def __init__(self, sources: list[str]) -> None:
        """`sources` are addresses of this machine."""
        self.counts: Counter[str] = Counter()
        self.standing, self.most = 0, 0
        self._sources, self._turn = sources, 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE

    async def open(self, at: Address, *, tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._turn += 1
        source = self._sources[self._turn % len(self._sources)]
        async with asyncio.timeout(CONNECT_S):
            return await asyncio.open_connection(*at, ssl=self._tls if tls else None, local_addr=(source, 0))

    async def idle(self, at: Address) -> None:
        """One connection without a word, until it is cut."""
        reader, writer = await self.open(at, tls=False)
        self.counts["idle connections"] += 1
        self.standing += 1
        self.most = max(self.most, self.standing)
        try:
            await reader.read()
        finally:
            self.standing -= 1
            writer.close()

    async def busy(self, at: Address) -> None:
        """One request."""
        control = at[1] == CONTROL
        reader, writer = await self.open(at, tls=control)
        try:
            writer.write(_request() if control else random.randbytes(random.randrange(1, 4096)))
            said = b""
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(ANSWER_S):
                    said = await reader.read(64)
            self.counts[f"answers {said[9:12].decode(errors='replace')}" if control and said else "cut off"] += 1
        finally:
            writer.close()

    async def again(self, work: Callable[[Address], Awaitable[None]], at: Address) -> None:
        """For ever."""
        await asyncio.sleep(random.random() * PAUSE_S)
        while True:
            try:
                await work(at)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:  # ssl.SSLError is one
                self.counts[f"{work.__name__}: {type(error).__name__}"] += 1
            await asyncio.sleep(PAUSE_S * (0.5 + random.random()))


def _request() -> bytes:
    if random.random() < 0.5:
        return b"GET /v1/ca HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    body = random.randbytes(200).hex().encode()
    return b"POST /v1/join HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def _stdin_ends() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def run(idle: int, busy: int, seconds: float, places: list[Address], sources: list[str]) -> dict[str, object]:
    """All strangers for `seconds`; what they counted."""
    crowd = Crowd(sources)
    works = [crowd.idle] * idle + [crowd.busy] * busy
    tasks = [asyncio.create_task(crowd.again(work, places[at % len(places)])) for at, work in enumerate(works)]
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _stdin_ends()
    finally:
        standing = crowd.standing
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {"standing": standing, "most": crowd.most, "counts": dict(crowd.counts)}


def main(words: list[str]) -> int:
    """Run with command line `words`."""
    idle, busy, seconds = min(int(words[0]), MOST), min(int(words[1]), MOST), min(float(words[2]), LONGEST_S)
    places = [(host, int(port)) for host, _, port in (word.rpartition(":") for word in words[3:])]
    print(json.dumps(asyncio.run(run(idle, busy, seconds, places, os.environ["CROWD_FROM"].split(",")))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
