"""Records of a newer version. Unknown fields are kept, and some unknown values are ignored.

The kept fields travel with the value. Decoding turns such a value into an instance of a subclass of its dataclass with
one more field, `unknown`. So `dataclasses.replace` copies the field, encoding writes it back in its place, and no model
class needs code for it. The alternative is a merge at each write. It needs one more read for each write, or the bytes
of the record in each of some sixty functions that write. A value without unknown fields stays an instance of its plain
class. Two values are equal if this version sees no difference.

A new record that replaces another takes over its unknown fields with `kept`. A node writes the records about itself
(its record, presence, processor, fence methods) completely: earlier values of a newer version are no longer true."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar

import msgspec

from veery.model.domain import DiskSpec, VifSpec
from veery.model.ha import Event, Level
from veery.model.node import Node

T = TypeVar("T")

UNKNOWN_MAX_BYTES = 64 << 10
"""The limit of all unknown fields of one record, as JSON. A record with more cannot be read."""

FIELD = "unknown"
_NAMED_BY: dict[type, str] = {DiskSpec: "vdev", VifSpec: "mac"}  # the field that identifies an item of a list
_STAND_INS: dict[tuple[type, str], Enum | None] = {  # None: the value is removed from its list
    (Node, "roles"): None,
    (Event, "level"): Level.WARNING,
}


class TooLarge(ValueError):
    """The unknown fields exceed UNKNOWN_MAX_BYTES."""


class Unknown:
    """Unknown fields by name, as plain JSON values that never change. It is not a dataclass, so the encoder calls its
    hook for it."""

    __slots__ = ("fields",)

    def __init__(self, fields: Mapping[str, Any]) -> None:
        """Keep `fields` without a copy."""
        self.fields = fields


@functools.cache
def _carrier(plain: Any) -> Any:
    """Return the subclass of dataclass `plain` whose instances carry unknown fields."""
    names = [field.name for field in dataclasses.fields(plain)]

    def equal(self: Any, other: object) -> bool:
        if not isinstance(other, plain):
            return False
        return all(getattr(self, name) == getattr(other, name) for name in names)

    made = dataclasses.make_dataclass(
        plain.__name__,
        [(FIELD, Unknown, dataclasses.field(repr=False))],
        bases=(plain,),
        namespace={"__eq__": equal, "__hash__": plain.__hash__, "__doc__": plain.__doc__},
        frozen=True,
        slots=True,
        kw_only=True,
        eq=False,
    )
    made.__module__, made.__qualname__ = plain.__module__, plain.__qualname__
    return made


def of(value: object) -> Mapping[str, Any]:
    """Return the unknown fields of `value` itself, without those of the values inside it."""
    found = getattr(value, FIELD, None)
    return found.fields if isinstance(found, Unknown) else {}


def _carrying(value: Any, fields: Mapping[str, Any], changed: Mapping[str, Any]) -> Any:
    """Return `value` with `changed` fields and the unknown `fields` (empty: those that it has now)."""
    if not fields:
        return dataclasses.replace(value, **changed) if changed else value
    if of(value):
        return dataclasses.replace(value, **changed, **{FIELD: Unknown(fields)})
    known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    plain: Any = type(value)
    return _carrier(plain)(**{**known, **changed, FIELD: Unknown(fields)})


@functools.cache
def _names(kind: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind))


def graft(value: T, raw: Any) -> T:
    """Return `value`, decoded from the plain JSON value `raw`, with the unknown fields of `raw`. Raises TooLarge."""
    left = [UNKNOWN_MAX_BYTES]
    grown: T = _graft(value, raw, left)
    return grown


def _graft(value: Any, raw: Any, left: list[int]) -> Any:
    if isinstance(raw, dict) and dataclasses.is_dataclass(value):
        kind: Any = type(value)
        names = _names(kind)
        fields = {name: item for name, item in raw.items() if name not in names}
        if fields:
            left[0] -= len(msgspec.json.encode(fields))
            if left[0] < 0:
                raise TooLarge(f"its unknown fields take more than {UNKNOWN_MAX_BYTES} bytes")
        changed = {}
        for name, item in raw.items():
            if isinstance(item, dict | list) and name in names:
                before = getattr(value, name)
                if (after := _graft(before, item, left)) is not before:
                    changed[name] = after
        return _carrying(value, fields, changed)
    if isinstance(raw, list) and isinstance(value, tuple | list) and len(raw) == len(value):
        items = [_graft(item, other, left) for item, other in zip(value, raw, strict=True)]
        return type(value)(items) if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(raw, dict) and isinstance(value, dict):
        pairs = {key: _graft(item, raw.get(key), left) for key, item in value.items()}
        return pairs if any(pairs[key] is not value[key] for key in value) else value
    return value


def kept(value: T, before: object) -> T:
    """Return `value`, which replaces `before`, with the unknown fields of `before` and of the values inside it. Disks
    and interfaces are matched by name and MAC. The unknown fields of a removed one are dropped."""
    return typing.cast(T, _kept(value, before))


def _kept(value: Any, before: Any) -> Any:
    if dataclasses.is_dataclass(value) and dataclasses.is_dataclass(before):
        if not (isinstance(value, type(before)) or isinstance(before, type(value)) or of(value) or of(before)):
            return value
        changed = {}
        for field in dataclasses.fields(value):
            if field.name == FIELD and isinstance(getattr(value, FIELD), Unknown):
                continue
            mine = getattr(value, field.name)
            if (after := _kept(mine, getattr(before, field.name, None))) is not mine:
                changed[field.name] = after
        return _carrying(value, {**of(before), **of(value)}, changed)
    if isinstance(value, tuple) and isinstance(before, tuple) and value and before:
        name = next((name for kind, name in _NAMED_BY.items() if isinstance(value[0], kind)), "")
        if name:
            known = {getattr(each, name, ""): each for each in before}
            items = tuple(_kept(each, known.get(getattr(each, name))) for each in value)
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def whole(value: Any) -> Any:
    """Return `value` as plain JSON values with the unknown fields in place. A known field overrides an unknown one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name != FIELD or not of(value)]
        return {**of(value), **{name: whole(getattr(value, name)) for name in names}}
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field else {}
        return {**tag, **{name: whole(getattr(value, name)) for name in value.__struct_fields__}}
    if isinstance(value, msgspec.Raw):
        return msgspec.json.decode(value)
    if isinstance(value, tuple | list | set | frozenset):
        return [whole(item) for item in value]
    if isinstance(value, Mapping):
        return {msgspec.to_builtins(key, str_keys=True): whole(item) for key, item in value.items()}
    return msgspec.to_builtins(value)


