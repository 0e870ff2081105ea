"""The three ways in which an order can end badly, and nothing else.

    VeeryError
    ├── Refused          checked first, nothing was changed
    ├── Failed           something was changed or tried; says what is left and what to run next
    └── OutcomeUnknown   the answer was lost: it may or may not have happened; ask before acting again

Each carries one sentence and a hint: the next thing to do. They are logged once, where they are handled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class VeeryError(Exception):
    """The base of every error that a user may see: a `message` of one line and a `hint` (may be empty)."""

    kind = "failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Refused(VeeryError):
    """The order was checked and not begun: nothing has changed."""

    kind = "refused"


class Failed(VeeryError):
    """The order was begun and did not succeed; the message says what is left."""

    kind = "failed"


class OutcomeUnknown(VeeryError):
    """The order was sent and its answer was lost; only a later reading can tell what happened."""

    kind = "unknown"


@contextlib.contextmanager
def hinting(hint: str) -> Iterator[None]:
    """Errors that pass through here without a hint get this one."""
    try:
        yield
    except VeeryError as error:
        error.hint = error.hint or hint
        raise


KINDS: dict[str, type[VeeryError]] = {cls.kind: cls for cls in (Refused, Failed, OutcomeUnknown)}


def from_kind(kind: str, message: str, hint: str = "") -> VeeryError:
    """The error that a peer sent as (kind, message, hint); an unknown kind becomes Failed."""
    return KINDS.get(kind, Failed)(message, hint=hint)
