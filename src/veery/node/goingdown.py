"""The machine goes down in good order: its domains are ended here and given back, so that they start elsewhere at once.

A daemon that is merely stopped or upgraded leaves its domains running; this is for the end of the machine itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from veery.cluster.presence import Heartbeat
from veery.errors import VeeryError
from veery.host.clock import Clock
from veery.host.log import decision
from veery.model.domain import DomainReading, DomainState

log = logging.getLogger(__name__)

GUESTS_S = 20.0  # for guests to power off by themselves
END_S = 10.0  # to end one domain, and to give its name back
LOOK_S = 0.5
OVER = (DomainState.SHUTDOWN, DomainState.CRASHED)


class Home(Protocol):
    """The domains of this node."""

    async def list(self) -> tuple[DomainReading, ...]:
        """Every domain here."""
        ...

    async def power_off(self, name: str) -> None:
        """Ask its guest to power off; it stays wanted. Raises Refused, Failed."""
        ...

    async def put_away(self, name: str) -> None:
        """End it, and give its name back; it stays wanted. Over when this returns. Raises Refused, Failed,
        StoreUnavailable, OutcomeUnknown: then the name is still this node's."""
        ...


async def end_domains(home: Home, heartbeat: Heartbeat, clock: Clock) -> None:
    """End every domain here. Once this node is announced as away: its lease goes first, so that nothing is started here
    any more. What cannot be ended keeps its owner key: the others fence this node before they start it."""
    try:
        await heartbeat.withdraw()
    except VeeryError as error:
        log.error(decision("going-down.stay", reason=f"the store does not answer: {error.message}"))
        return
    names = [reading.name for reading in await home.list()]
    if not names:
        return
    log.warning(decision("going-down", domains=",".join(names)))
    await asyncio.gather(*(_ask(home, name) for name in names))
    await _powered_off(home, names, clock)
    await asyncio.gather(*(_put_away(home, name) for name in names))


async def _ask(home: Home, name: str) -> None:
    try:
        async with asyncio.timeout(END_S):
            await home.power_off(name)
    except (VeeryError, TimeoutError) as error:
        log.warning("domain=%s is not asked to power off: %s", name, error)


async def _powered_off(home: Home, names: Sequence[str], clock: Clock) -> None:
    """Return when all have powered off, or have had their time."""
    ends = clock.now() + GUESTS_S
    while clock.now() < ends:
        if not [each for each in await home.list() if each.name in names and each.state not in OVER]:
            return
        await clock.sleep(LOOK_S)


async def _put_away(home: Home, name: str) -> None:
    try:
        async with asyncio.timeout(END_S):
            await home.put_away(name)
    except (VeeryError, TimeoutError) as error:
        log.error("domain=%s is not given back: %s", name, error)
