"""The store in etcd: `Store` on etcd's v3 API (etcd api/etcdserverpb/rpc.proto), with its keys under /veery/."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec

from veery.cluster.gateway import Declined, Gateway, Unanswered
from veery.cluster.keys import INCARNATION
from veery.cluster.store import (
    Change,
    Committed,
    Compacted,
    Delete,
    Entry,
    Put,
    Snapshot,
    StoreRestored,
    StoreUnavailable,
    Unchanged,
)
from veery.cluster.trust import Sent, Standing, Trust, doubt, sight
from veery.cluster.voters import Voters
from veery.errors import OutcomeUnknown
from veery.host.contexts import Source

PREFIX = b"/veery/"
PAGE_KEYS = 1000  # keys in one answer of a scan
NOT_FOUND = 5  # gRPC status code


class _Header(msgspec.Struct):
    revision: int = 0
    cluster_id: int = 0


class _KeyValue(msgspec.Struct):
    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    create_revision: int = 0
    lease: int = 0


class _Range(msgspec.Struct):
    header: _Header
    kvs: list[_KeyValue] = []
    more: bool = False


class _Found(msgspec.Struct):
    kvs: list[_KeyValue] = []


class _Response(msgspec.Struct):
    response_range: _Found | None = None


class _Txn(msgspec.Struct):
    header: _Header
    succeeded: bool = False
    responses: list[_Response] = []


class _Lease(msgspec.Struct):
    ID: int = 0
    TTL: int = 0


class _Kept(msgspec.Struct):
    result: _Lease = msgspec.field(default_factory=_Lease)


class _Event(msgspec.Struct):
    kv: _KeyValue
    type: str = "PUT"


class _Watched(msgspec.Struct):
    header: _Header = msgspec.field(default_factory=_Header)
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    events: list[_Event] = []


class _Message(msgspec.Struct):
    result: _Watched


class _Nothing(msgspec.Struct):
    pass


class EtcdStore:
    """A `Store` on an etcd cluster; `voters` are the cluster's members themselves."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Source | None = None,
        deadline: float = 4.0,
        quiet: float = 10.0,
        prefix: bytes = PREFIX,
        trust: Trust | None = None,
    ) -> None:
        """`endpoints`: "https://172.16.31.1:2379", the preferred one first. `deadline`: seconds a call may take.
        `quiet`: seconds without a message, even a progress note of etcd, after which a watch asks again.
        `trust`: judges each answer; without it every answer is accepted."""
        self.gateway = Gateway(endpoints, tls=tls, deadline=deadline)
        self.voters = Voters(self.gateway)
        self._quiet, self._prefix, self._trust = quiet, prefix, trust

    @property
    def raw(self) -> EtcdStore:
        """The same store without a trust check: for inspection, and for `cluster adopt`."""
        other = copy.copy(self)
        other._trust = None
        return other

    async def get(self, key: str) -> Entry | None:
        """Implement Store.get."""
        sent = await self._ask()
        answer = await self.gateway.read("/v3/kv/range", {"key": self._key(key)}, _Range)
        self._heard(sent, answer.header)
        return self._entry(answer.kvs[0]) if answer.kvs else None

    async def revision(self) -> int:
        """Implement Store.revision by a read of one key, the incarnation."""
        sent = await self._ask()
        revision = await self._look()
        if self._trust is not None and sent is not None:
            self._trust.require()
        return revision

    async def look(self) -> None:
        """Have the trust judge the store's present state. Raises StoreUnavailable."""
        await self._look()

    async def mark(self, trust: Trust, why: str, epoch: float) -> None:
        """Write the doubt `why` into the store, whatever it contains. Raises StoreUnavailable, OutcomeUnknown."""
        raw = self.raw
        entry = await raw.get(INCARNATION)
        operations = doubt(entry, trust.node, why, epoch)
        if operations:
            await raw.commit([Unchanged(INCARNATION, entry.revision if entry else 0)], operations)

    async def _look(self) -> int:
        sent = self._trust.looked() if self._trust else None
        answer = await self.gateway.read("/v3/kv/range", {"key": self._key(INCARNATION)}, _Range)
        self._judge(sent, answer.header, answer.kvs)
        return answer.header.revision

    def _judge(self, sent: Sent | None, header: _Header, found: list[_KeyValue]) -> None:
        if self._trust is not None and sent is not None:
            entry = self._entry(found[0]) if found else None
            self._trust.look(sent, sight(f"{header.cluster_id:x}", header.revision, entry))

    async def _ask(self) -> Sent | None:
        """Return what the answer to the next request must reach. Raises StoreRestored, StoreUnavailable."""
        if self._trust is None:
            return None
        if self._trust.standing is Standing.UNKNOWN:
            await self._look()
        return self._trust.sent()

    def _heard(self, sent: Sent | None, header: _Header) -> None:
        if self._trust is not None and sent is not None:
            self._trust.heard(sent, f"{header.cluster_id:x}", header.revision)

    async def scan(self, prefix: str) -> Snapshot:
        """Implement Store.scan; a large result comes in pages, all at the first page's revision."""
        begin, end = self._key(prefix), _end_of(self._key(prefix))
        found: list[Entry] = []
        revision = 0
        while True:
            sent = await self._ask()
            body = {"key": begin, "range_end": end, "limit": PAGE_KEYS, "revision": revision}
            answer = await self.gateway.read("/v3/kv/range", body, _Range)
            self._heard(sent, answer.header)
            revision = revision or answer.header.revision
            found += map(self._entry, answer.kvs)
            if not answer.more:
                return Snapshot(tuple(found), revision)
            begin = answer.kvs[-1].key + b"\0"

    async def commit(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> Committed:
        """Implement Store.commit by one etcd transaction. It has one more condition: the incarnation is the one known
        here. If that fails, the same answer contains the new incarnation."""
        sent = await self._ask()
        if self._trust is None or sent is None:
            answer = await self._txn(conditions, operations)
            return Committed(answer.succeeded, answer.header.revision)
        while True:
            key = self._trust.key
            answer = await self._txn([*conditions, Unchanged(INCARNATION, key)], operations)
            try:
                self._heard(sent.after(operations, done=answer.succeeded), answer.header)
            except StoreRestored as error:
                if answer.succeeded:
                    raise OutcomeUnknown(error.message, hint=error.hint) from error
                raise
            if answer.succeeded:
                return Committed(True, answer.header.revision)
            found = [each for reply in answer.responses if reply.response_range for each in reply.response_range.kvs]
            if (found[0].mod_revision if found else 0) == key:
                return Committed(False, answer.header.revision)
            self._judge(sent, answer.header, found)
            self._trust.require()
            if self._trust.generation != sent.generation:
                raise StoreRestored("the store was adopted meanwhile", hint="try again")

    async def _txn(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> _Txn:
        body = {
            "compare": [
                {"key": self._key(each.key), "target": "MOD", "result": "EQUAL", "mod_revision": each.revision}
                for each in conditions
            ],
            "success": [self._operation(each) for each in operations],
            "failure": [{"request_range": {"key": self._key(INCARNATION)}}],
        }
        return await self.gateway.write("/v3/kv/txn", body, _Txn)

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Change, None]:
        """Implement Store.watch. It restarts from the last revision seen when the stream breaks or falls silent, or
        when its member loses its leader."""
        pause, generation = 0.05, self.generation()
        while not self.gateway.closed:
            if generation != self.generation():
                raise Compacted(prefix, after)
            with contextlib.suppress(Unanswered, StoreUnavailable, msgspec.DecodeError):
                async with contextlib.aclosing(self._messages(prefix, after)) as messages:
                    async for message in messages:
                        if message.compact_revision or generation != self.generation():
                            raise Compacted(prefix, after)
                        if message.canceled:
                            break
                        pause = 0.05
                        for event in message.events:
                            yield self._change(event)
                        after = max(after, _reached(message))
            if not self.gateway.closed:
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def grant(self, ttl: int) -> int:
        """Implement Store.grant. If the answer is lost, the granted lease expires by itself."""
        await self._ask()
        try:
            return (await self.gateway.write("/v3/lease/grant", {"TTL": ttl}, _Lease)).ID
        except OutcomeUnknown as error:
            raise StoreUnavailable(error.message, hint=error.hint) from error

    async def keep(self, lease: int) -> float:
        """Implement Store.keep."""
        await self._ask()
        return float((await self.gateway.read("/v3/lease/keepalive", {"ID": lease}, _Kept)).result.TTL)

    async def revoke(self, lease: int) -> None:
        """Implement Store.revoke; an expired lease is no error."""
        await self._ask()
        try:
            await self.gateway.read("/v3/lease/revoke", {"ID": lease}, _Nothing)
        except Declined as error:
            if error.code != NOT_FOUND:
                raise

    def generation(self) -> int:
        """Implement Store.generation."""
        return self._trust.generation if self._trust else 0

    async def close(self) -> None:
        """Implement Store.close."""
        await self.gateway.close()

    async def _messages(self, prefix: str, after: int) -> AsyncGenerator[_Watched, None]:
        """Yield the messages of one stream. A member that lags far behind sends history first, then new changes."""
        key = self._key(prefix)
        create = {"key": key, "range_end": _end_of(key), "start_revision": after + 1, "progress_notify": True}
        stream = self.gateway.lines("/v3/watch", {"create_request": create}, quiet=self._quiet)
        async with contextlib.aclosing(stream) as lines:
            async for line in lines:
                yield msgspec.json.decode(line, type=_Message, strict=False).result

    def _key(self, key: str) -> bytes:
        return self._prefix + key.encode()

    def _name(self, key: bytes) -> str:
        return key.removeprefix(self._prefix).decode()

    def _entry(self, kv: _KeyValue) -> Entry:
        return Entry(self._name(kv.key), kv.value, kv.mod_revision, kv.create_revision, kv.lease)

    def _change(self, event: _Event) -> Change:
        kv = event.kv
        return Change(self._name(kv.key), None if event.type == "DELETE" else self._entry(kv), kv.mod_revision)

    def _operation(self, operation: Put | Delete) -> dict[str, Any]:
        key = self._key(operation.key)
        if isinstance(operation, Put):
            return {"request_put": {"key": key, "value": operation.value, "lease": operation.lease}}
        if operation.prefix:
            return {"request_delete_range": {"key": key, "range_end": _end_of(key)}}
        return {"request_delete_range": {"key": key}}


def _reached(message: _Watched) -> int:
    """Return the revision up to which a watch has now seen every change.

    A message with events holds all events of a revision, but its header may be ahead of events still to come.
    etcd sends a progress note (no events) only to a watcher that has seen everything up to the header's revision
    (mvcc/watchable_store.go, progress). The first message, `created`, gives no revision."""
    if message.events:
        return message.events[-1].kv.mod_revision
    return 0 if message.created else message.header.revision


def _end_of(prefix: bytes) -> bytes:
    """Return the first key after all keys with `prefix` (rpc.proto, RangeRequest.range_end); it is never all 0xff."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1])
