"""Moves volumes from one storage node to another, under a running domain or without one.

    source   leads: asks the target for a place, writes the move's key, cleans up at the end
    target   makes the new bytes and serves them; copies them itself if no domain runs
    domain   the node where the domain runs: its hypervisor copies, COMMITs and switches to the new LUN

At any moment the volume's record names the one place that has every acknowledged write (veery.cluster.volumegate).
Each side journals what it has begun. A side that comes back drops the move's key, reads the record, and follows it. The
target and the source touch their bytes only when the domain's node no longer uses them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from veery.cluster import levels
from veery.cluster import owner as owners
from veery.cluster import volumegate as gate
from veery.cluster.keys import DOMAINS, NODES, OWNERS, VOLUME_MOVES, VOLUMES
from veery.cluster.store import Store, StoreUnavailable
from veery.config.check import check_move, short
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError, from_kind
from veery.host import tasks
from veery.host.clock import Clock
from veery.host.shortage import is_shortage
from veery.hypervisor.base import DiskSwitcher, Driver
from veery.migrate.phases import Hold
from veery.model import newer
from veery.model.cluster import Owner
from veery.model.codec import convert, plain
from veery.model.move import Phase
from veery.model.node import Role
from veery.model.volume import IscsiLun, Volume, VolumeMove, VolumeMoved
from veery.node.attachments import NodeAttacher
from veery.node.domains import Domains
from veery.node.peers import Peers, read_answer
from veery.node.volumejournal import Journal, Side
from veery.node.volumes import VolumeService
from veery.storage import portal
from veery.storage.extents import sync, write_sparse

log = logging.getLogger(__name__)
T = TypeVar("T")

Report = Callable[[str, int, int], None]
"""Called with the step, the bytes done and the bytes in all."""

KEY_CHECK_INTERVAL_S = 1.0  # seconds between two checks of the move's key while bytes flow
RETRY_INTERVAL_S = 1.0
SILENCE_S = 45.0  # seconds without a line from the node that copies
MAKE_DEADLINE_S = 3600.0  # seconds for the target to make its bytes: a logical volume is zeroed
PIECE_BYTES = 1 << 20


class VolumeMoves:
    """This node's part in every move of a volume. `run` owns the tasks."""

    def __init__(
        self,
        service: VolumeService,
        domains: Domains,
        driver: Driver,
        attacher: NodeAttacher,
        *,
        store: Store,
        peers: Peers,
        clock: Clock,
        hold: Hold,
        folder: Path,
    ) -> None:
        """`folder` is that of the journal. `hold` may pause a move before COMMIT and before FINISH, while the domain is
        paused."""
        self.node = service.node
        self._service, self._domains, self._driver, self._attacher = service, domains, driver, attacher
        self._store, self._peers, self._clock, self._hold = store, peers, clock, hold
        self._journal = Journal(folder)
        self._at_work: dict[tuple[Side, str], VolumeMove] = {}
        self._leading: dict[str, asyncio.Task[VolumeMoved]] = {}  # volume: the move that this node leads
        self._kept: dict[str, contextlib.ExitStack] = {}  # move: holds a volume whose end is not yet settled
        self._tasks: asyncio.TaskGroup | None = None
        self._said: dict[str, str] = {}
        self._again: set[tuple[Side, str]] = set()  # read again from the store: their files were put aside

    # ---- orders, on the volume's node

    def start(
        self, name: str, storage: str, *, rate: int, remove_source: bool, report: Report
    ) -> asyncio.Task[VolumeMoved]:
        """Begin to move volume `name` of this node to node `storage`. The returned task continues when its caller
        leaves. It raises Refused, Failed (the volume is where it was), OutcomeUnknown."""
        if self._tasks is None:
            raise Refused("veeryd on this node is still starting", hint="try again in a second")
        if name in self._leading:
            raise Refused(f"volume {name} is being moved", hint=f"to stop it: veery volume move --cancel {name}")
        work = self._lead(name, storage, rate=rate, remove_source=remove_source, report=report)
        task = self._leading[name] = asyncio.create_task(work, name=f"move volume {name}")

        def ended(task: asyncio.Task[VolumeMoved]) -> None:
            del self._leading[name]
            why = None if task.cancelled() else task.exception()
            log.info("volume=%s to %s ended: %s", name, storage, why or "done")

        task.add_done_callback(ended)
        return task

    async def cancel(self, name: str) -> None:
        """Stop the move of volume `name`; return when it is over. Raises Refused if none is under way, or if it is past
        COMMIT."""
        task = self._leading.get(name)
        if task is None:
            raise Refused(f"volume {name} is not being moved", hint="veery volume list shows where it is")
        move = await gate.standing(self._store, name)
        if move is not None and gate.arrived(await gate.drop(self._store, move), move):
            raise Refused(
                f"too late: volume {name} is on {move.target}",
                hint=f"to move it back: veery volume move {name} {self.node}",
            )
        task.cancel()
        await asyncio.wait({task})

    async def _lead(self, name: str, storage: str, *, rate: int, remove_source: bool, report: Report) -> VolumeMoved:
        volumes, begun = self._service.mine(), self._clock.now()
        target = await self._target(storage)
        with contextlib.ExitStack() as stack:
            stack.enter_context(volumes.leaving(name))
            move, owner = await self._plan(await volumes.sound(name), target, rate, remove_source)
            with self._working(Side.SOURCE, move):
                why: BaseException | None = None
                pause, copied = 0.0, 0
                try:
                    pause, copied = await self._carry(move, owner, report)
                except (VeeryError, asyncio.CancelledError) as error:
                    why = error
                (done, kept), _ = await tasks.through(self._conclude(move))
            if self._journal.has(Side.SOURCE, move):
                self._kept[move.id] = stack.pop_all()
        if not done:
            raise _undone(move, why)
        return VolumeMoved(
            volume=name,
            source=self.node,
            target=target,
            bytes=copied,
            seconds=round(self._clock.now() - begun, 2),
            pause_ms=round(pause, 1),
            kept=kept,
        )

    async def _plan(
        self, volume: Volume, target: str, rate: int, remove_source: bool
    ) -> tuple[VolumeMove, Owner | None]:
        """Plan the move and journal it; nothing is changed yet. Raises Refused."""
        owner, uuid, vdev = await self._user(volume)
        if owner is not None and owner.node != self.node:
            await levels.require(self._store, owner.node, f"switch the disk of {owner.domain}")
        told = await self._peers.call(target, "POST", _path(volume.name, "place"), plain(volume), deadline=30)
        least = 1 + max(one.tid for one in await self._service.records.volumes())
        move = VolumeMove(
            id=secrets.token_hex(4),
            volume=volume.name,
            source=self.node,
            target=target,
            was=volume,
            place=replace(newer.kept(convert(told, Volume), volume), tid=await gate.take_tid(self._store, least)),
            domain=owner.domain if owner else "",
            uuid=uuid,
            vdev=vdev,
            node=owner.node if owner else "",
            rate=rate,
            remove_source=remove_source,
        )
        self._journal.write(Side.SOURCE, move)
        return move, owner

    async def _target(self, storage: str) -> str:
        nodes = (await NODES.readable(self._store)).values()
        node = next((each for each in nodes if storage in (each.name, each.address)), None)
        if node is None or not node.has(Role.STORAGE):
            names = ", ".join(each.name for each in nodes if each.has(Role.STORAGE))
            raise Refused(f"{storage} is not a storage node", hint=f"storage nodes: {names}")
        if node.name == self.node:
            raise Refused(f"the volume is on {self.node} already", hint="name another storage node: veery node list")
        await levels.require(self._store, node.name, "take in a volume")
        return node.name

    async def _user(self, volume: Volume) -> tuple[Owner | None, str, str]:
        """Return the one running domain that uses the volume: its owner, its UUID and its name for the disk. Raises
        Refused if the disk cannot be switched."""
        found = await self._users(volume.name)
        if not found:
            return None, "", ""
        if len(found) > 1:
            names = ", ".join(f"{owner.domain} on {owner.node}" for owner, _ in found)
            raise Refused(f"volume {volume.name} is used by {names}", hint="only one domain may use it while it moves")
        ((owner, record),) = found
        (disk,) = [disk for disk in record.spec.disks if disk.volume == volume.name][:1]
        if not disk.readwrite or disk.cdrom:
            raise Refused(f"{owner.domain} only reads volume {volume.name}", hint=f"shut {owner.domain} down first")
        return owner, record.spec.uuid, disk.vdev

    async def _users(self, name: str) -> list[tuple[Owner, Any]]:
        found = []
        for domain, owner in (await OWNERS.all(self._store)).items():
            record = await DOMAINS.get(self._store, domain)
            if record is not None and any(disk.volume == name for disk in record.spec.disks):
                found.append((owner, record))
        return found

    async def _carry(self, move: VolumeMove, owner: Owner | None, report: Report) -> tuple[float, int]:
        """Do everything up to COMMIT and, if a domain runs, its switch to the new LUN. Return how long the domain was
        paused (ms), and the bytes."""
        move = await gate.begin(self._store, move, owner)
        self._journal.write(Side.SOURCE, move)
        # A domain that claimed its name before this key was written is seen here; one that comes later sees this key.
        if [one.domain for one, _ in await self._users(move.volume)] != ([owner.domain] if owner else []):
            raise Refused(f"a domain that uses volume {move.volume} has just started or ended", hint="try again")
        report("making room", 0, 0)
        await self._peers.call(
            move.target, "POST", _path(move.volume, "take-in"), plain(move), deadline=MAKE_DEADLINE_S
        )
        where, order = (move.node, "mirror") if owner else (move.target, "fetch")
        result: dict[str, Any] = {}
        async for event in _follow(self._peers, where, _path(move.volume, order), plain(move)):
            if event["event"] == "progress":
                report(event["step"], event["done"], event["total"])
            elif event["event"] == "done":
                result = event["result"]
        if owner is None:
            await gate.commit(self._store, move, None)
        return float(result.get("pause_ms", 0.0)), int(result.get("bytes", 0))

    async def _conclude(self, move: VolumeMove) -> tuple[bool, str]:
        """End the move. Return whether the volume is at the target, and where the bytes of this node are kept then ("":
        removed). A step that fails now is tried again by `run`. Raises OutcomeUnknown."""
        done, kept = gate.arrived(await self._dropped(move, deadline=30.0), move), ""
        try:
            kept = await self._clear(move, done=done)
            await self._peers.call(move.target, "POST", _path(move.volume, "settle"), {}, deadline=30)
        except VeeryError as error:
            log.warning("volume=%s move=%s is not settled yet: %s", move.volume, move.id, error.message)
        return done, kept

    async def _clear(self, move: VolumeMove, *, done: bool) -> str:
        """Do the last steps at the source."""
        kept = ""
        await self._let_go(move)
        if done:
            kept = await self._service.mine().left(move.was, move.target, remove=move.remove_source)
        self._journal.strike(Side.SOURCE, move)
        return kept

    # ---- the target

    async def place(self, volume: Volume) -> Volume:
        """As storage.volumes.Volumes.place."""
        return await self._service.mine().place(volume)

    async def take_in(self, move: VolumeMove) -> None:
        """Make the new bytes and serve them. Raises Refused, Failed; then nothing is left."""
        volumes, move = self._service.mine(), await self._known(move, move.target)
        self._journal.write(Side.TARGET, move)
        with self._working(Side.TARGET, move):
            await volumes.take_in(move.place, move.node)

    async def fetch(self, move: VolumeMove, report: Report) -> dict[str, Any]:
        """Copy a volume that no domain uses from its node. Raises Failed, Refused."""
        move = await self._known(move, move.target)
        with self._working(Side.TARGET, move):
            return {"bytes": await self._while_standing(move, self._fetch(move, report))}

    async def _fetch(self, move: VolumeMove, report: Report) -> int:
        rows = await self._peers.call(move.source, "GET", _path(move.volume, "extents"), deadline=60)
        parts = [(int(offset), int(length)) for offset, length in rows]
        done, total, begun = 0, sum(length for _, length in parts), self._clock.now()
        path = Path(move.place.path)
        with await asyncio.to_thread(path.open, "rb+", buffering=0) as file:
            for offset, length in parts:
                where = _path(move.volume, f"content?offset={offset}&length={length}")
                at = offset
                async with await self._peers.open(move.source, "GET", where) as response:
                    if response.status >= 400:
                        await read_answer(response)
                    async for piece in _pieces(response, move.source):
                        await asyncio.to_thread(write_sparse, file, at, piece)
                        at, done = at + len(piece), done + len(piece)
                        report("copying", done, total)
                        if move.rate:
                            await self._clock.sleep(max(0.0, done / move.rate - (self._clock.now() - begun)))
                if at != offset + length:
                    raise Failed(f"{move.source} closed the connection before the end", hint="see veeryd's log there")
        await asyncio.to_thread(sync, path)
        return done

    # ---- the domain's node

    async def mirror(self, move: VolumeMove, report: Report) -> dict[str, Any]:
        """Copy the disk of a domain that runs here, COMMIT, and switch it to the new LUN. Raises Failed, Refused: the
        domain continues with its old LUN."""
        driver = self._driver
        if not isinstance(driver, DiskSwitcher):
            raise Refused(f"the driver {driver.name} cannot move a disk under a domain", hint="shut the domain down")
        move = await self._known(move, move.node)
        await self._domains.ours(move.domain)
        lun = await self._attacher.lun(move.place)
        self._journal.write(Side.DOMAIN, move)
        with self._working(Side.DOMAIN, move):
            try:
                pause = await self._copy_and_switch(driver, move, lun, report)
            except VeeryError:
                with contextlib.suppress(VeeryError):  # tried again by `run`
                    await self._settle_domain(move)
                raise
            self._journal.strike(Side.DOMAIN, move)
        return {"pause_ms": pause, "bytes": move.place.size}

    async def _copy_and_switch(self, driver: DiskSwitcher, move: VolumeMove, lun: IscsiLun, report: Report) -> float:
        copying = driver.copy_disk(
            move.uuid, move.vdev, lun, move.rate, lambda done, total: report("copying", done, total)
        )
        await self._while_standing(move, copying)
        report("switching over", move.place.size, move.place.size)
        async with self._domains.locks.hold(move.domain):
            owner = await self._domains.ours(move.domain)  # which shows that the store answers, too
            return await driver.switch_disk(move.uuid, move.vdev, lun, lambda: self._commit(move, owner))

    async def _commit(self, move: VolumeMove, owner: Owner) -> None:
        await self._hold.at(Phase.COMMIT)
        try:
            await gate.commit(self._store, move, owner)
        except StoreUnavailable:
            raise  # surely not committed
        except OutcomeUnknown:
            log.warning("volume=%s move=%s: no answer to COMMIT, asking the store", move.volume, move.id)
            if not gate.arrived(await self._dropped(move), move):
                raise Failed(f"volume {move.volume}: the store did not take the COMMIT") from None
        await self._hold.at(Phase.FINISH)

    async def let_go(self, move: str, *, deadline: float = 60.0) -> bool:
        """Return True when this node's domain no longer needs a move that is over; False after `deadline` seconds."""
        ends = self._clock.now() + deadline
        while any(one.id == move for side, one in self._journal.open() if side is Side.DOMAIN):
            if self._clock.now() > ends:
                return False
            await self._clock.sleep(0.1)
        return True

    # ---- recovery

    def recall(self) -> None:
        """Resume what the journal holds. Call once, before tgtd is compared with the records."""
        for side, move in self._journal.open():
            log.info("volume=%s move=%s side=%s found open", move.volume, move.id, side)
            if side is Side.TARGET:
                self._service.mine().expect(move.place, move.node)
            elif side is Side.SOURCE:
                stack = self._kept[move.id] = contextlib.ExitStack()
                stack.enter_context(self._service.mine().leaving(move.volume))

    async def run(self) -> None:
        """Own every task, and settle open moves that no task works on, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._tasks = group
            try:
                while True:
                    try:
                        await self.settle()
                    except (VeeryError, OSError) as error:
                        if not is_shortage(error):
                            raise
                        log.error("moves of volumes cannot be settled now: %s", error)
                    await self._clock.sleep(RETRY_INTERVAL_S)
            finally:
                await tasks.stop(*self._leading.values())

    async def settle(self) -> None:
        """Try once to settle every open move. Never raises VeeryError."""
        await self._take_again()
        for side, move in self._journal.open():
            if (side, move.id) in self._at_work:
                continue
            act = {Side.SOURCE: self._settle_source, Side.TARGET: self._settle_target, Side.DOMAIN: self._settle_domain}
            try:
                with self._working(side, move):
                    await act[side](move)
            except VeeryError as error:
                if self._said.get(move.id) != error.message:
                    log.warning(
                        "volume=%s move=%s %s is not settled yet: %s", move.volume, move.id, side, error.message
                    )
                self._said[move.id] = error.message

    async def _take_again(self) -> None:
        """Read moves again from the store whose files could not be read: the store has the same record until the move
        is decided."""
        lost = [each for each in self._journal.illegible() if each not in self._again]
        if not lost:
            return
        try:
            standing = await VOLUME_MOVES.readable(self._store)
        except VeeryError as error:
            log.debug("moves of volumes could not be read: %s", error.message)
            return
        self._again |= set(lost)
        for side, move in ((side, move) for side, id in lost for move in standing.values() if move.id == id):
            log.warning("volume=%s move=%s side=%s read again from the store", move.volume, move.id, side)
            with contextlib.suppress(VeeryError):  # a full disk: the key of the move stays, and cancelling helps
                self._journal.write(side, move)

    async def _settle_source(self, move: VolumeMove) -> None:
        record = await gate.drop(self._store, move)
        await self._clear(move, done=gate.arrived(record, move))
        if stack := self._kept.pop(move.id, None):
            stack.close()
        log.info(
            "volume=%s move=%s settled: the volume is on %s", move.volume, move.id, record.node if record else "no node"
        )

    async def _settle_target(self, move: VolumeMove) -> None:
        standing = await gate.standing(self._store, move.volume)
        if standing is not None and standing.id == move.id:
            return  # it continues
        record = await VOLUMES.get(self._store, move.volume)
        if gate.arrived(record, move):
            await self._service.mine().arrived(move.place)
        else:
            await self._let_go(move)
            await self._service.mine().give_up(move.place)
        self._journal.strike(Side.TARGET, move)

    async def _settle_domain(self, move: VolumeMove) -> None:
        record = await self._dropped(move)
        lun = await self._attacher.lun(move.place) if gate.arrived(record, move) else None
        if isinstance(self._driver, DiskSwitcher):
            if any(reading.uuid == move.uuid for reading in await self._driver.list()):
                await portal.require(move.place.portal, (await self._attacher.lun(move.place)).initiator)
            with contextlib.suppress(Refused):  # it is no longer here
                await self._driver.settle_disk(move.uuid, move.vdev, lun)
        self._journal.strike(Side.DOMAIN, move)

    async def _let_go(self, move: VolumeMove) -> None:
        """Return once the domain's QEMU writes to only one of the two LUNs. Raises Failed: call it again."""
        if not move.node:
            return
        try:
            told = await self._peers.call(
                move.node, "POST", _path(move.volume, "let-go"), {"move": move.id}, deadline=75
            )
            released = bool(told["released"])
        except (Refused, OutcomeUnknown):
            owner = await owners.read(self._store, move.domain)
            released = owner is None or owner.node != move.node  # it has ended, or was fenced
        if not released:
            raise Failed(
                f"{move.node} still uses the old LUN of volume {move.volume}",
                hint="check that veeryd runs there: systemctl status veeryd",
            )

    # ---- smaller parts

    async def _dropped(self, move: VolumeMove, *, deadline: float | None = None) -> Volume | None:
        """Call gate.drop until the store answers. Raises OutcomeUnknown after `deadline` seconds."""
        try:
            async with asyncio.timeout(deadline):
                while True:
                    try:
                        return await gate.drop(self._store, move)
                    except (StoreUnavailable, OutcomeUnknown) as error:
                        log.warning("volume=%s move=%s: %s", move.volume, move.id, error.message)
                        await self._clock.sleep(RETRY_INTERVAL_S)
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"the store does not answer where volume {move.volume} is", hint="when etcd is back: veery volume list"
            ) from error

    async def _known(self, move: VolumeMove, node: str) -> VolumeMove:
        """Return the move as the store has it: another node's order only names it. `node` is the node that the order is
        for.

        Raises Refused if the move does not exist or the order is for another node. Raises StoreUnavailable."""
        check_move(move.id)
        known = await gate.standing(self._store, move.volume)
        if known is None or replace(known, revision=0) != replace(move, revision=0) or node != self.node:
            said = f"there is no move {move.id} of volume {short(move.volume)} for {self.node}"
            raise Refused(said, hint="veery volume list shows what is being moved")
        return known

    async def _while_standing(self, move: VolumeMove, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` for as long as the move's key exists. Raises Failed when the key is deleted."""
        working = asyncio.create_task(work, name=f"{move.volume} copies")
        watching = asyncio.create_task(self._broken_off(move), name=f"{move.volume} looks")
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return await working
            raise Failed(
                f"the move of volume {move.volume} was interrupted",
                hint=f"the volume is on {move.source}; order the move again",
            )
        finally:
            await tasks.stop(working, watching)

    async def _broken_off(self, move: VolumeMove) -> None:
        while True:
            await self._clock.sleep(KEY_CHECK_INTERVAL_S)
            with contextlib.suppress(StoreUnavailable):
                standing = await gate.standing(self._store, move.volume)
                if standing is None or standing.id != move.id:
                    return

    @contextlib.contextmanager
    def _working(self, side: Side, move: VolumeMove) -> Any:
        """Keep `settle` from this part of the move meanwhile."""
        key = (side, move.id)
        if key in self._at_work:
            raise Refused(f"volume {move.volume} is being moved already", hint="veery moves shows how far it is")
        self._at_work[key] = move
        try:
            yield
        finally:
            del self._at_work[key]


def _path(name: str, order: str) -> str:
    return f"/v1/volumes/{quote(name, safe='')}/{order}"


def _undone(move: VolumeMove, why: BaseException | None) -> BaseException:
    if isinstance(why, asyncio.CancelledError):
        return Failed(
            f"cancelled: volume {move.volume} is on {move.source} as before",
            hint="nothing to do; the move can be ordered again",
        )
    if isinstance(why, VeeryError):
        kind = Refused if isinstance(why, Refused) else Failed
        return kind(f"volume {move.volume} stays on {move.source}: {why.message}", hint=why.hint)
    return Failed(f"volume {move.volume} stays on {move.source}")


async def _follow(peers: Peers, node: str, path: str, body: Any) -> AsyncIterator[dict[str, Any]]:
    """Yield the lines of a long answer. Raises the error that ended it, OutcomeUnknown if the connection closed."""
    try:
        async with await peers.open(node, "POST", path, json=body) as response:
            if response.status >= 400:
                await read_answer(response)
            while True:
                async with asyncio.timeout(SILENCE_S):
                    line = await response.content.readline()
                if not line:
                    break
                event = msgspec.json.decode(line)
                if event["event"] == "error":
                    error = event["error"]
                    raise from_kind(error["kind"], error["message"], error["hint"])
                yield event
                if event["event"] == "done":
                    return
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        raise OutcomeUnknown(
            f"{node} closed the connection: {error or 'timeout'}",
            hint=f"check that veeryd runs on {node}: systemctl status veeryd",
        ) from error
    raise OutcomeUnknown(
        f"{node} closed the connection", hint=f"check that veeryd runs on {node}: systemctl status veeryd"
    )


async def _pieces(response: aiohttp.ClientResponse, node: str) -> AsyncIterator[bytes]:
    """Yield the body in pieces; no piece may take longer than SILENCE_S seconds. Raises Failed."""
    try:
        while True:
            async with asyncio.timeout(SILENCE_S):
                piece = await response.content.read(PIECE_BYTES)
            if not piece:
                return
            yield piece
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        raise Failed(
            f"{node} closed the connection: {error or 'timeout'}",
            hint=f"check that veeryd runs on {node}: systemctl status veeryd",
        ) from error
