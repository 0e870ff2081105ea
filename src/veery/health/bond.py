"""Bonds: which of their interfaces carry traffic.

Source: Documentation/networking/bonding.rst; /proc/net/bonding/. Under LACP an interface with a link may still be
unused: only the active aggregator counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from veery.health.series import Given, Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, whole

HOLD_S = 10.0
NO_PARTNER = "00:00:00:00:00:00"
FIELD = re.compile(r"\s*([\w .()/]{2,40}?): (.*)", re.ASCII)


@dataclass(slots=True)
class Bond:
    """One bond: its slaves and whether each has a link. Under LACP also the number of ports in the active
    aggregator."""

    slaves: dict[str, bool] = field(default_factory=dict)
    ports: int | None = None
    partner: str = ""
    up: bool | None = None
    readable: bool = True

    @property
    def linked(self) -> int:
        return sum(self.slaves.values())


class Bonds:
    """The sensor of bonds."""

    name = "bond"

    def read(self, source: Source) -> dict[str, Bond] | None:
        found: dict[str, Bond] = {}
        for path in source.paths("proc/net/bonding/*"):
            if (text := source.text(f"proc/net/bonding/{path.name}")) is not None:
                found[path.name] = _of_proc(text)
        for path in source.paths("sys/class/net/*/bonding/slaves"):
            name = path.parent.parent.name
            if name not in found:
                found[name] = _of_sysfs(source, name)
        return found or None

    def judge(self, series: Series[dict[str, Bond]]) -> Iterator[Sign]:
        for name, bond in series.last.items():
            if not bond.readable:
                yield sign(self.name, name, Level.UNKNOWN, "", "the bond's file cannot be understood")
                continue
            level, said = _judged(bond)
            value = f"{bond.linked}/{len(bond.slaves)}"
            if level is Level.BAD and not series.held(lambda reading, name=name: _dark(reading, name), HOLD_S):  # type: ignore[misc]
                level = Level.WATCH
            if not _counts(series.given, name) and level is not Level.OK:
                level, said = Level.OK, f"neither an uplink nor for storage: {said}"
            yield sign(self.name, name, level, value, said)


def _dark(reading: dict[str, Bond], name: str) -> bool:
    bond = reading.get(name)
    return bond is not None and _judged(bond)[0] is Level.BAD


def _counts(given: Given, name: str) -> bool:
    if given.uplinks is None and given.storage_nics is None:
        return True
    return name in (given.uplinks or ()) or name in (given.storage_nics or ())


def _judged(bond: Bond) -> tuple[Level, str]:
    if bond.slaves and not bond.linked:
        return Level.BAD, "no interface of the bond has a link"
    if bond.linked < len(bond.slaves):
        down = ", ".join(name for name, up in bond.slaves.items() if not up)
        return Level.WATCH, f"without a link: {down}"
    if bond.ports is not None and bond.ports < len(bond.slaves):
        return Level.WATCH, f"{bond.ports} of {len(bond.slaves)} interfaces are in the active aggregator"
    if bond.slaves and bond.ports is not None and bond.partner == NO_PARTNER:
        return Level.WATCH, "the switch does not speak LACP"
    return Level.OK, "all interfaces carry traffic"


def _of_proc(text: str) -> Bond:
    bond = Bond(readable="Bonding Mode" in text)
    slave = ""
    for line in lines(text):
        if not (match := FIELD.fullmatch(line)):
            continue
        key, value = match[1].strip(), match[2].strip()
        if key == "Slave Interface":
            slave = value
            bond.slaves[slave] = False
        elif key == "MII Status":
            if slave:
                bond.slaves[slave] = value == "up"
            else:
                bond.up = value == "up"
        elif key == "Number of ports" and not slave:
            bond.ports = whole(value)
        elif key == "Partner Mac Address" and not slave:
            bond.partner = value
    return bond


def _of_sysfs(source: Source, name: str) -> Bond:
    folder = f"sys/class/net/{name}"
    bond = Bond()
    for slave in (source.word(f"{folder}/bonding/slaves") or "").split()[:64]:
        if "/" in slave:
            continue
        state = source.word(f"{folder}/slave_{slave}/bonding_slave/mii_status")
        if state is None:
            state = source.word(f"{folder}/slave_{slave}/operstate") or source.word(f"sys/class/net/{slave}/operstate")
        bond.slaves[slave] = state == "up" if state else True
    bond.ports = source.number(f"{folder}/bonding/ad_num_ports")
    bond.partner = source.word(f"{folder}/bonding/ad_partner_mac") or ""
    return bond
