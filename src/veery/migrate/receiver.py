"""The target's side of a move."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from veery.cluster import owner as owners
from veery.config.settings import MoveLimits
from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.host.contexts import current
from veery.hypervisor.base import DiskMover
from veery.migrate import compression, conntrack, disks, postcopy, wire
from veery.migrate.bandwidth import count
from veery.migrate.base import MoveContext
from veery.migrate.check import inspect, refusal
from veery.migrate.journal import Line, Side
from veery.migrate.pump import Pump, inlet
from veery.migrate.relocation import RelocationServer
from veery.migrate.settle import Settler
from veery.model.cluster import LEVEL, Owner, Reservation
from veery.model.move import Phase
from veery.model.volume import Attachments, CarriedDisk
from veery.storage import local

log = logging.getLogger(__name__)

OFFER_DEADLINE_S = 15.0
WAIT_INTERVAL_S = 1.0
DEFAULT_LIMITS = MoveLimits()
STREAM_DEADLINE_S = 20.0
HEAD_START_S = 0.01  # the watch has so long to report the owner before the store is asked
LOOK_INTERVAL_S = 0.02  # between two checks that the loaded half domain still exists
FINISH_DEADLINE_S = 180.0  # from Loaded to Finish: the source may be asking a slow store


class Receiver:
    """Takes domains in. One call of `take` serves one control connection."""

    def __init__(self, context: MoveContext, settler: Settler, limits: MoveLimits = DEFAULT_LIMITS) -> None:
        """Take in at most `limits.into` domains at once. The daemon sets `server` once both are built."""
        self._places = asyncio.Semaphore(limits.into)
        self._context, self._settler = context, settler
        self.server: RelocationServer | None = None
        self._arriving: dict[str, wire.Offer] = {}

    def arriving(self, domain: str) -> wire.Offer | None:
        """Return the offer under which `domain` is arriving here, or None."""
        return self._arriving.get(domain)

    async def take(self, channel: wire.Channel) -> None:
        """Serve one control connection to its end."""
        try:
            message = await channel.receive(OFFER_DEADLINE_S)
        except wire.Unfit as error:
            log.warning("refused: %s", error.message)
            await channel.send(wire.Problem("refused", error.message, error.hint))
            return
        if isinstance(message, wire.Offer):
            try:
                await self._take_in(channel, message)
            except VeeryError as error:
                log.warning("move=%s domain=%s not taken in: %s", message.move, message.domain, error.message)
                with contextlib.suppress(Failed):
                    await channel.send(wire.Problem.of(error))
            else:
                await self._announce(message)
        elif isinstance(message, wire.Pour):
            await count(channel, message)
        elif isinstance(message, wire.Mend | wire.Ask):
            await postcopy.take(self._context, channel, message)
        else:
            await channel.send(wire.Problem("refused", "the first message must be an offer"))

    async def _announce(self, offer: wire.Offer) -> None:
        """Tell the network, in several rounds, where the domain is now; it runs already."""
        try:
            _, attachments = await self._context.driver.spec(offer.spec.uuid)
            await self._context.attacher.announce(attachments)
        except VeeryError as error:  # the domain may have moved on or ended
            log.warning("move=%s domain=%s not announced: %s", offer.move, offer.domain, error.message)

    async def _take_in(self, channel: wire.Channel, offer: wire.Offer) -> None:
        if channel.peer != offer.source:
            raise Refused(f"{channel.peer} offers a domain in the name of {offer.source}")
        if offer.domain in self._arriving:
            raise Refused(f"{offer.domain} is already on its way here")
        self._arriving[offer.domain] = offer
        try:
            async with self._place(channel, offer):
                spec = disks.staying(offer.spec, offer.disks)
                found = await inspect(self._context, spec, offer.luggage, offer.driver, post_copy=offer.post_copy)
                if found := (*found, *disks.blockers(self._context.driver, self._choose(offer))):
                    raise refusal(self._context.node, offer.domain, found)
                await self._reserved(channel, offer)
        finally:
            del self._arriving[offer.domain]

    @contextlib.asynccontextmanager
    async def _place(self, channel: wire.Channel, offer: wire.Offer) -> AsyncIterator[None]:
        """Hold one of the places for arriving domains. Raises Failed when the source left while it waited."""
        while True:
            try:
                async with asyncio.timeout(WAIT_INTERVAL_S if self._places.locked() else None):
                    await self._places.acquire()
                break
            except TimeoutError:
                log.info("move=%s domain=%s waits for a place", offer.move, offer.domain)
                await channel.send(wire.Wait())
        try:
            yield
        finally:
            self._places.release()

    async def _reserved(self, channel: wire.Channel, offer: wire.Offer) -> None:
        """Promise, prepare, load, then do what the owner key says."""
        context = self._context
        line = Line(
            move=offer.move,
            side=Side.TARGET,
            domain=offer.domain,
            uuid=offer.spec.uuid,
            boot=offer.boot,
            source=offer.source,
            target=context.node,
            owner_revision=offer.owner_revision,
            paused=offer.paused,
            disks=self._choose(offer),
            post_copy=offer.post_copy,
            phase=Phase.PREPARE,
        )
        context.journal.write(line)
        line, reservation = await self._promised(offer, line)
        attachments: Attachments | None = None
        try:
            await context.hold.at(Phase.PREPARE)
            line = await self._make_disks(line)
            spec = disks.arrived(offer.spec, line.disks)
            attachments = await context.attacher.attach(spec)
            await context.driver.prepare(
                spec,
                attachments,
                offer.luggage,
                offer.backlog,
                tls=offer.tls and not offer.packed,
                peer=offer.source,
                post_copy=offer.post_copy,
            )
            async with self._watching(reservation, offer.boot) as given:
                word = await self._load(channel, offer, line)
                async with conntrack.admitting(context.attacher, offer.move, word.flows) as entered:
                    await self._check_owner(line, given)
                    await asyncio.wait({entered}, timeout=conntrack.TIMEOUT_S)
                    await context.driver.finish(offer.spec.uuid, paused=offer.paused, started=word.started)
        except (VeeryError, OSError, TimeoutError) as error:
            await self._give_up(line, attachments)
            if isinstance(error, VeeryError):
                raise
            raise Failed(f"{context.node}: {error or 'timeout'}") from error
        except asyncio.CancelledError:
            self._settler.later(line)
            raise
        # In post-copy the journal keeps the line until all of the domain's memory is here.
        (self._settler.later if line.post_copy else context.journal.strike)(line)
        log.info("move=%s domain=%s runs here", line.move, line.domain)
        await channel.send(wire.Running())

    async def _promised(self, offer: wire.Offer, line: Line) -> tuple[Line, Reservation]:
        """Return the promise, and `line` with it. It comes before any file, tap or process: the store says whether the
        source owns the domain at all. Raises the store's error; nothing is then left of the move here."""
        try:
            # cut short, it could leave a promise that no journal names
            reservation = await tasks.to_the_end(self._reserve(offer))
            return self._context.journal.write(replace(line, reservation_revision=reservation.revision)), reservation
        except Refused:
            self._context.journal.strike(line)
            raise
        except VeeryError:
            await self._give_up(line, None)
            raise
        except asyncio.CancelledError:
            self._settler.later(line)
            raise

    async def _reserve(self, offer: wire.Offer) -> Reservation:
        return await owners.reserve(
            self._context.store,
            offer.domain,
            offer.move,
            offer.source,
            self._context.node,
            revision=offer.owner_revision,
            volumes={disk.volume for disk in offer.spec.disks if disk.volume},
        )

    @contextlib.asynccontextmanager
    async def _watching(self, reservation: Reservation, boot: str) -> AsyncIterator[asyncio.Task[Owner]]:
        """Watch the owner key from the reservation on; the task ends when the key names this node. So the news of
        COMMIT arrives as soon as the source's Finish, and the gap needs no extra question to the store."""
        watching = asyncio.create_task(
            owners.given(self._context.store, reservation, boot), name=f"{reservation.move} watches the owner"
        )
        try:
            yield watching
        finally:
            await tasks.stop(watching)

    async def _check_owner(self, line: Line, given: asyncio.Task[Owner]) -> None:
        """Check in the store that this node owns the domain: the source has just said so, and the watch has usually
        reported it by now. Raises Failed where it is not so, StoreUnavailable."""
        await asyncio.wait({given}, timeout=HEAD_START_S)
        if given.done() and given.exception() is None:
            return
        owner = await owners.read(self._context.store, line.domain)
        if owner is None or owner.node != self._context.node or owner.revision <= line.owner_revision:
            raise Failed(f"the source handed {line.domain} over, but the store names another owner")

    async def _load(self, channel: wire.Channel, offer: wire.Offer, line: Line) -> wire.Finish:
        """Send Ready, load the stream, send Loaded, wait for Finish. Returns the source's last message, which says that
        this node owns the domain."""
        context = self._context
        assert self.server is not None
        async with contextlib.AsyncExitStack() as stack:
            token, arrival = stack.enter_context(self.server.expect())
            ready = wire.Ready(
                token=token,
                reservation=line.reservation_revision,
                disks=line.disks,
                hypervisor=(await context.driver.abilities()).version,
                level=LEVEL,
            )
            disk_pump: Pump | None = None
            if line.disks:
                disk_token, disk_pump = await stack.enter_async_context(self._disks_come_in(offer, line.disks))
                ready = msgspec.structs.replace(ready, disk_token=disk_token)
            await channel.send(ready)
            word = channel.expect((wire.Poised, wire.Finish), None)
            listening: asyncio.Task[Any] = asyncio.create_task(word, name=f"{offer.move} listens")
            loading = asyncio.create_task(self._receive(offer, arrival, disk_pump), name=f"{offer.move} loads")
            try:
                await asyncio.wait({listening, loading}, return_when=asyncio.FIRST_COMPLETED)
                if loading.done():
                    loading.result()
                elif isinstance(listening.result(), wire.Poised):  # raises where the source is gone
                    listening = asyncio.create_task(channel.expect(wire.Finish, None), name=f"{offer.move} listens")
                else:
                    raise Failed(f"{offer.source} sent Finish before everything was loaded")
                await channel.send(wire.Loaded())  # before the journal: the domain is paused from here on
                context.journal.write(line.at(Phase.LOADED))
                async with asyncio.timeout(FINISH_DEADLINE_S):
                    finish = await self._await_finish(listening, offer)
                await loading  # in post-copy the devices, which it needs to run, are only complete now
                return finish
            finally:
                await tasks.stop(listening, loading)

    async def _await_finish(self, listening: asyncio.Task[Any], offer: wire.Offer) -> wire.Finish:
        """Return when the source has said that this node owns the domain. Raises Failed when the half domain here ends
        before that: there must be no COMMIT then, since the source's copy is complete."""
        while not listening.done():
            await asyncio.wait({listening}, timeout=LOOK_INTERVAL_S)
            if not await self._context.driver.stands(offer.spec.uuid):
                raise Failed(f"{offer.domain} ended on {self._context.node} before it was handed over")
        finish: wire.Finish = listening.result()
        return finish

    async def _receive(self, offer: wire.Offer, arrival: asyncio.Future[socket.socket], disk_pump: Pump | None) -> None:
        while not arrival.done():  # the disks come first, and may take long
            await asyncio.wait({arrival}, timeout=STREAM_DEADLINE_S)
            if not arrival.done() and not (disk_pump and disk_pump.open):
                raise Failed(f"{offer.source} opened no stream")
        stream = arrival.result()
        await self._context.hold.at(Phase.COPY)
        async with contextlib.AsyncExitStack() as way:
            if offer.packed:
                assert self.server is not None
                tls = current(self.server.tls) if offer.tls else None
                admits = self.server.admission.lets_in
                stream = await way.enter_async_context(
                    compression.unpacking(stream, peer=offer.source, tls=tls, admits=admits)
                )
            await self._context.driver.receive(offer.spec.uuid, stream)

    # ---- disks that come along

    def _choose(self, offer: wire.Offer) -> tuple[CarriedDisk, ...]:
        """Return the disks of the offer, each with its file here; the files are not made yet."""
        chosen = local.choose(offer.disks, offer.disk_dir or self._context.disk_folder, offer.domain)
        return tuple(replace(disk, inode=0) for disk in chosen)

    async def _make_disks(self, line: Line) -> Line:
        """Make the disks' files; the journal names each file before it holds any data."""
        for number, disk in enumerate(line.disks):
            taken = (*line.disks[:number], local.take(disk), *line.disks[number + 1 :])
            line = self._context.journal.write(replace(line, disks=taken))
        for disk in line.disks:
            await local.form(disk)
        return line

    @contextlib.asynccontextmanager
    async def _disks_come_in(self, offer: wire.Offer, files: Sequence[CarriedDisk]) -> AsyncIterator[tuple[str, Pump]]:
        """Let the source write the half domain's disks. Yields the token that its streams must show, and the pump that
        carries them."""
        driver = self._context.driver
        assert self.server is not None and isinstance(driver, DiskMover)
        names = [disk.vdev for disk in offer.disks]
        pump = inlet(
            await driver.export_disks(offer.spec.uuid, names, tls=offer.tls, peer=offer.source), STREAM_DEADLINE_S
        )
        try:
            with self.server.admit(pump.carry) as token:
                syncing = asyncio.create_task(local.sync(files), name=f"{offer.move} syncs disks")
                try:
                    yield token, pump
                finally:
                    await tasks.stop(syncing)
        finally:
            await pump.close()

    async def _give_up(self, line: Line, attachments: Attachments | None) -> None:
        """After a failure, find out who owns the domain, then obey. Usually this destroys the copy here."""
        try:
            owner = await self._settler.ask(line, deadline=5)
            if owner is not None and owner.node == self._context.node and owner.boot == line.boot:
                if line.post_copy:
                    self._settler.later(line)
                    return
                await self._context.driver.finish(line.uuid, paused=line.paused, started=owner.started)
                log.warning(
                    "move=%s domain=%s belongs to this node in the store, and runs here", line.move, line.domain
                )
            else:
                await self._context.driver.destroy(line.uuid)
                if attachments is not None:
                    await self._context.attacher.detach(attachments)
                await self._settler.clear_disks(line)
        except VeeryError as error:
            log.error("move=%s domain=%s not settled yet: %s", line.move, line.domain, error.message)
            self._settler.later(line)
            return
        self._context.journal.strike(line)
