"""What this node does for the brain and reports to it: its state, a domain started by ticket, a copy ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping

from veery.cluster.keys import OWNERS, Unreadable
from veery.cluster.presence import Heartbeat
from veery.cluster.store import Entry
from veery.cluster.watch_cache import WatchCache
from veery.errors import Refused, VeeryError
from veery.model.cluster import Owner
from veery.model.domain import DomainReading, DomainState
from veery.model.ha import NodeReading, RunningCopy, Ticket
from veery.node.domains import Domains

log = logging.getLogger(__name__)

STALE = "stale"  # in place of a boot: the owner key names another node or none
UNCLEAR = "?"  # in place of a boot: the store did not answer


def why_still(reading: DomainReading, node: str, *, guarded: bool, at_work: str, theirs: bool) -> str:
    """Return why a domain on `node` does not run; "" if it runs. Pure.

    `guarded`: the guard holds it. `at_work`: the move or order that is at work on it, "" if there is none. `theirs`:
    its owner key names another node or none."""
    name = reading.name
    match reading.state:
        case DomainState.SHUTDOWN | DomainState.CRASHED:
            how = "has crashed" if reading.state is DomainState.CRASHED else "has shut down"
            return f"{how} and is kept; to remove it: veery --node {node} destroy {name}"
        case DomainState.PAUSED if guarded:
            return f"paused by the guard of {node}: it runs again when the node has its lease back"
        case DomainState.PAUSED if reading.reason and at_work:
            return f"stopped by an error of its disk ({reading.reason}) on {node}; {at_work}"
        case DomainState.PAUSED if at_work:
            return f"paused on {node} for now: {at_work}"
        case DomainState.PAUSED if reading.reason:
            return (
                f"stopped by an error of its disk ({reading.reason}): to try again: veery --node {node} unpause {name}"
            )
        case DomainState.PAUSED if theirs:
            return f"a copy on {node} is paused, and another node owns the domain: veery doctor shows more"
        case DomainState.PAUSED:
            return f"paused by a user; to continue: veery --node {node} unpause {name}"
        case DomainState.INCOMING:
            return f"waits on {node} for the rest of its memory"
        case DomainState.DYING:
            return f"is being destroyed on {node}"
    return ""


class Recovery:
    """The brain's agent on a hypervisor."""

    def __init__(
        self,
        node: str,
        mirror: WatchCache,
        domains: Domains,
        heartbeat: Heartbeat,
        *,
        unsettled: Callable[[], Mapping[str, str]],
        held: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """`node` is the name of this node. `unsettled` returns the domains whose moves cannot be settled here, and why.
        `held` returns the UUIDs of domains that the guard holds. The daemon owns all of these."""
        self._unsettled, self._held = unsettled, held
        self._node, self._mirror, self._domains, self._heartbeat = node, mirror, domains, heartbeat
        self._decoded: dict[str, tuple[Entry, Owner | None]] = {}  # with the entry: a restored store reuses revisions

    async def reading(self) -> NodeReading:
        """Return the state of this node now. If the store does not answer, every copy counts as unclear."""
        try:
            boots: dict[str, str] | None = await self._boots()  # first: a start claims its name before it exists
        except VeeryError:
            boots = None
        readings, host = await self._domains.list(), await self._domains.driver.host()
        return NodeReading(
            started=self._heartbeat.started,
            room=host.memory_free + sum(reading.memory for reading in readings),
            load=min(1.0, os.getloadavg()[0] / max(1, host.cpus)),
            copies=tuple(
                RunningCopy(
                    domain=each.name,
                    boot=UNCLEAR if boots is None else boots.get(each.name, STALE),
                    ended=each.state in (DomainState.SHUTDOWN, DomainState.CRASHED),
                    said=why_still(
                        each,
                        self._node,
                        guarded=each.uuid in self._held(),
                        at_work=self._domains.locks.at_work(each.name),
                        theirs=boots is not None and each.name not in boots,
                    ),
                    faulty=each.faulty,
                )
                for each in readings
            ),
            unsettled=self._unsettled(),
        )

    async def start(self, ticket: Ticket) -> DomainReading:
        """Start the ticket's domain here. Raises Refused, Failed: it does not run here and has no owner."""
        if ticket.node != self._node:
            raise Refused(f"the order is for {ticket.node!a}, this is {self._node}", hint="veery node list")
        return await self._domains.launch(ticket)

    async def end(self, name: str, boot: str) -> None:
        """Kill the instance `boot` of domain `name` here, as `reading` reported it. It is gone when this returns.
        Another instance is not touched. Raises Refused if `boot` no longer matches."""
        if not any(each.name == name for each in await self._domains.list()):
            return
        async with self._domains.held(name) as reading:
            now = (await self._boots()).get(name, STALE)
            if now != boot:
                raise Refused(
                    f"domain {name} on {self._node} is another instance now", hint=f"veery why {name} shows its state"
                )
            log.warning("domain=%s boot=%s ended by the brain", name, boot)
            await self._domains.end(reading)

    async def _boots(self) -> dict[str, str]:
        """Return the boot of each domain that belongs to this node. Raises StoreUnavailable."""
        await self._mirror.current()
        entries = self._mirror.under(OWNERS.prefix)
        decoded: dict[str, tuple[Entry, Owner | None]] = {}
        for key, entry in entries.items():
            known = self._decoded.get(key)
            decoded[key] = known if known and known[0] is entry else (entry, _owner(entry))
        self._decoded = decoded
        owned = {OWNERS.name(key): owner for key, (_, owner) in decoded.items() if owner is not None}
        return {name: owner.boot for name, owner in owned.items() if owner.node == self._node}


def _owner(entry: Entry) -> Owner | None:
    try:
        return OWNERS.value(entry)
    except Unreadable:
        return None
