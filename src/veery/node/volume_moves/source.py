"""The side of a volume's move on the storage node that has the volume. It leads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import replace
from typing import Any

from veery.cluster import levels
from veery.cluster import volumegate as gate
from veery.cluster.keys import DOMAINS, NODES, OWNERS
from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.model import newer
from veery.model.cluster import Owner
from veery.model.codec import convert, plain
from veery.model.node import Role
from veery.model.volume import Volume, VolumeMove, VolumeMoved
from veery.node.volume_moves.common import Common, Report
from veery.node.volume_moves.journal import Side
from veery.node.volume_moves.wire import follow, order_path

log = logging.getLogger(__name__)

MAKE_DEADLINE_S = 3600.0  # seconds for the target to make its bytes: a logical volume is zeroed


class SourceSide:
    """The moves that this node leads. `open` is called before orders are accepted, `close` at the end."""

    def __init__(self, common: Common) -> None:
        self._common = common
        self._leading: dict[str, asyncio.Task[VolumeMoved]] = {}  # by volume
        self._kept: dict[str, contextlib.ExitStack] = {}  # move: holds a volume whose end is not yet settled
        self._open = False

    def start(
        self, name: str, storage: str, *, rate: int, remove_source: bool, report: Report
    ) -> asyncio.Task[VolumeMoved]:
        """Begin to move volume `name` of this node to node `storage`. The returned task continues when its caller
        leaves. It raises Refused, Failed (the volume is where it was), OutcomeUnknown."""
        if not self._open:
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
        move = await gate.standing(self._common.store, name)
        if move is not None and gate.arrived(await gate.drop(self._common.store, move), move):
            raise Refused(
                f"too late: volume {name} is on {move.target}",
                hint=f"to move it back: veery volume move {name} {self._common.node}",
            )
        task.cancel()
        await asyncio.wait({task})

    def open(self) -> None:
        """Accept orders from now on."""
        self._open = True

    async def close(self) -> None:
        """Stop the moves under way; the journal has them."""
        await tasks.stop(*self._leading.values())

    def recall(self, move: VolumeMove) -> None:
        """Hold the volume of a move that the journal has, until it is settled."""
        stack = self._kept[move.id] = contextlib.ExitStack()
        stack.enter_context(self._common.service.mine().leaving(move.volume))

    async def settle(self, move: VolumeMove) -> None:
        """Try once to end a move of the journal. Raises VeeryError."""
        record = await gate.drop(self._common.store, move)
        await self._clear(move, done=gate.arrived(record, move))
        if stack := self._kept.pop(move.id, None):
            stack.close()
        log.info(
            "volume=%s move=%s settled: the volume is on %s", move.volume, move.id, record.node if record else "no node"
        )

    async def _lead(self, name: str, storage: str, *, rate: int, remove_source: bool, report: Report) -> VolumeMoved:
        volumes, begun = self._common.service.mine(), self._common.clock.now()
        target = await self._target(storage)
        with contextlib.ExitStack() as stack:
            stack.enter_context(volumes.leaving(name))
            move, owner = await self._plan(await volumes.sound(name), target, rate, remove_source)
            with self._common.working(Side.SOURCE, move):
                why: BaseException | None = None
                pause, copied = 0.0, 0
                try:
                    pause, copied = await self._carry(move, owner, report)
                except (VeeryError, asyncio.CancelledError) as error:
                    why = error
                (done, kept), _ = await tasks.through(self._conclude(move))
            if self._common.journal.has(Side.SOURCE, move):
                self._kept[move.id] = stack.pop_all()
        if not done:
            raise _undone(move, why)
        return VolumeMoved(
            volume=name,
            source=self._common.node,
            target=target,
            bytes=copied,
            seconds=round(self._common.clock.now() - begun, 2),
            pause_ms=round(pause, 1),
            kept=kept,
        )

    async def _plan(
        self, volume: Volume, target: str, rate: int, remove_source: bool
    ) -> tuple[VolumeMove, Owner | None]:
        """Plan the move and journal it; nothing is changed yet. Raises Refused."""
        owner, uuid, vdev = await self._user(volume)
        if owner is not None and owner.node != self._common.node:
            await levels.require(self._common.store, owner.node, f"switch the disk of {owner.domain}")
        told = await self._common.peers.call(
            target, "POST", order_path(volume.name, "place"), plain(volume), deadline=30
        )
        least = 1 + max(one.tid for one in await self._common.service.records.volumes())
        move = VolumeMove(
            id=secrets.token_hex(4),
            volume=volume.name,
            source=self._common.node,
            target=target,
            was=volume,
            place=replace(
                newer.kept(convert(told, Volume), volume), tid=await gate.take_tid(self._common.store, least)
            ),
            domain=owner.domain if owner else "",
            uuid=uuid,
            vdev=vdev,
            node=owner.node if owner else "",
            rate=rate,
            remove_source=remove_source,
        )
        self._common.journal.write(Side.SOURCE, move)
        return move, owner

    async def _target(self, storage: str) -> str:
        nodes = (await NODES.readable(self._common.store)).values()
        node = next((each for each in nodes if storage in (each.name, each.address)), None)
        if node is None or not node.has(Role.STORAGE):
            names = ", ".join(each.name for each in nodes if each.has(Role.STORAGE))
            raise Refused(f"{storage} is not a storage node", hint=f"storage nodes: {names}")
        if node.name == self._common.node:
            raise Refused(
                f"the volume is on {self._common.node} already", hint="name another storage node: veery node list"
            )
        await levels.require(self._common.store, node.name, "take in a volume")
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
        for domain, owner in (await OWNERS.all(self._common.store)).items():
            record = await DOMAINS.get(self._common.store, domain)
            if record is not None and any(disk.volume == name for disk in record.spec.disks):
                found.append((owner, record))
        return found

    async def _carry(self, move: VolumeMove, owner: Owner | None, report: Report) -> tuple[float, int]:
        """Do everything up to COMMIT and, if a domain runs, its switch to the new LUN. Return how long the domain was
        paused (ms), and the bytes."""
        move = await gate.begin(self._common.store, move, owner)
        self._common.journal.write(Side.SOURCE, move)
        # A domain that claimed its name before this key was written is seen here; one that comes later sees this key.
        if [one.domain for one, _ in await self._users(move.volume)] != ([owner.domain] if owner else []):
            raise Refused(f"a domain that uses volume {move.volume} has just started or ended", hint="try again")
        report("making room", 0, 0)
        await self._common.peers.call(
            move.target, "POST", order_path(move.volume, "take-in"), plain(move), deadline=MAKE_DEADLINE_S
        )
        where, order = (move.node, "mirror") if owner else (move.target, "fetch")
        result: dict[str, Any] = {}
        async for event in follow(self._common.peers, where, order_path(move.volume, order), plain(move)):
            if event["event"] == "progress":
                report(event["step"], event["done"], event["total"])
            elif event["event"] == "done":
                result = event["result"]
        if owner is None:
            await gate.commit(self._common.store, move, None)
        return float(result.get("pause_ms", 0.0)), int(result.get("bytes", 0))

    async def _conclude(self, move: VolumeMove) -> tuple[bool, str]:
        """End the move. Return whether the volume is at the target, and where the bytes of this node are kept then ("":
        removed). A step that fails now is tried again by `run`. Raises OutcomeUnknown."""
        done, kept = gate.arrived(await self._common.dropped(move, deadline=30.0), move), ""
        try:
            kept = await self._clear(move, done=done)
            await self._common.peers.call(move.target, "POST", order_path(move.volume, "settle"), {}, deadline=30)
        except VeeryError as error:
            log.warning("volume=%s move=%s is not settled yet: %s", move.volume, move.id, error.message)
        return done, kept

    async def _clear(self, move: VolumeMove, *, done: bool) -> str:
        """Do the last steps at the source."""
        kept = ""
        await self._common.let_go(move)
        if done:
            kept = await self._common.service.mine().left(move.was, move.target, remove=move.remove_source)
        self._common.journal.strike(Side.SOURCE, move)
        return kept


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
