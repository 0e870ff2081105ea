"""/etc/veery/veery.toml of the Debian package, all in comments: the keys and texts of docs/settings.md, and the
defaults that the program has."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec

from veery.config.settings import Settings

_HEAD = """\
# Settings of this node for veeryd, which reads them at its start: systemctl restart veeryd
#
# What stands behind a # is the default. Take the # away to change a value, also from the line in
# brackets above it. /usr/share/doc/veery/docs/settings.md has the same as a table.
"""
# Examples: these have no default that says anything.
_POWER = {
    "agent": "fence_ipmilan",
    "options": {"ip": "10.0.0.1", "username": "admin"},
    "password_file": "",
    "deadline": 40.0,
}


def example(table: str) -> str:
    """The file; `table` is the text of docs/settings.md."""
    parts, section = [_HEAD], ""
    defaults: dict[str, Any] = msgspec.to_builtins(Settings())
    for keys, text in _rows(table):
        if match := re.fullmatch(r"\*\*\[(.+)\]\*\*", keys):
            section = match[1]
            parts.append(f"{_comment(text)}#[{section}]\n" if text else f"#[{section}]\n")
            continue
        names = re.findall(r"`(\w+)`", keys)
        of = _POWER if section.startswith("power.") else defaults[section] if section else defaults
        parts.append(_comment(text) + "".join(f"#{name} = {_value(of[name])}\n" for name in names))
    return "\n".join(parts)


def _value(value: Any) -> str:
    """`value` as TOML has it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_value(each)}" for name, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def _rows(table: str) -> Iterator[tuple[str, str]]:
    """(the first cell, the last cell) of each row below the table's head."""
    for line in table.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0] not in ("key", "---"):
            yield cells[0], cells[2]


def _comment(text: str) -> str:
    """`text` without Markdown's marks, as comment lines."""
    plain = re.sub(r"\[([^]]+)\]\(([^)#]+)[^)]*\)", r"docs/\2", text)
    plain = plain.replace("`", "").replace("\\|", "|")
    return "".join(f"# {line}\n" for line in textwrap.wrap(plain, 98))
