"""The three errors of veery.

    VeeryError
    ├── Refused          the check failed before anything changed
    │   └── NotFound     because the named object does not exist
    ├── Failed           something was tried or changed; the message says what is left, the hint what to run next
    │   └── Unavailable  because a part that the order needs does not answer
    └── OutcomeUnknown   the answer was lost: the order may or may not have happened; look before you act again

Each error has a message of one sentence, and a hint with the next step. The code that handles an error logs it once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class VeeryError(Exception):
    """The base of every error that users see: a `message` of one line and a `hint` (may be empty). `reason`: a word for
    a case of its kind that the API's problem types tell apart, "" for the others."""

    kind = "failed"
    reason = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Refused(VeeryError):
    """The order was checked and did not start: nothing has changed."""

    kind = "refused"


class NotFound(Refused):
    """The domain, node, volume or other object that the order names does not exist."""

    reason = "not-found"


class Failed(VeeryError):
    """The order started and did not succeed. The message says what is left."""

    kind = "failed"


class Unavailable(Failed):
    """The order needs the store, the brain or another part that does not answer now. It may succeed later."""

    reason = "unavailable"


class OutcomeUnknown(VeeryError):
    """The order was sent, but its answer was lost. Only a later query can show what happened."""

    kind = "unknown"


@contextlib.contextmanager
def hinting(hint: str) -> Iterator[None]:
    """Add `hint` to every VeeryError that leaves the block without a hint."""
    try:
        yield
    except VeeryError as error:
        error.hint = error.hint or hint
        raise


KINDS: dict[str, type[VeeryError]] = {cls.kind: cls for cls in (Refused, Failed, OutcomeUnknown)}
REASONS: dict[tuple[str, str], type[VeeryError]] = {(cls.kind, cls.reason): cls for cls in (NotFound, Unavailable)}


def from_kind(kind: str, message: str, hint: str = "", reason: str = "") -> VeeryError:
    """Return the error that a peer sent as (kind, message, hint). An unknown kind becomes Failed, an unknown reason
    counts as none."""
    found = REASONS.get((kind, reason)) or KINDS.get(kind, Failed)
    return found(message, hint=hint)
