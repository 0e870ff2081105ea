"""What this node's tgtd was last to serve, remembered beside it: a tgtd that dies while the store has no quorum comes
back as it was, and a node that was cut off since is not let in by that.

It is never more than tgtd itself would still have, had it lived: what is taken away there is taken away here first, and
on the disk before anybody is told of it."""

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
    """Targets as they should be, and every initiator that has an account; passwords are among it."""

    targets: tuple[Wanted, ...]
    initiators: tuple[Initiator, ...]


class Served:
    """One a storage node; its owner sees to it that one change is made at a time."""

    def __init__(self, file: Path) -> None:
        """`file` keeps it over a restart of ours; a file that is not whole is taken for none."""
        self._file = file
        self._known = self._read()
        self._written = self._known is not None  # the file says what we know
        self._stale = False  # it says what no longer holds

    @property
    def known(self) -> Serving | None:
        """None where nothing is remembered: then nothing may be concluded."""
        return self._known

    def initiators(self) -> tuple[Initiator, ...]:
        """Those that had an account, with their passwords."""
        return self._known.initiators if self._known else ()

    def admits(self, iqn: str, initiator: str) -> bool:
        """Whether target `iqn` is to let `initiator` in."""
        targets = self._known.targets if self._known else ()
        return any(one.iqn == iqn and any(each.iqn == initiator for each in one.admitted) for one in targets)

    def keep(self, serving: Serving) -> None:
        """From now on it is `serving`. Raises nothing: what could not be written is tried again by the next call."""
        self._change(serving)

    def shut(self, initiator: str, iqn: str = "") -> None:
        """`initiator` is let in no more at target `iqn` ("": at any). Returns when the disk says so too; raises Failed
        where that cannot be had: then it is not proven that it stays outside."""
        if self._known is not None:
            targets = tuple(_without(one, initiator) if iqn in ("", one.iqn) else one for one in self._known.targets)
            self._change(replace(self._known, targets=targets))
        if self._stale:
            raise Failed(f"{self._file} cannot be written, nor removed", hint="see to the disk of this storage node")

    def drop(self, iqn: str) -> None:
        """Target `iqn` is served no more."""
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
                log.warning("%s not written: %s", self._file, error.strerror)
            self._written, self._stale = False, not self._removed()  # better nothing than what no longer holds

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