def soften(raw: Any, kind: Any) -> Any:
    """Return plain JSON `raw` without the unknown values of a `kind` that can be ignored: an unknown role of a node is
    removed, and an unknown level of an event becomes a warning. Other unknown values stay, so decoding refuses them."""
    if isinstance(raw, dict) and isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        return {
            name: _stand_in(soften(item, hints[name]), kind, name, hints[name]) if name in hints else item
            for name, item in raw.items()
        }
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, UnionType):
        options = [each for each in inner if each is not NoneType]
        return soften(raw, options[0]) if len(options) == 1 else raw
    if isinstance(raw, list) and inner and (origin is list or (origin is tuple and inner[-1] is Ellipsis)):
        return [soften(item, inner[0]) for item in raw]
    if isinstance(raw, dict) and len(inner) == 2:
        return {key: soften(item, inner[1]) for key, item in raw.items()}
    return raw


def _stand_in(raw: Any, owner: type, name: str, hint: Any) -> Any:
    if (owner, name) not in _STAND_INS:
        return raw
    instead = _STAND_INS[owner, name]
    if instead is None and isinstance(raw, list):
        known = {member.value for member in typing.get_args(hint)[0]}
        return [item for item in raw if not isinstance(item, str) or item in known]
    if isinstance(instead, Enum) and isinstance(raw, str) and raw not in {each.value for each in hint}:
        return instead.value
    return raw


@functools.cache
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)
