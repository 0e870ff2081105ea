"""JSON to and from the frozen values of this package: one way, used by the store, the API and the journal."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from veery.errors import Failed

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """`value` (a dataclass, enum, dict, list, ...) as compact JSON."""
    return msgspec.json.encode(value)


def decode(data: bytes | str, type: type[T]) -> T:
    """JSON `data` as a `type`. Raises Failed where it does not fit; unknown fields are passed over, so that
    a newer node's records can be read by an older one."""
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Failed(
            f"unreadable {type.__name__} record: {error}", hint="is another version of veery at work?"
        ) from error


def convert(value: Any, type: type[T]) -> T:
    """Plain JSON values (dict, list, str, ...) as a `type`. Raises Failed where they do not fit."""
    try:
        return msgspec.convert(value, type=type)
    except (msgspec.ValidationError, UnicodeError, RecursionError) as error:
        raise Failed(f"bad {type.__name__}: {error}") from error


def plain(value: Any) -> Any:
    """`value` as dicts, lists, strings and numbers."""
    return msgspec.to_builtins(value)
