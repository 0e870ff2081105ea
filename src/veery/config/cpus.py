"""The values of cpus= and cpus_soft=: which processors a domain may run on.

The syntax is that of Xen 4.17's xl (tools/xl/xl_vcpu.c, parse_range and update_cpumap_range): entries separated by
commas; each is "all", N, N-M, "node:" or "nodes:" before a number or range, and "^" before any of them to exclude it.
"""

from __future__ import annotations

import re

from veery.config.xlcfg import Atom, Items, Setting

PROCESSOR_MAX = 8191
_ENTRY = re.compile(r"\s*\^?(?:all|(?:nodes?:)?\^?(?:all|([0-9]{1,9})(?:-([0-9]{1,9}))?))\s*", re.ASCII)
_HINT = 'write cpus = "0-3" or cpus = [ "0", "1" ]'


def check_cpus(setting: Setting) -> None:
    """Raise Refused at the place of the first entry that xl would not take."""
    value = setting.value
    for atom in value.values if isinstance(value, Items) else (value,):
        if isinstance(atom, Atom):
            _check(setting.name, atom)
        else:
            atom.at.refuse(f"a list cannot stand in {setting.name}", _HINT)


def _check(name: str, atom: Atom) -> None:
    offset = 0
    for entry in atom.text.split(","):
        match = _ENTRY.fullmatch(entry)
        at = atom.inside(offset)
        if match is None:
            at.refuse(f"{name}: {entry[:40]!r} is no processor and no range of processors", _HINT)
        low, high = match[1], match[2]
        if high and int(high) < int(low):
            at.refuse(f"{name}: the range {entry.strip()!r} ends before it begins", _HINT)
        if low and int(high or low) > PROCESSOR_MAX:
            at.refuse(f"{name}: processor {high or low} is more than {PROCESSOR_MAX}", _HINT)
        offset += len(entry) + 1
