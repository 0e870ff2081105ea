"""Sensors that the operator adds: programs in /etc/veery/sensors.d.

Exit status 0 is ok, 1 watch, 2 bad, any other unknown. The first line of the output is the sentence. In a recorded tree
an answer is `plugin.NAME.json`: {"exit": 1, "out": "..."}. Programs of a recorded tree are never run."""

from __future__ import annotations

from collections.abc import Iterator

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, parsed

LEVELS = {0: Level.OK, 1: Level.WATCH, 2: Level.BAD}


class Plugins:
    """The sensor that runs the operator's own programs."""

    name = "plugin"

    def read(self, source: Source) -> dict[str, tuple[Level, str]] | None:
        return {part: _answer(text) for part, text in source.outputs("plugin").items()} or None

    def judge(self, series: Series[dict[str, tuple[Level, str]]]) -> Iterator[Sign]:
        for part, (level, said) in series.last.items():
            yield sign(self.name, part, level, "", said)


def _answer(text: str) -> tuple[Level, str]:
    found = parsed(text) or {}
    status, out = found.get("exit"), found.get("out")
    level = LEVELS.get(status, Level.UNKNOWN) if isinstance(status, int) else Level.UNKNOWN
    first = next(iter(lines(out)), "") if isinstance(out, str) else ""
    return level, first or "the plug-in said nothing"
