"""The volumes of one storage node: made, grown, filled, deleted, and served by tgtd as the records say.

The record comes first and goes last, so that bytes without a record never lie about: a crash in between leaves
a volume that is listed as not ready and can be deleted. `reconcile` brings tgtd to what the records say, after
each of its starts and after each change; while they cannot be read, to what it served before (`Served`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from veery.errors import Failed, Refused, VeeryError
from veery.host.clock import Clock
from veery.model.units import format_size
from veery.model.volume import Backing, Initiator, Volume
from veery.storage import plan
from veery.storage.base import BytesStore, whole
from veery.storage.extents import sync, write_sparse
from veery.storage.heartbeat import TID, HeartbeatFile, heartbeat_iqn
from veery.storage.names import check_volume_name, volume_iqn
from veery.storage.served import Served, Serving
from veery.storage.sessions import Stranger
from veery.storage.tgt import TargetServer
from veery.storage.tgtoutput import Target

log = logging.getLogger(__name__)

BUFFER = 4 << 20  # bytes gathered before they go to the disk


class Records(Protocol):
    """What the cluster remembers of storage. Methods raise what the store raises."""

    async def volumes(self) -> Sequence[Volume]:
        """Every volume, of every node."""
        ...

    async def initiators(self) -> Sequence[Initiator]:
        """The credentials of every node that may reach volumes; each has a user name of its own. One whose password is
        not known now has the password ""."""
        ...

    async def denied(self) -> Collection[tuple[str, str]]:
        """(volume name, initiator IQN) pairs that are fenced: never let in until they are taken off this list. The name
        "" stands for the nodes' heartbeats."""
        ...

    async def users(self, name: str) -> Sequence[str]:
        """Who uses volume `name`, for people: "busybox on test1"."""
        ...

    async def put(self, volume: Volume, *, new: bool = False) -> None:
        """Write a record. With `new`, raises Refused when there is one of that name."""
        ...

    async def remove(self, volume: Volume) -> None:
        """Remove a record."""
        ...

    async def take_tid(self, least: int) -> int:
        """A target's number, at least `least`, that nobody else in the cluster has or gets."""
        ...


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One reading of the records; `here` by name."""

    initiators: tuple[Initiator, ...]
    denied: frozenset[tuple[str, str]]
    here: Mapping[str, Volume]


class Volumes:
    """The volumes of node `node`."""

    def __init__(
        self,
        *,
        node: str,
        server: TargetServer,
        stores: Mapping[Backing, BytesStore],
        records: Records,
        authority: str,
        clock: Clock,
        served: Served,
        sync: bool = True,
        beats: HeartbeatFile | None = None,
    ) -> None:
        """`stores` are the kinds of backing that this node has; `authority` is the naming part of IQNs
        ("2026-11.lab.veery"); `served` is what tgtd is given while the records cannot be read; with `sync` a write is
        acknowledged when it is on the disk (docs/storage.md); `beats` is served besides, for the nodes' heartbeats."""
        self._node, self._server, self._stores, self._records = node, server, stores, records
        self._authority, self._clock, self._sync = authority, clock, sync
        self._beats, self._served = beats, served
        self._lock = asyncio.Lock()  # one reader and writer of tgtd and of the id numbers at a time
        self._closed = ""  # why no volume is made here and none moves here
        self._busy: dict[str, str] = {}  # volume name: what is being done to it
        self._coming: dict[str, tuple[Volume, str]] = {}  # volumes that move here, and the node whose domain fills them

    # ---- reading
    async def here(self) -> tuple[Volume, ...]:
        """The volumes of this node, by name."""
        mine = (one for one in await self._records.volumes() if one.node == self._node)
        return tuple(sorted(mine, key=lambda one: one.name))

    async def get(self, name: str) -> Volume:
        """One volume of this node. Raises Refused where there is none."""
        found = next((one for one in await self.here() if one.name == name), None)
        if found is None:
            raise Refused(f"there is no volume {name} on {self._node}", hint="see: veery volume list")
        return found

    async def targets(self) -> tuple[Target, ...]:
        """What tgtd serves now."""
        return await self._server.targets()

    # ---- making and unmaking
    async def close(self, why: str) -> None:
        """From the return on no volume is made here and none moves here, because of `why`; "" lets them again."""
        async with self._lock:
            self._closed = why

    def _open(self) -> None:
        """Raises Refused where this node takes no volumes."""
        if self._closed:
            raise Refused(f"{self._node} takes no volumes: {self._closed}", hint="veery node list shows others")

    async def create(self, name: str, size: int, backing: Backing = Backing.FILE) -> Volume:
        """A new volume of `size` bytes (rounded up to whole MiB), all zeros, served at once. Raises Refused."""
        check_volume_name(name)
        if size <= 0:
            raise Refused(f"a volume of {size} bytes cannot be made", hint="give a size, for example 1G")
        store = self._store(backing)
        await self._answering()
        with self._doing(name, "made"):
            async with self._lock:
                self._open()
                others = await self._records.volumes()
                if any(one.name == name for one in others):
                    raise Refused(f"there is a volume {name} already", hint="choose another name")
                volume = Volume(
                    name=name,
                    size=whole(size),
                    node=self._node,
                    backing=backing,
                    path=str(store.path(name)),
                    iqn=volume_iqn(self._authority, name),
                    # unique in the whole cluster: tgt makes the disk's NAA name out of it (spc.c, spc_lu_init),
                    # and two disks of one name would be taken for two paths to one disk by multipathd
                    tid=await self._records.take_tid(1 + max((one.tid for one in others), default=0)),
                    portal=self._server.portal,
                    ready=False,
                    created=self._clock.epoch(),
                )
                await self._records.put(volume, new=True)
            try:
                real = await store.create(name, volume.size)
            except BaseException:
                await self._records.remove(volume)
                raise
            volume = replace(volume, size=real, ready=True)
            await self._records.put(volume)
        await self._serve(volume)
        return volume

    async def resize(self, name: str, size: int, *, quiet: bool = False) -> Volume:
        """Grow a volume to `size` bytes (rounded up); the domain that uses it is then told by its driver. Raises
        Refused, also for a smaller size.

        With `quiet` the caller promises that nothing is in flight (the domain is paused): its session stays
        open. Without, open sessions are closed for the moment; their initiators come back in about two seconds,
        and the guest sees a pause and no error."""
        with self._doing(name, "resized"):
            volume = self._whole(await self.get(name))
            if whole(size) < volume.size:
                raise Refused(
                    f"volume {name} has {format_size(volume.size)} and cannot shrink",
                    hint="make a smaller volume and copy the content",
                )
            await self._answering()
            real = await self._store(volume.backing).grow(name, whole(size))
            volume = replace(volume, size=real)
            await self._records.put(volume)
            if quiet:
                async with self._lock:
                    await self._server.reload_lun(volume.tid, plan.LUN, volume.path)
        await self._serve(volume)
        return volume

    async def delete(self, name: str) -> None:
        """Remove a volume and its bytes. Raises Refused while a domain uses it."""
        with self._doing(name, "deleted"):
            volume = await self.get(name)
            await self._unused(volume)
            await self._answering()
            store = self._store(volume.backing)
            await self._set_apart(volume)
            await self._withdraw(volume)
            await store.delete(name)
            await self._records.remove(volume)

    # ---- filling
    async def write(self, name: str, chunks: AsyncIterator[bytes], *, length: int | None = None) -> Volume:
        """Replace a volume's content by `chunks` (`length` bytes, where known); the rest is zeros. Raises
        Refused when it is in use or `length` is too much, Failed when the bytes turn out to be too many or the disk
        is full: the volume is then not ready, and can be written again or deleted."""
        volume = await self.get(name)
        if length is not None and length > volume.size:
            raise _too_large(volume, length, Refused)
        async with self.filling(name) as volume:
            with await asyncio.to_thread(Path(volume.path).open, "rb+", buffering=0) as file:
                offset, held = 0, bytearray()
                async for chunk in chunks:
                    held += chunk
                    if offset + len(held) > volume.size:
                        raise _too_large(volume, offset + len(held), Failed)
                    while len(held) >= BUFFER:
                        await asyncio.to_thread(write_sparse, file, offset, bytes(held[:BUFFER]))
                        offset += BUFFER
                        del held[:BUFFER]
                await asyncio.to_thread(write_sparse, file, offset, bytes(held))
        return await self.get(name)

    @asynccontextmanager
    async def filling(self, name: str) -> AsyncIterator[Volume]:
        """Within it the volume is served to nobody and its path is all zeros, for the caller to write. After it
        the bytes are on the disk and the volume is served again; after an error it stays not ready."""
        with self._doing(name, "written"):
            volume = await self.get(name)
            await self._unused(volume)
            await self._answering()
            store = self._store(volume.backing)
            await self._set_apart(volume)
            await self._withdraw(volume)
            volume = replace(volume, ready=False)
            try:
                await store.clear(name)
                yield volume
                await asyncio.to_thread(sync, Path(volume.path))
            except OSError as error:
                raise Failed(
                    f"volume {name} could not be written: {error.strerror}",
                    hint=f"it is not ready; write it again, or: veery volume delete {name}",
                ) from error
            await self._records.put(replace(volume, ready=True))
        await self._serve(volume)

    # ---- moving to another storage node
    @contextmanager
    def leaving(self, name: str) -> Iterator[None]:
        """Within it nothing else is done to a volume, and what is served of it stays, whatever its record says. Raises
        Refused."""
        with self._doing(name, "moved"):
            yield

    async def sound(self, name: str) -> Volume:
        """A volume of this node that is ready. Raises Refused."""
        return self._whole(await self.get(name))

    async def left(self, volume: Volume, target: str, *, remove: bool) -> str:
        """The record of `volume`, once of this node, names `target`: serve it no more, keep its bytes under another
        name or remove them; where they are ("": removed). Idempotent."""
        await self._withdraw(volume)
        store = self._store(volume.backing)
        if remove:
            await store.delete(volume.name)
            return ""
        return str(await store.set_aside(volume.name, f"moved-to-{target}"))

    async def place(self, volume: Volume) -> Volume:
        """Where a copy of another node's volume would be here; its tid is not given yet. Raises Refused."""
        backing = volume.backing if volume.backing in self._stores else Backing.FILE
        store = self._store(backing)
        self._open()
        await self._answering()
        if volume.name in self._busy or volume.name in self._coming or await store.size(volume.name) is not None:
            raise Refused(f"{store.path(volume.name)} is there already", hint=f"move it away on {self._node}")
        if volume.size > (free := await store.free()):
            raise Refused(
                f"{format_size(volume.size)} do not fit on {self._node}: {format_size(free)} are left",
                hint="make room there",
            )
        return replace(
            volume, node=self._node, backing=backing, path=str(store.path(volume.name)), portal=self._server.portal
        )

    def expect(self, volume: Volume, node: str) -> None:
        """From now on `volume`, which another node has, is served here to the node `node` alone ("": to nobody)."""
        self._coming[volume.name] = volume, node

    async def take_in(self, volume: Volume, node: str) -> None:
        """Make the bytes of a volume that moves here, all zeros, and serve them as `expect` says. Raises Refused."""
        async with self._lock:
            self._open()
        real = await self._store(volume.backing).create(volume.name, volume.size)
        if real != volume.size:
            await self._store(volume.backing).delete(volume.name)
            raise Refused(f"{self._node} would make it {real} bytes large, not {volume.size}", hint="resize it first")
        self.expect(volume, node)
        await self._serve(volume)

    async def arrived(self, volume: Volume) -> None:
        """Its record names this node: it is a volume like the others."""
        self._coming.pop(volume.name, None)
        await self._serve(volume)

    async def give_up(self, volume: Volume) -> None:
        """It does not come: what was made for it goes. Idempotent."""
        self._coming.pop(volume.name, None)
        await self._withdraw(volume)
        await self._store(volume.backing).delete(volume.name)

    # ---- serving
    async def reconcile(self) -> tuple[plan.Step, ...]:
        """Bring tgtd to what the records say; the steps that it took. One target's trouble does not hold up
        the others: raises the first error after all has been tried."""
        done, troubles = await self._reconcile()
        for trouble in troubles.values():
            raise trouble
        return done

    async def _serve(self, volume: Volume) -> None:
        """Reconcile, and raise what went wrong with `volume`; other volumes' troubles are only logged."""
        _, troubles = await self._reconcile()
        if volume.tid in troubles:
            raise troubles[volume.tid]

    async def _reconcile(self) -> tuple[tuple[plan.Step, ...], dict[int, VeeryError]]:
        async with self._lock:
            try:
                recorded = await self._recorded()
            except VeeryError:
                await self._restore()
                raise
            targets, missing = await self._wanted(recorded)
            self._served.keep(Serving(targets=tuple(targets), initiators=tuple(recorded.initiators)))
            # A resize under way has its LUN reloaded itself, perhaps without closing its sessions; who deletes or fills
            # a volume takes the target away himself, once he knows that nobody uses it.
            busy = {volume_iqn(self._authority, name) for name in self._busy}
            steps = await self._steps(targets, recorded.initiators)
            done, broken = await self._take(
                step for step in steps if not (isinstance(step, plan.Reload | plan.Remove) and step.target.iqn in busy)
            )
        broken |= missing
        for tid, trouble in broken.items():
            log.error("target %d: %s", tid, trouble.message)
        return done, broken

    async def _restore(self) -> None:
        """The records cannot be read. A tgtd that still serves stays as it is; one that was killed meanwhile serves
        again what it did, so that the loss of the store takes no disk away. Nothing is removed. Raises nothing."""
        if self._served.known is None:
            return
        try:
            targets, initiators = self._served.known.targets, self._served.known.initiators
            steps = await self._steps(targets, initiators)
            done, broken = await self._take(step for step in steps if not isinstance(step, plan.Reload | plan.Remove))
        except VeeryError as error:
            log.error("tgtd: not brought back to what it served: %s", error.message)
            return
        for tid, trouble in broken.items():
            log.error("target %d: %s", tid, trouble.message)
        if done:
            log.warning("tgtd: serves again what it served, the records cannot be read now")

    async def _steps(self, targets: Sequence[plan.Wanted], initiators: Sequence[Initiator]) -> tuple[plan.Step, ...]:
        return plan.decide(targets, initiators, await self._server.targets(), await self._server.accounts())

    async def _take(self, steps: Iterable[plan.Step]) -> tuple[tuple[plan.Step, ...], dict[int, VeeryError]]:
        """Take `steps`; those that were taken, and by tid what went wrong: its target is left then."""
        begun = time.monotonic()
        done: list[plan.Step] = []
        broken: dict[int, VeeryError] = {}
        for step in steps:
            if step.tid in broken:
                continue
            try:
                await self._act(step)
            except VeeryError as error:
                if step.tid == 0:
                    raise
                broken[step.tid] = error
            else:
                done.append(step)
                log.info("tgtd: %s", plan.describe(step))
        if done:
            log.info("tgtd: %d steps in %.0f ms", len(done), 1000 * (time.monotonic() - begun))
        return tuple(done), broken

    async def shuts_out(self, initiator: str) -> bool | None:
        """Whether a target here keeps `initiator` out, and not merely has not been given its doors yet; None where
        there is no target, or tgtd does not answer. Needs no records."""
        try:
            targets = await self._server.targets()
        except VeeryError:
            return None
        if not targets:
            return None
        return any(initiator not in target.acl and not self._served.admits(target.iqn, initiator) for target in targets)

    async def cut(self, name: str, initiator: str) -> int:
        """Prove that `initiator` can no longer write to volume `name`; the number of sessions closed. The pair
        must be in `Records.denied` first, or the next reconcile lets it in again. Raises OutcomeUnknown, and Failed
        where it could not be remembered for a time without records."""
        volume = await self.get(name)
        user = next((one.user for one in await self._records.initiators() if one.iqn == initiator), "")
        async with self._lock:
            self._served.shut(initiator, volume.iqn)
            return await self._server.cut(initiator, iqn=volume.iqn, user=user)

    async def cut_all(self, initiator: str, addresses: Collection[str] = ()) -> int:
        """As `cut`, for every target of this node, whatever it is of: a fenced node's volumes are not asked for, since
        it may have a session at any. `addresses` are that node's alone: what comes from there under another name is
        closed too. Raises as `cut`."""
        user = next((one.user for one in await self._records.initiators() if one.iqn == initiator), "")
        async with self._lock:
            self._served.shut(initiator)
            return await self._server.cut(initiator, user=user, addresses=addresses)

    async def way_in(self, initiator: str, addresses: Collection[str] = ()) -> str:
        """How `initiator`, or who comes from `addresses`, could still write to a volume here, "" when it cannot: read
        back, nothing is changed."""
        async with self._lock:
            return await self._server.way_in(initiator, addresses)

    async def expel(self, strangers: Iterable[Stranger]) -> None:
        """Close these connections; their I/O may still end. Raises Failed."""
        async with self._lock:
            for each in strangers:
                await self._server.close_connection(each.tid, each.sid, each.cid)

    async def _recorded(self) -> _Recorded:
        """What the records say; who is denied last, so that it tells of every volume here. Raises what the store
        raises."""
        here = {volume.name: volume for volume in await self.here()}
        initiators = tuple(one for one in await self._records.initiators() if one.password)
        return _Recorded(initiators, frozenset(await self._records.denied()), here)

    async def _wanted(self, recorded: _Recorded) -> tuple[list[plan.Wanted], dict[int, VeeryError]]:
        """The targets as they should be, and the volumes whose bytes are not there. Those stay in the plan: tgtd
        may hold the open file, and their doors must be right all the same."""
        initiators, denied, here = recorded.initiators, recorded.denied, recorded.here
        found: list[plan.Wanted] = []
        missing: dict[int, VeeryError] = {}
        coming = {name: node for name, (_, node) in self._coming.items() if name not in here}
        for volume in (*here.values(), *(self._coming[name][0] for name in coming)):
            if not volume.ready:
                continue
            try:
                size = await self._store(volume.backing).size(volume.name)
            except VeeryError as error:
                size, missing[volume.tid] = volume.size, error
            if size is None:
                size = volume.size
                missing[volume.tid] = Failed(
                    f"volume {volume.name}: {volume.path} is gone",
                    hint=f"bring it back, or: veery volume delete {volume.name}",
                )
            admitted = [
                one
                for one in initiators
                if (volume.name, one.iqn) not in denied and coming.get(volume.name, one.node) == one.node
            ]
            found.append(plan.wanted(volume, size, sync=self._sync, admitted=admitted))
        if self._beats is not None:
            found.append(self._heartbeats(self._beats, [one for one in initiators if ("", one.iqn) not in denied]))
        return found, missing

    def _heartbeats(self, beats: HeartbeatFile, admitted: Sequence[Initiator]) -> plan.Wanted:
        """The target of heartbeats. Raises Failed where its file cannot be made."""
        beats.make()
        return plan.Wanted(
            tid=TID,
            iqn=heartbeat_iqn(self._authority, self._node),
            path=str(beats.path),
            size=beats.size,
            sync=False,
            admitted=tuple(admitted),
        )

    async def _act(self, step: plan.Step) -> None:
        server = self._server
        match step:
            case plan.Remove():
                await server.remove_target(step.target)
            case plan.Deny():
                await server.deny(step.tid, step.entry)
            case plan.Close():
                await server.close_sessions(step.tid, step.initiator)
            case plan.Forget():
                await server.delete_account(step.user)
            case plan.Enrol():
                await server.new_account(step.user, step.password)
            case plan.Make():
                await server.new_target(step.tid, step.iqn)
            case plan.Serve():
                await server.new_lun(step.tid, plan.LUN, step.path, sync=step.sync)
            case plan.Name():
                await server.name_lun(step.tid, plan.LUN, scsi_id=step.scsi_id, serial=step.serial)
            case plan.Reload():
                await server.reload_closed(step.target, plan.LUN, step.path)
            case plan.Bind():
                await server.bind_account(step.tid, step.user, instead=step.filler)
            case plan.Unbind():
                await server.unbind_account(step.tid, step.user, step.filler)
            case plan.Allow():
                await server.allow(step.tid, step.initiator)

    # ---- smaller parts
    async def _set_apart(self, volume: Volume) -> None:
        """Mark the volume as not ready, and only then make sure that nobody uses it: a domain that starts claims its
        name first and reads the mark after that, so of the two at least one sees the other. Raises Refused, the mark
        being as it was, where somebody does."""
        await self._records.put(replace(volume, ready=False))
        try:
            await self._unused(volume)
        except BaseException:
            await self._insist(volume)
            raise

    async def _insist(self, volume: Volume) -> None:
        """Put the record back as it was, for as long as that takes within reason."""
        for pause in (0.5, 1, 2, 4, 8, None):
            try:
                await self._records.put(volume)
                return
            except VeeryError as error:
                log.error("volume %s: its record says not ready, wrongly: %s", volume.name, error.message)
            if pause:
                await self._clock.sleep(pause)

    async def _withdraw(self, volume: Volume) -> None:
        """Take the target away."""
        async with self._lock:
            self._served.drop(volume.iqn)
            for target in await self._server.targets():
                if target.iqn == volume.iqn:
                    await self._server.remove_target(target)

    async def _unused(self, volume: Volume) -> None:
        users = await self._records.users(volume.name)
        if users:
            raise Refused(f"volume {volume.name} is used by {', '.join(users)}", hint="shut that down first")

    async def _answering(self) -> None:
        try:
            await self._server.targets()
        except Failed as error:
            raise Refused(error.message, hint=error.hint) from error

    def _store(self, backing: Backing) -> BytesStore:
        try:
            return self._stores[backing]
        except KeyError:
            raise Refused(
                f"{self._node} has no {backing} storage",
                hint="set storage.pool (files) or storage.group (LVM) in its settings",
            ) from None

    def _whole(self, volume: Volume) -> Volume:
        if not volume.ready:
            raise Refused(
                f"volume {volume.name} is not ready: its making or filling was broken off",
                hint=f"fill it (volume import, image build), or: veery volume delete {volume.name}",
            )
        return volume

    @contextmanager
    def _doing(self, name: str, what: str) -> Iterator[None]:
        if name in self._busy:
            raise Refused(f"volume {name} is being {self._busy[name]}", hint="try again when that has ended")
        self._busy[name] = what
        try:
            yield
        finally:
            del self._busy[name]


def _too_large(volume: Volume, length: int, kind: type[VeeryError]) -> VeeryError:
    return kind(
        f"{length} bytes do not fit into volume {volume.name} of {volume.size} bytes",
        hint=f"grow it first: veery volume resize {volume.name} SIZE",
    )
