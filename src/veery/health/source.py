"""What sensors read: files under a root folder, and outputs of programs.

    Source     the files under a root, and the texts of its Outputs
    Outputs    the texts that programs print, by program and part (`smartctl`, `sda`)
    Recorded   Outputs that are files in a folder: PROGRAM[.PART].(txt|json|csv)

Every read is bounded, and returns None or an empty value if nothing can be read: a sensor needs no `try`."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

TEXT_MAX = 1 << 20  # bytes read of a file or of a program's output
SMALL_MAX = 4096  # bytes of a file in sysfs
MATCHES_MAX = 2048  # paths of one pattern
LINE_MAX = 1000  # characters of a line
LINES_MAX = 20_000  # lines of a text
PART_FILE = re.compile(r"(?P<program>[a-z][\w-]*)(?:\.(?P<part>[^/]+))?\.(?P<form>txt|json|csv)", re.ASCII)


class Outputs(Protocol):
    """The outputs of programs."""

    def of(self, program: str) -> Mapping[str, str]:
        """Return the text by part ("" if the program has no parts); empty if the program or its parts are absent."""


class Source:
    """The files under `root`, and the outputs of programs."""

    def __init__(self, root: Path, outputs: Outputs) -> None:
        self.root = root
        self._outputs = outputs
        self.kept: dict[str, Any] = {}  # parsed once, for several sensors

    def outputs(self, program: str) -> Mapping[str, str]:
        """Return the output of `program`, by part."""
        return self._outputs.of(program)

    def output(self, program: str) -> str | None:
        """Return the output of a program without parts, or None if it printed nothing."""
        return next(iter(self.outputs(program).values()), None)

    def text(self, path: str, most: int = TEXT_MAX) -> str | None:
        """Return the beginning of a file, or None if it cannot be read."""
        return read_text(self.root / path, most)

    def word(self, path: str | Path) -> str | None:
        """Return a small file's text, stripped of white space."""
        found = read_text(self.root / path, SMALL_MAX)
        return None if found is None else found.strip()

    def number(self, path: str | Path) -> int | None:
        """Return a small file's number, or None if it holds none."""
        return whole(self.word(path))

    def paths(self, pattern: str) -> list[Path]:
        """Return the paths under the root that match `pattern`, in order."""
        found: list[Path] = []
        try:
            for path in self.root.glob(pattern):
                found.append(path)
                if len(found) >= MATCHES_MAX:
                    break
        except (OSError, ValueError):
            pass
        return sorted(found, key=lambda path: natural(str(path)))


class Recorded:
    """Outputs that are recorded as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, dict[str, Path]] = {}
        try:
            names = sorted(each.name for each in os.scandir(folder))[:MATCHES_MAX]
        except OSError:
            names = []
        for name in names:
            if match := PART_FILE.fullmatch(name):
                parts = self._files.setdefault(match["program"], {})
                part = match["part"] or ""
                parts[part if part not in parts else f"{part}.{match['form']}"] = folder / name

    def of(self, program: str) -> Mapping[str, str]:
        texts = {part: read_text(path, TEXT_MAX) for part, path in self._files.get(program, {}).items()}
        return {part: text for part, text in texts.items() if text is not None}


def read_text(path: Path, most: int, *, tail: bool = False) -> str | None:
    """Return at most `most` bytes of a regular file (its end with `tail`), or None. A pipe or device is not opened."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return None
            if tail and about.st_size > most:
                file.seek(about.st_size - most)
            return file.read(most).decode(errors="replace")
    except (OSError, ValueError):
        return None


def whole(text: str | None) -> int | None:
    """Return the whole number in `text`, or None."""
    return int(text) if text and re.fullmatch(r"-?[0-9]{1,18}", text) else None


def real(text: str | None) -> float | None:
    """Return the number in `text`, or None. A decimal comma counts too, because programs print it in some locales."""
    return float(text.replace(",", ".")) if text and re.fullmatch(r"[+-]?[0-9]{1,18}([.,][0-9]{1,18})?", text) else None


def parsed(text: str) -> dict[str, Any] | None:
    """Return the JSON object in `text`, or None."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def lines(text: str | None, *, tail: bool = False) -> list[str]:
    """Return the first lines of a text (the last with `tail`) that are not empty, each cut to a limit."""
    found = [line[:LINE_MAX] for line in (text or "").splitlines() if line]
    return found[-LINES_MAX:] if tail else found[:LINES_MAX]


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key under which dimm2 comes before dimm10."""
    return [
        (int(word[:18]), "") if word.isascii() and word.isdigit() else (-1, word) for word in re.split(r"(\d+)", text)
    ]
