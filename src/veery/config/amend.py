"""Sets single keys in the text of `veery.toml`. Comments and all other lines stay as they are. Pure."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from veery.errors import Refused


def amended(text: str, section: str, key: str, value: str, *, replace: bool = False) -> str:
    """Return `text` with `section.key` set to `value`; the same text if it has that value already.

    Raises Refused if the key has another value, unless it is to be replaced (`replace`), or if the text is written so
    that the key cannot be set in it."""
    hint = f'set it by hand: {key} = "{value}" in [{section}]'
    data = _parsed(text, hint)
    table = data.get(section, {})
    if isinstance(table, dict) and table.get(key, "") == value:
        return text
    if isinstance(table, dict) and table.get(key, "") and not replace:
        raise Refused(
            f"{section}.{key} is {table[key]!r} already, not {value!r}", hint="correct it, or omit the option"
        )
    line = f"{key} = {json.dumps(value)}\n"
    head = re.compile(rf"^[ \t]*\[[ \t]*{re.escape(section)}[ \t]*\][ \t]*(#.*)?$\n?", re.MULTILINE)
    present = re.compile(rf"^[ \t]*{re.escape(key)}[ \t]*=.*$\n?", re.MULTILINE)
    if match := head.search(text):
        before, after = _ended(text[: match.end()]), text[match.end() :]
        end = re.search(r"^[ \t]*\[", after, re.MULTILINE)
        body, rest = (after[: end.start()], after[end.start() :]) if end else (after, "")
        result = before + line + present.sub("", body, count=1) + rest
    else:
        result = _ended(text) + ("\n" if text.strip() else "") + f"[{section}]\n{line}"
    wanted = {**data, section: {**table, key: value}} if isinstance(table, dict) else {}
    if _parsed(result, hint) != wanted:
        raise Refused(f"{section}.{key} cannot be set in this text", hint=hint)
    return result


def _ended(text: str) -> str:
    """Return `text` with an end to its last line."""
    return text if not text or text.endswith("\n") else f"{text}\n"


def _parsed(text: str, hint: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"it is not TOML: {error}", hint=hint) from error
