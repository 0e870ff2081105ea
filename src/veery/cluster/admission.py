"""Admission of certificates: veeryd accepts those that the store records for a node, by name and serial number.

The CA's signature alone is not enough: it outlives the node's membership. A watch of certificate/ keeps the set up
to date. After a renewal both certificates are accepted until the node revokes the former one. While the store does
not answer, the last known set stays in force; a file keeps it over a restart.
An open connection is cut as soon as its certificate is no longer in the set."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from veery.cluster.keys import CERTIFICATES, Unreadable
from veery.cluster.store import Change, Compacted, Entry, Store
from veery.errors import Failed, VeeryError
from veery.host.files import write_atomic
from veery.host.log import decision
from veery.host.tls import Shown
from veery.model import codec

log = logging.getLogger(__name__)

RESCAN_S = 15.0  # the interval of full reads of the store, in case a watch falls silent without an error
RETRY_S = 0.5
LOOKUP_TIMEOUT_S = 5.0


class Admission:
    """The set of accepted certificates. Each daemon has one; `run` is its task."""

    def __init__(self, store: Store, own: Shown, file: Path, *, rescan: float = RESCAN_S) -> None:
        """`own` is this node's certificate, which is always accepted (set it after a renewal). `file` keeps the others
        over a restart. `run` reads the whole set from the store every `rescan` seconds."""
        self._store, self._file, self._rescan = store, file, rescan
        self.own = own
        self._serials: dict[str, tuple[str, ...]] = self._remembered()
        self._standing: dict[object, tuple[Shown, Callable[[], None]]] = {}
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Follow the store until cancelled."""
        logged = ""
        while True:
            try:
                async with asyncio.timeout(self._rescan):
                    await self._follow()
            except TimeoutError:
                logged = ""
                continue
            except VeeryError as error:
                if error.message != logged:
                    log.warning("admission: the last known certificates stay in force: %s", error.message)
                logged = error.message
            await asyncio.sleep(RETRY_S)

    def admits(self, shown: Shown) -> bool:
        """Return whether this certificate belongs to a node of the cluster, by the set known here."""
        return shown == self.own or (shown.serial != "" and shown.serial in self._serials.get(shown.name, ()))

    async def lets_in(self, shown: Shown | None) -> bool:
        """Return as `admits`, but ask the store about an unknown certificate: its node may have just joined."""
        if shown is None:
            return False
        if self.admits(shown):
            return True
        async with self._looking:  # one request at a time: a removed node may try again and again
            if self.admits(shown):
                return True
            try:
                async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                    entry = await self._store.get(CERTIFICATES.key(shown.name))
            except (VeeryError, TimeoutError):
                return False
            if entry is not None:
                self._take(shown.name, entry)
                self._settle()
            return self.admits(shown)

    @contextlib.contextmanager
    def standing(self, shown: Shown, cut: Callable[[], None]) -> Iterator[None]:
        """Call `cut` once if the certificate stops being accepted in this context, or is not accepted at its start."""
        mark = object()
        self._standing[mark] = (shown, cut)
        try:
            self._cut()
            yield
        finally:
            self._standing.pop(mark, None)

    # ---- inside
    async def _follow(self) -> None:
        snapshot = await self._store.scan(CERTIFICATES.prefix)
        gone = set(self._serials) - {CERTIFICATES.name(entry.key) for entry in snapshot.entries}
        for name in gone:
            del self._serials[name]
        for entry in snapshot.entries:
            self._take(CERTIFICATES.name(entry.key), entry)
        self._settle()
        with contextlib.suppress(Compacted):
            async with contextlib.aclosing(self._store.watch(CERTIFICATES.prefix, snapshot.revision)) as changes:
                async for change in changes:
                    self._apply(change)

    def _apply(self, change: Change) -> None:
        name = CERTIFICATES.name(change.key)
        if change.entry is None:
            self._serials.pop(name, None)
        else:
            self._take(name, change.entry)
        self._settle()

    def _take(self, name: str, entry: Entry) -> None:
        """Remember one record. An unreadable record leaves the known serials of that node unchanged."""
        with contextlib.suppress(Unreadable):
            record = CERTIFICATES.value(entry)
            self._serials[name] = tuple(each for each in (record.serial, record.former) if each)

    def _settle(self) -> None:
        """Cut the connections that are no longer accepted, and write the set to the file."""
        self._cut()
        data = codec.encode(dict(sorted(self._serials.items())))
        try:
            if not self._file.exists() or self._file.read_bytes() != data:
                write_atomic(self._file, data)
        except OSError as error:
            log.warning("cannot write %s: %s", self._file, error.strerror)

    def _cut(self) -> None:
        for mark, (shown, cut) in list(self._standing.items()):
            if not self.admits(shown):
                del self._standing[mark]
                reason = "its certificate is no longer accepted"
                log.warning(decision("connection.cut", node=shown.name, serial=shown.serial, reason=reason))
                cut()

    def _remembered(self) -> dict[str, tuple[str, ...]]:
        try:
            kept = codec.decode(self._file.read_bytes(), dict[str, str | tuple[str, ...]])
            return {name: (each,) if isinstance(each, str) else each for name, each in kept.items()}
        except (OSError, Failed):
            return {}
