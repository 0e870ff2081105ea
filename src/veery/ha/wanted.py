"""What a node tells the brain about its domains: whether each should run, and which starts do not count as failed."""

from __future__ import annotations

import logging

from veery.cluster.store import Store
from veery.errors import VeeryError
from veery.ha import orders
from veery.model.cluster import Owner

log = logging.getLogger(__name__)


class WantedRecords:
    """One a node. What the store does not take at once is kept, and written before the domain's name is released. Until
    then the brain sees an owner and starts nothing."""

    def __init__(self, store: Store, node: str) -> None:
        self._store, self._node = store, node
        self._unsaid: dict[str, tuple[bool, float]] = {}  # (wanted, stopping) by name, not yet stored
        self._cut_short: set[str] = set()  # boots of starts that failed because the store was absent

    async def say(self, name: str, *, wanted: bool, stopping: float = 0.0) -> None:
        """Tell the brain whether `name` should run, and when its guest was asked to shut down. Raises no VeeryError: if
        the store does not answer, the record is kept for `settle`."""
        self._unsaid[name] = wanted, stopping
        try:
            await self.settle(name)
        except VeeryError as error:
            log.warning("domain=%s wanted=%s is not recorded yet: %s", name, wanted, error.message)

    def unsaid(self) -> frozenset[str]:
        """Return the domains whose record the store has not taken yet."""
        return frozenset(self._unsaid)

    async def settle(self, name: str) -> None:
        """Write to the store what could not be written before. Raises StoreUnavailable, OutcomeUnknown."""
        if (said := self._unsaid.get(name)) is None:
            return
        wanted, stopping = said
        await orders.want(self._store, name, wanted=wanted, stopping=stopping)
        if wanted:
            await orders.stay(self._store, name)
        if self._unsaid.get(name) is said:  # else somebody has said otherwise meanwhile
            del self._unsaid[name]

    def cut_short(self, boot: str) -> None:
        """Note that the start of instance `boot` failed because the store did not answer."""
        self._cut_short.add(boot)

    async def spare(self, owner: Owner) -> None:
        """Do not count a start as a failed one if it was cut short because the store did not answer. Raises
        StoreUnavailable, OutcomeUnknown."""
        if owner.boot in self._cut_short:
            await orders.spare(self._store, owner.domain, self._node)
            self._cut_short.discard(owner.boot)

    async def give_back(self, owner: Owner) -> None:
        """Release the name of a domain of this node that has ended. Raises what owner.release raises."""
        await self.settle(owner.domain)
        await self.spare(owner)
        await orders.give_back(self._store, owner)
