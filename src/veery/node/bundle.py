"""A support bundle: files about a node for someone who helps, without secrets.

Two rules keep secrets out. A value whose name marks it as a secret is left out when it is read. Then every file is
searched for each secret that this node can read, wherever it came from, and any match is replaced."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LEFT_OUT = "(left out)"
LOG_MAX = 4 << 20  # bytes of one log; the end is kept
FILE_MAX = 1 << 20  # bytes of one other file
FILES_MAX = 500
SECRET_MIN = 6  # characters: a shorter one would match words by chance
_NAMES = re.compile(r"pass(w|word|wd|phrase|code)?$|passw|secret|token$|webhook$|(^|_)key$|_pem$|psk", re.IGNORECASE)
_NOT_SECRET = frozenset({"token_file", "password_file", "webhook_token_file"})
_OPTION = re.compile(r"(?i)((?:vnc|spice)?passw(?:or)?d)=[^,\"'\]\s]*")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_USER_INFO = re.compile(r"://[^/@\s\"']+:[^/@\s\"']+@")


def without_secrets(value: Any) -> Any:
    """Return `value` (JSON or TOML) with every member left out whose name is that of a secret, also if name and value
    are a pair. In other texts, what follows `password=` is left out."""
    if isinstance(value, Mapping):
        return {
            key: LEFT_OUT if _secret(str(key)) and item not in ("", None, [], {}) else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        if _pair(value):
            return [value[0], LEFT_OUT]
        return [without_secrets(item) for item in value]
    return plain(value) if isinstance(value, str) else value


def plain(text: str) -> str:
    """Return `text` without private keys, passwords of options and passwords in URLs."""
    text = _PEM.sub(LEFT_OUT, text)
    text = _USER_INFO.sub(f"://{LEFT_OUT}@", text)
    return _OPTION.sub(rf"\1={LEFT_OUT}", text)


def secrets_in(values: Iterable[Any]) -> frozenset[str]:
    """Return every text under the name of a secret in `values` (JSON or TOML)."""
    return frozenset(text for value in values for text in _texts(value, found=False) if len(text) >= SECRET_MIN)


def secrets_of_keys(pem: str) -> frozenset[str]:
    """Return the lines of a private key: each of them reveals a part of the key."""
    return frozenset(
        line
        for block in _PEM.finditer(pem)
        for line in block.group(0).splitlines()
        if len(line) >= 40  # not the begin and end lines
    )


def _texts(value: Any, *, found: bool) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, found=found or _secret(str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, found=found or _pair(value))
    elif found and isinstance(value, str):
        yield value


def _pair(value: Sequence[Any]) -> bool:
    """Return True for a pair of a secret's name and its value: the record of a domain keeps the keys of its file so."""
    return len(value) == 2 and isinstance(value[0], str) and _secret(value[0])


def _secret(name: str) -> bool:
    return name not in _NOT_SECRET and bool(_NAMES.search(name))


@dataclasses.dataclass(slots=True)
class Bundle:
    """The files by name. `missing` says what could not be included, and why."""

    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    secrets: frozenset[str] = frozenset()

    def add_json(self, name: str, value: Any) -> None:
        """Add `value` without its secrets."""
        self.secrets |= secrets_in([value])
        self._add(name, json.dumps(without_secrets(value), indent=1, ensure_ascii=False, default=str) + "\n")

    def add_text(self, name: str, text: str) -> None:
        """Add a text."""
        self._add(name, plain(text))

    def add_end(self, name: str, path: Path, most: int = LOG_MAX) -> None:
        """Add the last `most` bytes of a file."""
        try:
            with path.open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                file.seek(max(0, size - most))
                self.add_text(name, file.read(most).decode(errors="replace"))
        except OSError as error:
            self.missing[name] = f"{path}: {error.strerror}"

    def _add(self, name: str, text: str) -> None:
        if len(self.files) >= FILES_MAX:
            self.missing[name] = f"more than {FILES_MAX} files"
            return
        self.files[name] = text.encode()

    def write(self, stream: Any, top: str, at: float) -> int:
        """Write the bundle as a tar.gz below the folder `top`; return the number of replaced matches."""
        blots = 0
        words = sorted(self.secrets, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, words))) if words else None
        files = dict(self.files)
        if self.missing:
            files["missing.json"] = (json.dumps(self.missing, indent=1, ensure_ascii=False) + "\n").encode()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, whole in sorted(files.items()):
                text, count = pattern.subn(LEFT_OUT, whole.decode()) if pattern else (whole.decode(), 0)
                data, blots = text.encode(), blots + count
                entry = tarfile.TarInfo(f"{top}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(at), 0o600
                archive.addfile(entry, io.BytesIO(data))
        return blots
