"""Which certificates are let in: those that the store names as a node's, by name and serial number.

The CA's signature alone is not enough: it outlives the node's membership. A watch of certificate/ keeps the set up
to date. A renewed certificate and the one before are both let in until the node puts the latter out. While the store
does not answer, the last set that it told stays in force; a file keeps it over a restart.
A connection that stands is cut as soon as its certificate is no longer in the set."""

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

RESCAN_S = 15.0  # the store is read whole this often, should a watch be silent without saying so
RETRY_S = 0.5
LOOK_DEADLINE_S = 5.0


class Admission:
    """One a daemon; `run` is its task."""

    def __init__(self, store: Store, own: Shown, file: Path, *, rescan: float = RESCAN_S) -> None:
        """`own` is this node's certificate, which is always let in (set it after a renewal); `file` keeps the others
        over a restart; the store is read whole every `rescan` seconds."""
        self._store, self._file, self._rescan = store, file, rescan
        self.own = own
        self._serials: dict[str, tuple[str, ...]] = self._remembered()
        self._standing: dict[object, tuple[Shown, Callable[[], None]]] = {}
        self._looking = asyncio.Lock()

    async def run(self) -> None:
        """Follow the store, for ever."""
        said = ""
        while True:
            try:
                async with asyncio.timeout(self._rescan):
                    await self._follow()
            except TimeoutError:
                said = ""
                continue
            except VeeryError as error:
                if error.message != said:
                    log.warning("admission: the last known certificates stay in force: %s", error.message)
                said = error.message
            await asyncio.sleep(RETRY_S)

    def admits(self, shown: Shown) -> bool:
        """Whether this certificate is one of a node of the cluster, as far as is known here."""
        return shown == self.own or (shown.serial != "" and shown.serial in self._serials.get(shown.name, ()))

    async def lets_in(self, shown: Shown | None) -> bool:
        """As `admits`; the store is asked about a certificate that is not known here: it may be a newcomer's."""
        if shown is None:
            return False
        if self.admits(shown):
            return True
        async with self._looking:  # one question at a time: whoever was put out may come again and again
            if self.admits(shown):
                return True
            try:
                async with asyncio.timeout(LOOK_DEADLINE_S):
                    entry = await self._store.get(CERTIFICATES.key(shown.name))
            except (VeeryError, TimeoutError):
                return False
            if entry is not None:
                self._take(shown.name, entry)
                self._settle()
            return self.admits(shown)

    @contextlib.contextmanager
    def standing(self, shown: Shown, cut: Callable[[], None]) -> Iterator[None]:
        """While this lasts `cut` is called, once, if the certificate is no longer let in; at once where it is not."""
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
        """Remember one record. One that cannot be read leaves what was known of that node as it is."""
        with contextlib.suppress(Unreadable):
            record = CERTIFICATES.value(entry)
            self._serials[name] = tuple(each for each in (record.serial, record.former) if each)

    def _settle(self) -> None:
        """Cut what is no longer let in, and keep the set."""
        self._cut()
        data = codec.encode(dict(sorted(self._serials.items())))
        try:
            if not self._file.exists() or self._file.read_bytes() != data:
                write_atomic(self._file, data)
        except OSError as error:
            log.warning("%s not written: %s", self._file, error.strerror)

    def _cut(self) -> None:
        for mark, (shown, cut) in list(self._standing.items()):
            if not self.admits(shown):
                del self._standing[mark]
                log.warning(decision("connection.cut", node=shown.name, serial=shown.serial, reason="it was put out"))
                cut()

    def _remembered(self) -> dict[str, tuple[str, ...]]:
        try:
            kept = codec.decode(self._file.read_bytes(), dict[str, str | tuple[str, ...]])
            return {name: (each,) if isinstance(each, str) else each for name, each in kept.items()}
        except (OSError, Failed):
            return {}
