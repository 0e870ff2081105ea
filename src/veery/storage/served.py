"""The last targets and accounts of this node's tgtd, kept in a file. If tgtd dies while the store has no quorum, veeryd
restores them from it, without admitting a node that was cut off since.

The file never grants more than the running tgtd would: every removal is first written here, and is on the disk before
it is reported."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from veery.errors import Failed
from veery.host import kept
from veery.host.files import sync_folder, write_atomic
from veery.model import codec
from veery.model.volume import Initiator
from veery.storage.plan import Wanted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The wanted targets, and every initiator with an account. It contains passwords."""

    targets: tuple[Wanted, ...]
    initiators: tuple[Initiator, ...]


class Served:
    """The record of served targets; each storage node has one. Its owner makes one change at a time."""

    def __init__(self, file: Path) -> None:
        """`file` keeps the record over a restart of veeryd; an incomplete file counts as missing."""
        self._file = file
        self._known = self._read()
        self._written = self._known is not None  # the file equals the known record
        self._stale = False  # the file grants something that no longer holds

    @property
    def known(self) -> Serving | None:
        """Return the record; None if there is none, from which nothing may be concluded."""
        return self._known

    def initiators(self) -> tuple[Initiator, ...]:
        """Return the initiators that had an account, with their passwords."""
        return self._known.initiators if self._known else ()

    def admits(self, iqn: str, initiator: str) -> bool:
        """Return whether target `iqn` should admit `initiator`."""
        targets = self._known.targets if self._known else ()
        return any(one.iqn == iqn and any(each.iqn == initiator for each in one.admitted) for one in targets)

    def keep(self, serving: Serving) -> None:
        """Record `serving`. Raises nothing: the next call repeats a failed write."""
        self._change(serving)

    def shut(self, initiator: str, iqn: str = "") -> None:
        """Record that target `iqn` ("": every target) no longer admits `initiator`; return when that is on the disk.

        Raises Failed if it cannot be written: then a restart of tgtd could admit the initiator again."""
        if self._known is not None:
            targets = tuple(_without(one, initiator) if iqn in ("", one.iqn) else one for one in self._known.targets)
            self._change(replace(self._known, targets=targets))
        if self._stale:
            raise Failed(f"{self._file} can be neither written nor removed", hint="check the disk of this storage node")

    def drop(self, iqn: str) -> None:
        """Record that target `iqn` is no longer served."""
        if self._known is not None:
            targets = tuple(one for one in self._known.targets if one.iqn != iqn)
            self._change(replace(self._known, targets=targets))

    def _change(self, serving: Serving) -> None:
        if serving == self._known and self._written:
            return
        self._known = serving
        try:
            write_atomic(self._file, codec.encode(serving), sync=True)
            self._written, self._stale = True, False
        except OSError as error:
            if self._written:
                log.warning("cannot write %s: %s", self._file, error.strerror)
            self._written, self._stale = False, not self._removed()  # better no file than an outdated one

    def _removed(self) -> bool:
        try:
            self._file.unlink(missing_ok=True)
            sync_folder(self._file.parent)
        except OSError as error:
            log.error("%s is out of date and cannot be removed: %s", self._file, error.strerror)
            return False
        return True

    def _read(self) -> Serving | None:
        return kept.take(self._file, Serving)


def _without(one: Wanted, initiator: str) -> Wanted:
    return replace(one, admitted=tuple(each for each in one.admitted if each.iqn != initiator))
