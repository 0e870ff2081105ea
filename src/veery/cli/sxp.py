"""`xm list --long`: S-expressions in the format of xend, with the keys that scripts read.

Source: tools/python/xen/xend/sxp.py and XendConfig.py of Xen 4.1."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from veery.config.adjust import most_memory
from veery.model.domain import LETTERS, DiskSpec, DomainReading, DomainSpec, VifSpec

_PLAIN = re.compile(r"[A-Za-z0-9_./:@,+=-]*")
_INDENT = "    "


def domain(reading: DomainReading, spec: DomainSpec | None) -> str:
    """Return the S-expression of one domain. `spec` is None for Domain-0."""
    pairs = [("domid", str(reading.domid))]
    if spec is not None:
        pairs += [("on_crash", spec.on_crash.value)]
    pairs += [("uuid", reading.uuid), ("vcpus", str(reading.vcpus)), ("name", reading.name)]
    if spec is not None:
        pairs += [("on_poweroff", spec.on_poweroff.value), ("on_reboot", spec.on_reboot.value)]
    most = most_memory(spec) if spec is not None else reading.memory
    pairs += [
        ("maxmem", str(most)),
        ("memory", str(reading.memory)),
        ("start_time", f"{reading.started:.2f}"),
        ("cpu_time", f"{reading.cpu_seconds:.9f}"),
        ("online_vcpus", str(reading.vcpus)),
        ("state", LETTERS[reading.state]),
    ]
    lines = ["(domain", *_pairs(pairs, 1)]
    for vif in spec.vifs if spec is not None else ():
        lines += _device("vif", _vif(vif))
    for disk in spec.disks if spec is not None else ():
        lines += _device("vbd", _disk(disk))
    return "\n".join([*lines, ")"])


def _vif(vif: VifSpec) -> dict[str, str]:
    return {"bridge": vif.bridge, "mac": vif.mac, "script": vif.script, "backend": vif.backend or "0"}


def _disk(disk: DiskSpec) -> dict[str, str]:
    uname = f"volume:{disk.volume}" if disk.volume else f"file:{disk.target}"
    if disk.target.startswith("/dev/"):
        uname = f"phy:{disk.target}"
    kind = "cdrom" if disk.cdrom else "disk"
    mode = "w" if disk.readwrite else "r"
    return {"dev": f"{disk.vdev}:{kind}", "uname": uname, "mode": mode, "backend": disk.backend or "0"}


def _device(kind: str, pairs: Mapping[str, str]) -> Iterator[str]:
    yield f"{_INDENT}(device"
    yield f"{_INDENT * 2}({kind}"
    yield from _pairs(pairs.items(), 3)
    yield f"{_INDENT * 2})"
    yield f"{_INDENT})"


def _pairs(pairs: Iterable[tuple[str, str]], depth: int) -> Iterator[str]:
    for key, value in pairs:
        yield f"{_INDENT * depth}({key} {_word(value)})"


def _word(text: str) -> str:
    """Return `text` as sxp writes it: in quotes if it has other characters than the plain ones."""
    if _PLAIN.fullmatch(text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
