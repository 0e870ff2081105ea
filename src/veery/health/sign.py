"""What a sensor tells: signs, and the level that they come to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

SENTENCE_MAX = 200  # characters of a sentence
PART_MAX = 80  # characters of a part's name


class Level(StrEnum):
    """How a part stands."""

    OK = "ok"
    WATCH = "watch"  # it works, and somebody should look at it
    BAD = "bad"  # it fails, or will: domains are better elsewhere
    UNKNOWN = "unknown"  # nothing was learnt; never taken for bad


RANK = {Level.OK: 0, Level.UNKNOWN: 1, Level.WATCH: 2, Level.BAD: 3}
"""`unknown` is above `ok`: a level is `ok` only where all was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One thing that a sensor tells of one part; `value` is the reading as text, `sentence` says what it means."""

    sensor: str
    part: str
    level: Level
    value: str
    sentence: str
    counter: bool = False  # a counter that grows too fast, nothing that has happened for good


def sign(sensor: str, part: str, level: Level, value: object, sentence: str, *, counter: bool = False) -> Sign:
    """A Sign whose texts are printable and short, wherever they came from."""
    return Sign(
        sensor=sensor,
        part=_clean(part, PART_MAX),
        level=level,
        value=_clean(str(value), PART_MAX),
        sentence=_clean(sentence, SENTENCE_MAX),
        counter=counter,
    )


def worst(levels: Iterable[Level]) -> Level:
    """The level of them all; `unknown` of none."""
    return max(levels, key=RANK.__getitem__, default=Level.UNKNOWN)


def _clean(text: str, most: int) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: most * 4])
    return " ".join(shown.split())[:most]
