"""The target's side of a move."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

from veery.cluster import owner as owners
from veery.errors import Failed, Refused, VeeryError
from veery.host import tasks
from veery.migrate import wire
from veery.migrate.base import Ground
from veery.migrate.journal import Line, Side
from veery.migrate.relocation import RelocationServer
from veery.migrate.settle import Settler
from veery.model.cluster import Owner, Reservation
from veery.model.move import Phase
from veery.model.volume import Attachments

log = logging.getLogger(__name__)

OFFER_DEADLINE = 15.0
STREAM_DEADLINE = 20.0
HEAD_START = 0.01  # seconds for the watch to tell who the owner is, before the store is asked
FINISH_DEADLINE = 180.0  # from Loaded to Finish: the source may be asking a slow store


class Receiver:
    """Takes domains in. One call of `take` is one control connection."""

    def __init__(self, ground: Ground, settler: Settler) -> None:
        """`server` is set by the daemon once both are built."""
        self._ground, self._settler = ground, settler
        self.server: RelocationServer | None = None
        self._arriving: dict[str, wire.Offer] = {}

    def arriving(self, domain: str) -> wire.Offer | None:
        """The offer under which `domain` is on its way here, if it is."""
        return self._arriving.get(domain)

    async def take(self, channel: wire.Channel) -> None:
        """Serve one control connection to its end."""
        message = await channel.receive(OFFER_DEADLINE)
        if isinstance(message, wire.Offer):
            try:
                await self._take_in(channel, message)
            except VeeryError as error:
                log.warning("move=%s domain=%s not taken in: %s", message.move, message.domain, error.message)
                with contextlib.suppress(Failed):
                    await channel.send(wire.Problem.of(error))
        else:
            await channel.send(wire.Problem("refused", "begin with an offer"))

    async def _take_in(self, channel: wire.Channel, offer: wire.Offer) -> None:
        if channel.peer != offer.source:
            raise Refused(f"{channel.peer} offers a domain in the name of {offer.source}")
        if offer.domain in self._arriving:
            raise Refused(f"{offer.domain} is already on its way here")
        self._arriving[offer.domain] = offer
        try:
            await self._check(offer)
            await self._reserved(channel, offer)
        finally:
            del self._arriving[offer.domain]

    async def _check(self, offer: wire.Offer) -> None:
        ground = self._ground
        reasons = list(await ground.attacher.blockers(offer.spec))
        if offer.driver != ground.driver.name:
            reasons.insert(0, f"its driver is {ground.driver.name}, the domain's is {offer.driver}")
        for reading in await ground.driver.list():
            if reading.uuid == offer.spec.uuid or reading.name == offer.domain:
                reasons.append(f"it still has a domain {reading.name} (id {reading.domid})")
        if reasons:
            raise Refused(f"{ground.node} cannot take {offer.domain}: {'; '.join(reasons)}", hint="nothing was changed")

    async def _reserved(self, channel: wire.Channel, offer: wire.Offer) -> None:
        """Promise, prepare, load, and go as the owner key says."""
        ground = self._ground
        line = Line(
            move=offer.move,
            side=Side.TARGET,
            domain=offer.domain,
            uuid=offer.spec.uuid,
            boot=offer.boot,
            source=offer.source,
            target=ground.node,
            owner_revision=offer.owner_revision,
            paused=offer.paused,
            phase=Phase.PREPARE,
        )
        ground.journal.write(line)
        attachments: Attachments | None = None
        try:
            await ground.hold.at(Phase.PREPARE)
            attachments = await ground.attacher.attach(offer.spec)
            reserving = asyncio.create_task(self._reserve(offer), name=f"{offer.move} reserves")
            try:
                await ground.driver.prepare(
                    offer.spec, attachments, offer.luggage, offer.backlog, tls=offer.tls, peer=offer.source
                )
            finally:  # to its end: a promise made after we have given up would stand for ever
                await asyncio.wait({reserving})
                failed = reserving.exception()
            if failed is not None:
                raise failed
            reservation = reserving.result()
            line = ground.journal.write(replace(line, reservation_revision=reservation.revision))
            async with self._watching(reservation, offer.boot) as given:
                await self._load(channel, offer, line)
                await self._make_sure(line, given)
                await ground.driver.finish(offer.spec.uuid, paused=offer.paused)
        except (VeeryError, OSError, TimeoutError) as error:
            await self._give_up(line, attachments)
            if isinstance(error, VeeryError):
                raise
            raise Failed(f"{ground.node}: {error or 'timeout'}") from error
        except asyncio.CancelledError:
            self._settler.later(line)
            raise
        ground.journal.strike(line)
        log.info("move=%s domain=%s runs here", line.move, line.domain)
        await channel.send(wire.Running())

    async def _reserve(self, offer: wire.Offer) -> Reservation:
        """The promise, while the half domain starts; it stands before the source hears that we are ready."""
        return await owners.reserve(
            self._ground.store,
            offer.domain,
            offer.move,
            offer.source,
            self._ground.node,
            revision=offer.owner_revision,
        )

    @contextlib.asynccontextmanager
    async def _watching(self, reservation: Reservation, boot: str) -> AsyncIterator[asyncio.Task[Owner]]:
        """Watch the owner key from the reservation on; the task ends when we are seen to own the domain. So the
        news of COMMIT is here as soon as the source's own word, and need not be asked for in the gap."""
        watching = asyncio.create_task(
            owners.given(self._ground.store, reservation, boot), name=f"{reservation.move} watches the owner"
        )
        try:
            yield watching
        finally:
            await tasks.stop(watching)

    async def _make_sure(self, line: Line, given: asyncio.Task[Owner]) -> None:
        """The source has just said that we own the domain: see it in the store, which the watch has usually told by
        now. Raises Failed where it is not so, StoreUnavailable."""
        await asyncio.wait({given}, timeout=HEAD_START)
        if given.done() and given.exception() is None:
            return
        owner = await owners.read(self._ground.store, line.domain)
        if owner is None or owner.node != self._ground.node or owner.revision <= line.owner_revision:
            raise Failed(f"{line.domain} was called ours, but the store says otherwise")

    async def _load(self, channel: wire.Channel, offer: wire.Offer, line: Line) -> None:
        """Ready, stream, Loaded, Finish; returns when the source has said that we own the domain."""
        ground = self._ground
        assert self.server is not None
        with self.server.expect() as (token, arrival):
            await channel.send(wire.Ready(token=token, reservation=line.reservation_revision))
            listening = asyncio.create_task(channel.expect(wire.Finish, None), name=f"{offer.move} listens")
            loading = asyncio.create_task(self._receive(offer, arrival), name=f"{offer.move} loads")
            try:
                await asyncio.wait({listening, loading}, return_when=asyncio.FIRST_COMPLETED)
                if not loading.done():
                    listening.result()  # raises: the source is gone
                    raise Failed(f"{offer.source} said it was finished before everything was loaded")
                loading.result()
                await channel.send(wire.Loaded())  # before the journal: the domain stands still from here on
                ground.journal.write(line.at(Phase.LOADED))
                async with asyncio.timeout(FINISH_DEADLINE):
                    await listening
            finally:
                await tasks.stop(listening, loading)

    async def _receive(self, offer: wire.Offer, arrival: asyncio.Future[socket.socket]) -> None:
        try:
            async with asyncio.timeout(STREAM_DEADLINE):
                stream = await arrival
        except TimeoutError as error:
            raise Failed(f"{offer.source} opened no stream") from error
        await self._ground.hold.at(Phase.COPY)
        await self._ground.driver.receive(offer.spec.uuid, stream)

    async def _give_up(self, line: Line, attachments: Attachments | None) -> None:
        """Something failed: make sure who owns the domain, then obey. Usually that means to drop our copy."""
        try:
            owner = await self._settler.ask(line, deadline=5)
            if owner is not None and owner.node == self._ground.node and owner.boot == line.boot:
                await self._ground.driver.finish(line.uuid, paused=line.paused)
                log.warning("move=%s domain=%s is ours by the store, and runs here", line.move, line.domain)
            else:
                await self._ground.driver.destroy(line.uuid)
                if attachments is not None:
                    await self._ground.attacher.detach(attachments)
        except VeeryError as error:
            log.error("move=%s domain=%s not settled yet: %s", line.move, line.domain, error.message)
            self._settler.later(line)
            return
        self._ground.journal.strike(line)
