"""JSON encoding of the frozen values of this package, for the store, the API and the journal."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import msgspec

from veery.errors import Failed
from veery.model import newer

T = TypeVar("T")


class _Carried(Exception):
    """Raised if a value carries unknown fields, which the encoder cannot write."""


def _unknown_type(value: Any) -> Any:
    """Handle a type that the encoder does not know; only newer.Unknown is expected."""
    if isinstance(value, newer.Unknown):
        raise _Carried
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def encode(value: Any) -> bytes:
    """Return `value` (a dataclass, enum, dict, list, ...) as compact JSON, with its unknown fields."""
    try:
        return msgspec.json.encode(value, enc_hook=_unknown_type)
    except _Carried:
        return msgspec.json.encode(newer.whole(value))


def decode(data: bytes | str, type: type[T]) -> T:
    """Return JSON `data` as a `type`. Raises Failed if it does not fit.

    Unknown fields are kept (model/newer.py), so that an older node can rewrite a newer node's record. A record that
    encodes to the same bytes has none. This check takes about as long as decoding, some 15 microseconds for the record
    of a domain; a search for the fields takes ten times as long. The brain decodes a record again only when it has
    changed."""
    try:
        value = _decoded(data, type)
        if dataclasses.is_dataclass(value) and encode(value) != (data.encode() if isinstance(data, str) else data):
            value = newer.graft(value, msgspec.json.decode(data))
        return value
    except (msgspec.DecodeError, UnicodeError, RecursionError, newer.TooLarge) as error:
        raise Failed(
            f"unreadable {type.__name__} record: {error}", hint="does another node run another version of veery?"
        ) from error


def _decoded(data: bytes | str, type: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=type)
    except msgspec.ValidationError:
        return msgspec.convert(newer.soften(msgspec.json.decode(data), type), type=type)


def convert(value: Any, type: type[T], *, keep: bool = False) -> T:
    """Return plain JSON values (dict, list, str, ...) as a `type`. Unknown fields are ignored, or kept with `keep` (for
    a record that another node sends). Raises Failed if the values do not fit."""
    try:
        made = msgspec.convert(value, type=type)
        return newer.graft(made, value) if keep else made
    except newer.TooLarge as error:
        raise Failed(f"bad {type.__name__}: {error}") from error
    except (msgspec.ValidationError, UnicodeError, RecursionError) as error:
        try:
            return msgspec.convert(newer.soften(value, type), type=type)
        except (msgspec.ValidationError, UnicodeError, RecursionError):
            raise Failed(f"bad {type.__name__}: {error}") from error


def plain(value: Any) -> Any:
    """Return `value` as dicts, lists, strings and numbers."""
    try:
        return msgspec.to_builtins(value, enc_hook=_unknown_type)
    except _Carried:
        return newer.whole(value)
