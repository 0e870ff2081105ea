"""The values of cpus= and cpus_soft=: the processors on which a domain may run.

The syntax is that of Xen 4.17's xl (tools/xl/xl_vcpu.c, parse_range and update_cpumap_range): entries separated by
commas; each is "all", N, N-M, "node:" or "nodes:" before a number or range, and "^" before any of them to exclude it.
"""

from __future__ import annotations

import re

from veery.config import xlcfg
from veery.config.xlcfg import Atom, Items, Setting

PROCESSOR_MAX = 8191
_ENTRY = re.compile(r"\s*\^?(?:all|(?:nodes?:)?\^?(?:all|([0-9]{1,9})(?:-([0-9]{1,9}))?))\s*", re.ASCII)
_HINT = 'write cpus = "0-3" or cpus = [ "0", "1" ]'


def check_cpus(setting: Setting) -> None:
    """Raise Refused at the position of the first entry that xl would not accept."""
    value = setting.value
    for atom in value.values if isinstance(value, Items) else (value,):
        if isinstance(atom, Atom):
            _check(setting.name, atom)
        else:
            atom.at.refuse(f"{setting.name} cannot contain a list", _HINT)


def _check(name: str, atom: Atom) -> None:
    offset = 0
    for entry in atom.text.split(","):
        match = _ENTRY.fullmatch(entry)
        at = atom.inside(offset)
        if match is None:
            at.refuse(f"{name}: {entry[:40]!r} is not a processor or a range of processors", _HINT)
        low, high = match[1], match[2]
        if high and int(high) < int(low):
            at.refuse(f"{name}: the range {entry.strip()!r} ends before it begins", _HINT)
        if low and int(high or low) > PROCESSOR_MAX:
            at.refuse(f"{name}: processor {high or low} is more than {PROCESSOR_MAX}", _HINT)
        offset += len(entry) + 1


def read_cpus(key: str, value: str, count: int) -> tuple[str, ...]:
    """Return the processors of each of `count` virtual processors, from a value of `cpus=` in the file's syntax; "all"
    if it names none. As in xl, a string applies to all of them, and each item of a list to one."""
    (setting,) = xlcfg.parse(f"{key} = {value}\n", key)
    if isinstance(setting.value, Atom):
        return (setting.value.text or "all",) * count
    texts = [item.text for item in setting.value.values if isinstance(item, Atom)]
    return tuple([*texts, *["all"] * count][:count])


def write_cpus(found: tuple[str, ...]) -> str:
    """Return the value of `cpus=` that `read_cpus` reads back as `found`."""
    if len(set(found)) == 1:
        return xlcfg.quote(found[0])
    return "[ " + ", ".join(xlcfg.quote(each) for each in found) + " ]"


def check_range(what: str, text: str) -> None:
    """Raise Refused unless `text` is a valid value for one virtual processor."""
    check_cpus(xlcfg.parse(f"{what} = {xlcfg.quote(text)}\n", what)[0])


def processors(text: str) -> list[int] | None:
    """Return the processors that an affinity names; None if they depend on the host."""
    chosen: set[int] = set()
    for entry in text.split(","):
        match = re.fullmatch(r"\s*(\^?)([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", entry, re.ASCII)
        if match is None:
            return None
        each = set(range(int(match[2]), int(match[3] or match[2]) + 1))
        chosen = chosen - each if match[1] else chosen | each
    return sorted(chosen)
