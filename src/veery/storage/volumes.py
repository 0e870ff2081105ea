"""The volumes of one storage node: veery makes, grows, fills and deletes them, and tgtd serves them by the records.

A volume's record is written first and deleted last, so there are no bytes without a record. After a crash in between
the volume is listed as not ready and can be deleted. `reconcile` brings tgtd to the state in the records, after each
start of tgtd and after each change. While the records cannot be read, tgtd serves what it served before (`Served`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from veery.errors import Failed, NotFound, Refused, VeeryError
from veery.host.clock import Clock
from veery.model.units import format_size
from veery.model.volume import Backing, Initiator, Volume
from veery.storage import plan
from veery.storage.base import BytesStore, whole_mib
from veery.storage.extents import sync, write_sparse
from veery.storage.heartbeat import TID, HeartbeatFile, heartbeat_iqn
from veery.storage.names import check_volume_name, volume_iqn
from veery.storage.served import Served, Serving
from veery.storage.sessions import Stranger
from veery.storage.tgt import TargetServer
from veery.storage.tgtoutput import Target

log = logging.getLogger(__name__)

BUFFER_BYTES = 4 << 20  # collected before a write to the disk


class Records(Protocol):
    """The cluster's records about storage. Methods raise the errors of the store."""

    async def volumes(self) -> Sequence[Volume]:
        """Return all volumes of all nodes."""
        ...

    async def initiators(self) -> Sequence[Initiator]:
        """Return the credentials of every node that may use volumes, each with its own user name. An unknown password
        is ""."""
        ...

    async def denied(self) -> Collection[tuple[str, str]]:
        """Return the fenced pairs (volume name, initiator IQN), which are not admitted while they are on this list. The
        name "" means the nodes' heartbeats."""
        ...

    async def users(self, name: str) -> Sequence[str]:
        """Return the users of volume `name` as texts: "busybox on test1"."""
        ...

    async def put(self, volume: Volume, *, new: bool = False) -> None:
        """Write a record. With `new`, raises Refused if the name has a record."""
        ...

    async def remove(self, volume: Volume) -> None:
        """Delete a record."""
        ...

    async def take_tid(self, least: int) -> int:
        """Return a target number, at least `least`, that is unique in the cluster."""
        ...


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One reading of the records; `here`: this node's volumes by name."""

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
        """`stores`: this node's kinds of backing. `authority`: the naming authority in IQNs ("2026-11.lab.veery").
        `served`: the state for tgtd while the records cannot be read. With `sync` a write is acknowledged when it is on
        the disk (docs/storage.md). `beats`: the file of the nodes' heartbeats, served in addition."""
        self._node, self._server, self._stores, self._records = node, server, stores, records
        self._authority, self._clock, self._sync = authority, clock, sync
        self._beats, self._served = beats, served
        self._lock = asyncio.Lock()  # one task at a time reads and changes tgtd and the target numbers
        self._closed = ""  # why this node takes no volumes; "" if it does
        self._busy: dict[str, str] = {}  # volume name: the operation in progress, as a participle
        self._coming: dict[
            str, tuple[Volume, str]
        ] = {}  # the volumes that move here, each with the node whose domain fills it

    # ---- reading
    async def here(self) -> tuple[Volume, ...]:
        """Return the volumes of this node, by name."""
        mine = (one for one in await self._records.volumes() if one.node == self._node)
        return tuple(sorted(mine, key=lambda one: one.name))

    async def get(self, name: str) -> Volume:
        """Return volume `name` of this node. Raises Refused if there is none."""
        found = next((one for one in await self.here() if one.name == name), None)
        if found is None:
            raise NotFound(f"there is no volume {name} on {self._node}", hint="see: veery volume list")
        return found

    async def targets(self) -> tuple[Target, ...]:
        """Return the present targets of tgtd."""
        return await self._server.targets()

    # ---- making and deleting
    async def close(self, why: str) -> None:
        """Take no volumes from the return on, because of `why`; "" allows them again."""
        async with self._lock:
            self._closed = why

    def _open(self) -> None:
        """Raise Refused if this node takes no volumes."""
        if self._closed:
            raise Refused(f"{self._node} takes no volumes: {self._closed}", hint="veery node list shows other nodes")

    async def create(self, name: str, size: int, backing: Backing = Backing.FILE) -> Volume:
        """Make a volume of `size` bytes (rounded up to whole MiB), all zeros, and serve it. Raises Refused."""
        check_volume_name(name)
        if size <= 0:
            raise Refused(f"a volume cannot have {size} bytes", hint="give a size, for example 1G")
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
                    size=whole_mib(size),
                    node=self._node,
                    backing=backing,
                    path=str(store.path(name)),
                    iqn=volume_iqn(self._authority, name),
                    # unique in the whole cluster: tgt makes the disk's NAA name from it (spc.c, spc_lu_init), and
                    # multipathd would treat two disks of one name as two paths to one disk
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
        """Grow a volume to `size` bytes (rounded up); the driver then informs the domain that uses it. Raises Refused,
        also for a smaller size.

        With `quiet` the caller guarantees that no I/O is in flight (the domain is paused): its session stays open.
        Without `quiet` open sessions are closed; their initiators reconnect in about two seconds, and the guest sees a
        pause but no error."""
        with self._doing(name, "resized"):
            volume = self._ready(await self.get(name))
            if whole_mib(size) < volume.size:
                raise Refused(
                    f"volume {name} has {format_size(volume.size)} and cannot shrink",
                    hint="make a smaller volume and copy the content",
                )
            await self._answering()
            real = await self._store(volume.backing).grow(name, whole_mib(size))
            volume = replace(volume, size=real)
            await self._records.put(volume)
            if quiet:
                async with self._lock:
                    await self._server.reload_lun(volume.tid, plan.LUN, volume.path)
        await self._serve(volume)
        return volume

    async def delete(self, name: str) -> None:
        """Delete a volume and its bytes. Raises Refused while a domain uses it."""
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
        """Replace a volume's content by `chunks` (`length` bytes, if known); the rest is zeros.

        Raises Refused if the volume is in use or `length` is too large. Raises Failed if there are too many bytes or
        the disk is full: the volume is then not ready, and can be written again or deleted."""
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
                    while len(held) >= BUFFER_BYTES:
                        await asyncio.to_thread(write_sparse, file, offset, bytes(held[:BUFFER_BYTES]))
                        offset += BUFFER_BYTES
                        del held[:BUFFER_BYTES]
                await asyncio.to_thread(write_sparse, file, offset, bytes(held))
        return await self.get(name)

    @asynccontextmanager
    async def filling(self, name: str) -> AsyncIterator[Volume]:
        """Stop serving the volume and zero its path, so that the caller can write it within this context. Afterwards
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
                    f"cannot write volume {name}: {error.strerror}",
                    hint=f"it is not ready; write it again, or: veery volume delete {name}",
                ) from error
            await self._records.put(replace(volume, ready=True))
        await self._serve(volume)

    # ---- moving to another storage node
    @contextmanager
    def leaving(self, name: str) -> Iterator[None]:
        """Allow no other operation on a volume within this context; its target stays, whatever its record says. Raises
        Refused."""
        with self._doing(name, "moved"):
            yield

    async def sound(self, name: str) -> Volume:
        """Return volume `name` of this node if it is ready. Raises Refused."""
        return self._ready(await self.get(name))

    async def left(self, volume: Volume, target: str, *, remove: bool) -> str:
        """Stop serving `volume`, whose record now names `target`, and rename or delete its bytes. Return their new path
        ("": deleted). Idempotent."""
        await self._withdraw(volume)
        store = self._store(volume.backing)
        if remove:
            await store.delete(volume.name)
            return ""
        return str(await store.set_aside(volume.name, f"moved-to-{target}"))

    async def place(self, volume: Volume) -> Volume:
        """Return the record for a copy of another node's volume here, without its own tid yet. Raises Refused."""
        backing = volume.backing if volume.backing in self._stores else Backing.FILE
        store = self._store(backing)
        self._open()
        await self._answering()
        if volume.name in self._busy or volume.name in self._coming or await store.size(volume.name) is not None:
            raise Refused(f"{store.path(volume.name)} exists already", hint=f"move it away on {self._node}")
        if volume.size > (free := await store.free()):
            raise Refused(
                f"{format_size(volume.size)} do not fit on {self._node}: {format_size(free)} are free",
                hint="free space there",
            )
        return replace(
            volume, node=self._node, backing=backing, path=str(store.path(volume.name)), portal=self._server.portal
        )

    def expect(self, volume: Volume, node: str) -> None:
        """Serve `volume`, which another node has, from now on here to node `node` only ("": to no node)."""
        self._coming[volume.name] = volume, node

    async def take_in(self, volume: Volume, node: str) -> None:
        """Make the bytes of a volume that moves here, all zeros, and serve them as `expect` does. Raises Refused."""
        async with self._lock:
            self._open()
        real = await self._store(volume.backing).create(volume.name, volume.size)
        if real != volume.size:
            await self._store(volume.backing).delete(volume.name)
            raise Refused(f"on {self._node} it would have {real} bytes, not {volume.size}", hint="resize it first")
        self.expect(volume, node)
        await self._serve(volume)

    async def arrived(self, volume: Volume) -> None:
        """Serve `volume` normally, because its record now names this node."""
        self._coming.pop(volume.name, None)
        await self._serve(volume)

    async def give_up(self, volume: Volume) -> None:
        """Delete the bytes made for a volume whose move was cancelled. Idempotent."""
        self._coming.pop(volume.name, None)
        await self._withdraw(volume)
        await self._store(volume.backing).delete(volume.name)

    # ---- serving
    async def reconcile(self) -> tuple[plan.Step, ...]:
        """Bring tgtd to the state in the records; return the steps taken. An error at one target does not stop the
        others: the first error is raised after all targets."""
        done, troubles = await self._reconcile()
        for trouble in troubles.values():
            raise trouble
        return done

    async def _serve(self, volume: Volume) -> None:
        """Reconcile, and raise the error of `volume`; other volumes' errors are only logged."""
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
            # A resize in progress reloads its LUN itself, perhaps without closing its sessions. A deletion or filling
            # removes the target itself, once it has checked that no domain uses the volume.
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
        """Restore tgtd from `Served`, because the records cannot be read. A running tgtd stays as it is; one that was
        killed serves the same as before, so the loss of the store costs no disk. Nothing is removed. Raises nothing."""
        if self._served.known is None:
            return
        try:
            targets, initiators = self._served.known.targets, self._served.known.initiators
            steps = await self._steps(targets, initiators)
            done, broken = await self._take(step for step in steps if not isinstance(step, plan.Reload | plan.Remove))
        except VeeryError as error:
            log.error("tgtd: cannot restore what it served before: %s", error.message)
            return
        for tid, trouble in broken.items():
            log.error("target %d: %s", tid, trouble.message)
        if done:
            log.warning("tgtd: serves the same as before, because the records cannot be read now")

    async def _steps(self, targets: Sequence[plan.Wanted], initiators: Sequence[Initiator]) -> tuple[plan.Step, ...]:
        return plan.decide(targets, initiators, await self._server.targets(), await self._server.accounts())

    async def _take(self, steps: Iterable[plan.Step]) -> tuple[tuple[plan.Step, ...], dict[int, VeeryError]]:
        """Take `steps`; return those taken, and the errors by tid. An error skips the other steps of its target."""
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
        """Return whether a target here excludes `initiator` on purpose, not only because its ACL is not yet restored.
        None if there is no target, or tgtd does not answer. Needs no records."""
        try:
            targets = await self._server.targets()
        except VeeryError:
            return None
        if not targets:
            return None
        return any(initiator not in target.acl and not self._served.admits(target.iqn, initiator) for target in targets)

    async def cut(self, name: str, initiator: str) -> int:
        """Prove that `initiator` can no longer write to volume `name`; return the number of closed sessions. The pair
        must be in `Records.denied` first, or the next reconcile admits it again. Raises OutcomeUnknown. Raises Failed
        if the removal could not be written to `Served`."""
        volume = await self.get(name)
        user = next((one.user for one in await self._records.initiators() if one.iqn == initiator), "")
        async with self._lock:
            self._served.shut(initiator, volume.iqn)
            return await self._server.cut(initiator, iqn=volume.iqn, user=user)

    async def cut_all(self, initiator: str, addresses: Collection[str] = ()) -> int:
        """Do the same as `cut` for every target of this node: a fenced node may have a session at any. `addresses` are
        that node's only: sessions from there under another name are closed too. Raises as `cut`."""
        user = next((one.user for one in await self._records.initiators() if one.iqn == initiator), "")
        async with self._lock:
            self._served.shut(initiator)
            return await self._server.cut(initiator, user=user, addresses=addresses)

    async def way_in(self, initiator: str, addresses: Collection[str] = ()) -> str:
        """Return how `initiator`, or a connection from `addresses`, could still write to a volume here; "" if not.
        Nothing is changed."""
        async with self._lock:
            return await self._server.way_in(initiator, addresses)

    async def expel(self, strangers: Iterable[Stranger]) -> None:
        """Close these connections; their I/O may still end. Raises Failed."""
        async with self._lock:
            for each in strangers:
                await self._server.close_connection(each.tid, each.sid, each.cid)

    async def _recorded(self) -> _Recorded:
        """Read the records. The denied pairs are read last, so that they are complete for every volume read. Raises the
        errors of the store."""
        here = {volume.name: volume for volume in await self.here()}
        initiators = tuple(one for one in await self._records.initiators() if one.password)
        return _Recorded(initiators, frozenset(await self._records.denied()), here)

    async def _wanted(self, recorded: _Recorded) -> tuple[list[plan.Wanted], dict[int, VeeryError]]:
        """Return the wanted targets, and errors for the volumes whose bytes are missing. Those stay in the plan: tgtd
        may have the file open, so their access must still be correct."""
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
                    f"volume {volume.name}: {volume.path} is missing",
                    hint=f"restore it, or: veery volume delete {volume.name}",
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
        """Return the wanted target of heartbeats. Raises Failed if its file cannot be made."""
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
        """Mark the volume as not ready, and only then check that no domain uses it. A starting domain first claims its
        name and then reads the mark, so at least one of the two sees the other. If a domain uses it, restore the mark
        and raise Refused."""
        await self._records.put(replace(volume, ready=False))
        try:
            await self._unused(volume)
        except BaseException:
            await self._insist(volume)
            raise

    async def _insist(self, volume: Volume) -> None:
        """Restore the record, with several attempts."""
        for pause in (0.5, 1, 2, 4, 8, None):
            try:
                await self._records.put(volume)
                return
            except VeeryError as error:
                log.error("volume %s: its record says not ready, wrongly: %s", volume.name, error.message)
            if pause:
                await self._clock.sleep(pause)

    async def _withdraw(self, volume: Volume) -> None:
        """Remove the volume's target."""
        async with self._lock:
            self._served.drop(volume.iqn)
            for target in await self._server.targets():
                if target.iqn == volume.iqn:
                    await self._server.remove_target(target)

    async def _unused(self, volume: Volume) -> None:
        users = await self._records.users(volume.name)
        if users:
            raise Refused(f"volume {volume.name} is used by {', '.join(users)}", hint="shut the domain down first")

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

    def _ready(self, volume: Volume) -> Volume:
        if not volume.ready:
            raise Refused(
                f"volume {volume.name} is not ready: its creation or filling was interrupted",
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
