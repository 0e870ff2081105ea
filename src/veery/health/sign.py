"""Signs, which sensors report, and the level that they add up to."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

SENTENCE_MAX = 200  # characters of a sentence
PART_MAX = 80  # characters of a part's name
SERIAL_MAX = 64
NO_SERIAL = re.compile(
    r"[\W_]*|0+|f+|x+|n/?a|none|null|unknown|invalid|not (specified|available|present)|no (dimm|module)\b.*"
    r"|to be filled\b.*|default\b.*|system serial number",
    re.I | re.A,
)
"""Texts that firmware has in place of a serial number."""


class Level(StrEnum):
    """The state of a part."""

    OK = "ok"
    WATCH = "watch"  # it works, but someone should look at it
    BAD = "bad"  # it fails or will fail: domains should run elsewhere
    UNKNOWN = "unknown"  # nothing could be learnt; never treated as bad


RANK = {Level.OK: 0, Level.UNKNOWN: 1, Level.WATCH: 2, Level.BAD: 3}
"""`unknown` ranks above `ok`: a level is `ok` only if everything could be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """One report of a sensor about one part. `value` is the reading as text; `sentence` says what it means. `serial` is
    that of the part, "" if it is not known. `exposed`: the node works, but the next fault of this kind would end it.
    Such a `watch` sign of a state asks for quarantine."""

    sensor: str
    part: str
    level: Level
    value: str
    sentence: str
    counter: bool = False  # a counter that grows too fast, and not a permanent event
    serial: str = ""
    exposed: bool = False


def sign(
    sensor: str,
    part: str,
    level: Level,
    value: object,
    sentence: str,
    *,
    counter: bool = False,
    serial: str = "",
    exposed: bool = False,
) -> Sign:
    """Return a Sign whose texts are printable and short, whatever their source."""
    return Sign(
        sensor=sensor,
        part=_clean(part, PART_MAX),
        level=level,
        value=_clean(str(value), PART_MAX),
        sentence=_clean(sentence, SENTENCE_MAX),
        counter=counter,
        serial=real_serial(serial),
        exposed=exposed,
    )


def real_serial(text: str) -> str:
    """Return a serial number, short and printable; "" for a text that stands for none."""
    found = _clean(text, SERIAL_MAX)
    return "" if NO_SERIAL.fullmatch(found) else found


def worst(levels: Iterable[Level]) -> Level:
    """Return the worst of the levels; `unknown` if there are none."""
    return max(levels, key=RANK.__getitem__, default=Level.UNKNOWN)


def _clean(text: str, most: int) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: most * 4])
    return " ".join(shown.split())[:most]
