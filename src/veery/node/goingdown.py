"""An orderly shutdown of the machine: its domains are ended here and their names released, so that they start elsewhere
at once.

A daemon that is only stopped or upgraded leaves its domains running. This module is for the machine itself."""

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

GUESTS_S = 20.0  # time for guests to power off by themselves
END_S = 10.0  # time to end one domain and release its name
LOOK_S = 0.5
OVER = (DomainState.SHUTDOWN, DomainState.CRASHED)


class Home(Protocol):
    """The domains of this node."""

    async def list(self) -> tuple[DomainReading, ...]:
        """Return every domain of this node."""
        ...

    async def power_off(self, name: str) -> None:
        """Ask the guest to power off; the domain stays wanted. Raises Refused, Failed."""
        ...

    async def put_away(self, name: str) -> None:
        """End the domain and release its name; it stays wanted. It is over when this returns.

        Raises Refused, Failed, StoreUnavailable, OutcomeUnknown: then the name still belongs to this node."""
        ...


async def end_domains(home: Home, heartbeat: Heartbeat, clock: Clock) -> None:
    """End every domain here, after this node was announced as away.

    The lease is given up first, so that no domain starts here any more. A domain that cannot be ended keeps its owner
    key: then the others fence this node before they start it."""
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
        log.warning("domain=%s could not be asked to power off: %s", name, error)


async def _powered_off(home: Home, names: Sequence[str], clock: Clock) -> None:
    """Return when all have powered off, or when their time is over."""
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
        log.error("domain=%s could not be ended and released: %s", name, error)
