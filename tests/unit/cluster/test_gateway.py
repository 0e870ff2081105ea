"""What is known when a call to etcd ends badly: members that answer as etcd 3.4 was seen to answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from veery.cluster.etcd import EtcdStore
from veery.cluster.store import Put, StoreUnavailable
from veery.errors import Failed, OutcomeUnknown

GOOD = (200, '{"header":{"revision":"7"},"succeeded":true}')
NO_LEADER = (503, '{"error":"etcdserver: no leader","message":"etcdserver: no leader","code":14}')
LEARNER = (503, '{"error":"etcdserver: rpc not supported for learner","code":14}')
DROPPED = (500, '{"message":"raft proposal dropped","code":2}')
TIMED_OUT = (503, '{"message":"etcdserver: request timed out","code":14}')
CLOSING = (503, '{"message":"transport is closing","code":14}')
FULL = (429, '{"message":"etcdserver: mvcc: database space exceeded","code":8}')
NO_LEASE = (404, '{"message":"etcdserver: requested lease not found","code":5}')
WATCHED = b'{"result":{"header":{"revision":"9"},"events":[{"kv":{"key":"L2EvYg==","mod_revision":"9"}}]}}\n'
NO_JSON = (502, "<html>bad gateway</html>")


@dataclass
class Fake:
    """One member that gives `answer` to all who ask; None: it never answers."""

    answer: tuple[int, str] | None
    asked: int = 0
    url: str = ""
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.answer is not None and request.path == "/v3/watch":
            stream = web.StreamResponse()
            await stream.prepare(request)
            await stream.write(WATCHED)
            await self.let_go.wait()
            return stream
        if self.answer is None:
            await self.let_go.wait()
            return web.Response(status=500)
        status, text = self.answer
        return web.Response(status=status, text=text)


@contextlib.asynccontextmanager
async def members(*answers: tuple[int, str] | None) -> AsyncIterator[list[Fake]]:
    made = [Fake(answer) for answer in answers]
    runners = []
    try:
        for fake in made:
            app = web.Application()
            app.router.add_post("/{path:.*}", fake.handle)
            runner = web.AppRunner(app, shutdown_timeout=0)
            runners.append(runner)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            fake.url = "http://{}:{}".format(*runner.addresses[0][:2])
        yield made
    finally:
        for fake in made:
            fake.let_go.set()
        for runner in runners:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def over(made: list[Fake], *more: str, deadline: float = 5.0, quiet: float = 10.0) -> AsyncIterator[EtcdStore]:
    store = EtcdStore([*more, *(fake.url for fake in made)], deadline=deadline, quiet=quiet)
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("first", [NO_LEADER, LEARNER, DROPPED])
async def test_who_surely_did_nothing_is_passed_over(first: tuple[int, str]) -> None:
    async with members(first, GOOD) as made, over(made) as store:
        assert (await store.commit([], [Put("a", b"")])).revision == 7
        assert (await store.commit([], [Put("a", b"")])).held
        assert [fake.asked for fake in made] == [1, 2]


@pytest.mark.parametrize("first", [TIMED_OUT, CLOSING, NO_JSON])
async def test_who_may_have_done_it_is_not_passed_over(first: tuple[int, str]) -> None:
    async with members(first, GOOD) as made, over(made) as store:
        with pytest.raises(OutcomeUnknown) as unknown:
            await store.commit([], [Put("a", b"")])
        assert unknown.value.hint
        assert [fake.asked for fake in made] == [1, 0]
        assert await store.get("a") is None
        assert [fake.asked for fake in made] == [1, 1]


async def test_a_read_asks_on() -> None:
    async with members(TIMED_OUT, NO_JSON, GOOD) as made, over(made) as store:
        assert await store.get("a") is None
        assert [fake.asked for fake in made] == [1, 1, 1]


@pytest.mark.parametrize(("answer", "message"), [(FULL, "the store is full"), (NO_LEASE, "lease not found")])
async def test_what_etcd_declines_is_final(answer: tuple[int, str], message: str) -> None:
    async with members(answer, GOOD) as made, over(made) as store:
        with pytest.raises(Failed, match=message) as failed:
            await store.commit([], [Put("a", b"", 3)])
        assert not isinstance(failed.value, StoreUnavailable)
        assert [fake.asked for fake in made] == [1, 0]


async def test_nobody_there_is_surely_not_done_and_asked_until_the_deadline(unused_tcp_port: int) -> None:
    async with over([], f"http://127.0.0.1:{unused_tcp_port}", deadline=0.5) as store:
        with pytest.raises(StoreUnavailable, match=r"does not answer \(http://.*: Connection refused\)$") as absent:
            await store.commit([], [Put("a", b"")])
        assert "veery node list" in absent.value.hint


async def test_one_that_is_silent_leaves_time_for_the_others() -> None:
    async with members(None, None, GOOD) as made, over(made, deadline=3.0) as store:
        began = time.monotonic()
        assert await store.get("a") is None
        assert time.monotonic() - began >= 1.5
        assert [fake.asked for fake in made] == [1, 1, 1]


async def test_a_silent_member_makes_a_commit_unknown_at_the_deadline() -> None:
    async with members(None, GOOD) as made, over(made, deadline=1.0) as store:
        with pytest.raises(OutcomeUnknown, match="answer was lost"):
            await store.commit([], [Put("a", b"")])
        assert [fake.asked for fake in made] == [1, 0]
        assert (await store.commit([], [Put("a", b"")])).held


async def test_closing_ends_a_call_under_way() -> None:
    async with members(None) as made, over(made, deadline=60.0) as store:
        asking = asyncio.create_task(store.commit([], [Put("a", b"")]))
        async with asyncio.timeout(20):
            while not made[0].asked:
                await asyncio.sleep(0.01)
            await store.close()
            with pytest.raises(OutcomeUnknown):
                await asking


async def test_a_watch_leaves_a_member_that_calls_found_dead() -> None:
    """A member whose machine lost its power ends no stream: until the watch missed its notes it heard nothing."""
    async with members(None, GOOD) as made, over(made, deadline=1.0, quiet=300.0) as store:
        changes = store.watch("a/", 0)
        first = asyncio.create_task(anext(changes))
        async with asyncio.timeout(60):
            while not made[0].asked:
                await asyncio.sleep(0.01)
            assert await store.revision() == 7
            assert (await first).revision == 9
        assert [fake.asked for fake in made] == [2, 2]
        await changes.aclose()


async def test_the_member_in_use_stays_in_use_when_others_come_and_go() -> None:
    async with members(NO_LEADER, GOOD, GOOD) as made, over(made[:2]) as store:
        await store.get("a")
        store.gateway.use([fake.url for fake in reversed(made)])
        await store.get("a")
        assert [fake.asked for fake in made] == [1, 2, 0]
        store.gateway.use([made[2].url])
        await store.get("a")
        store.gateway.use([])
        await store.get("a")
        assert [fake.asked for fake in made] == [1, 2, 2]
