"""JSON of every shape: hostile texts and numbers, and values that fit a type of ours but for one place."""

from __future__ import annotations

import base64
import dataclasses
import enum
import types
import typing
from typing import Any

import msgspec
from hypothesis import strategies as st

NASTY = (
    *("", "x", "web", "data", "a", "b", "0", "1", "-1", "true", "xvda", "xvdb", "xenbr0", "busybox", "..", "../x"),
    *("a\nb", "a\x1b[31mb", "a\x00b", "-x", "x" * 300, "x" * 70_000, "é", "\u2028", "\ud800", "\U0001f600", "%s%n"),
    *("a,b=c", "a/b", "{}", "[]", "00:16:3e:00:00:01", "11111111-2222-4333-8444-555555555555", "127.0.0.1", "1e999"),
    *("0a1b2c3d", "qemu", "fake", "raw", "r", "destroyed", "restart", "NaN", "CON", "a" * 63, "a" * 64, "9" * 5000),
)
NUMBERS = (0, 1, -1, 2, 64, 512, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63)
HUGE = (-(1 << 63), 1 << 64, 1 << 70, 10**30, 1e308, -0.0, 1.5, 5e-324)

# No absolute path among these: a handler may write where it is told. The hosts of the fuzzers add safe ones.
texts = st.sampled_from(NASTY) | st.text(max_size=12).map(lambda text: text.lstrip("/"))
numbers = st.sampled_from(NUMBERS) | st.sampled_from(HUGE) | st.integers(-3, 5000)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
anything: st.SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def shaped(kind: Any, words: st.SearchStrategy[str] = texts, depth: int = 0) -> st.SearchStrategy[Any]:
    """JSON that reads as a `kind`, for the most part."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if depth > 6 or kind is Any:
        return anything
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(shaped(each, words, depth + 1) for each in inside))
    if origin is dict:
        return st.dictionaries(words, shaped(inside[1], words, depth + 1), max_size=3)
    if origin is tuple and not (len(inside) == 2 and inside[1] is ...):
        return st.tuples(*(shaped(each, words, depth + 1) for each in inside)).map(list)
    if origin in (list, tuple, frozenset, set):
        return st.lists(shaped(inside[0], words, depth + 1), max_size=3)
    if isinstance(kind, type):
        return _plain(kind, words, depth)
    return anything


def _plain(kind: type, words: st.SearchStrategy[str], depth: int) -> st.SearchStrategy[Any]:
    if dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        fields = (
            {field.name: field.required for field in msgspec.structs.fields(kind)} if _struct(kind) else _needed(kind)
        )
        needed = {name: shaped(hints[name], words, depth + 1) for name, must in fields.items() if must}
        rest = {name: shaped(hints[name], words, depth + 1) for name, must in fields.items() if not must}
        made: st.SearchStrategy[Any] = st.fixed_dictionaries(needed, optional=rest)
        if _struct(kind) and (tag := kind.__struct_config__.tag) is not None:
            made = made.map(lambda fields: {"type": tag, **fields})
        return made
    if issubclass(kind, enum.Enum):
        return st.sampled_from([each.value for each in kind])
    if issubclass(kind, bool):
        return st.booleans()
    if issubclass(kind, int | float):
        return numbers
    if issubclass(kind, str):
        return words
    if issubclass(kind, bytes):
        return st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode())
    return st.none() if kind is type(None) else anything


def _struct(kind: type) -> bool:
    return issubclass(kind, msgspec.Struct)


def _needed(kind: Any) -> dict[str, bool]:
    missing = dataclasses.MISSING
    return {
        field.name: field.default is missing and field.default_factory is missing for field in dataclasses.fields(kind)
    }


@st.composite
def spoilt(draw: st.DrawFn, whole: st.SearchStrategy[Any]) -> Any:
    """A value of `whole`, mostly with one place changed."""
    value = draw(whole)
    if draw(st.integers(0, 3)) == 0:
        return value
    places = list(_places(value, ()))
    if not places:
        return draw(anything)
    path = draw(st.sampled_from(places))
    if not path:
        return draw(anything)
    return _changed(value, path, draw(leaves | anything), draw(st.integers(0, 6)) == 0)


def _places(value: Any, path: tuple[Any, ...]) -> typing.Iterator[tuple[Any, ...]]:
    yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield from _places(inner, (*path, step))


def _changed(value: Any, path: tuple[Any, ...], new: Any, gone: bool) -> Any:
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) > 1:
        copy[path[0]] = _changed(copy[path[0]], path[1:], new, gone)
    elif gone:
        del copy[path[0]]
    else:
        copy[path[0]] = new
    return copy
