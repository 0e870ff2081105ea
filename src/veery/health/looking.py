"""All sensors, and the verdict on one node from their readings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veery.errors import Refused
from veery.health.aer import Aer
from veery.health.apei import Apei
from veery.health.bond import Bonds
from veery.health.clock import Clock
from veery.health.ecc import Ecc
from veery.health.etcd import Etcd
from veery.health.ipmi import Ipmi
from veery.health.iscsi import Iscsi
from veery.health.kernel import Kernel
from veery.health.latency import Latency
from veery.health.mce import Mce
from veery.health.md import Md
from veery.health.multipath import Multipath
from veery.health.nic import Nic
from veery.health.nvme import Nvme
from veery.health.plugins import Plugins
from veery.health.psi import Psi
from veery.health.rootfs import Rootfs
from veery.health.sel import Sel
from veery.health.series import Given, Moment, Sensor, Series
from veery.health.sign import RANK, Level, Sign, sign, worst
from veery.health.smart import Smart
from veery.health.source import Recorded, Source, read_text
from veery.health.temperature import Temperature
from veery.health.units import Units
from veery.health.xen import Xen

SENSORS: tuple[Sensor, ...] = (
    Ecc(),
    Apei(),
    Mce(),
    Smart(),
    Nvme(),
    Temperature(),
    Ipmi(),
    Sel(),
    Kernel(),
    Rootfs(),
    Md(),
    Nic(),
    Bonds(),
    Aer(),
    Iscsi(),
    Multipath(),
    Latency(),
    Clock(),
    Psi(),
    Units(),
    Xen(),
    Etcd(),
    Plugins(),
)
SIGNS_MAX = 200  # of one sensor; the gravest are kept
MOMENTS_MAX = 1000
GIVEN_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of all signs."""

    level: Level
    signs: tuple[Sign, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A sensor's reading that failed."""

    why: str


def verdict(signs: Sequence[Sign]) -> Verdict:
    """Return the verdict on a node: the worst level of its signs, or `unknown` if there are none."""
    return Verdict(worst(each.level for each in signs), tuple(signs))


def take(sensor: Sensor, source: Source) -> Any:
    """Take one reading of one sensor. If the reader raises, return an Unreadable."""
    try:
        return sensor.read(source)
    except Exception as error:  # no output of a device, a driver or a program may stop the other sensors
        return Unreadable(f"{type(error).__name__}: {error}")


def told(sensor: Sensor, moments: Sequence[Moment[Any]], given: Given) -> list[Sign]:
    """Return the signs of one sensor's readings, oldest first. Failed readings are left out."""
    if moments and isinstance(moments[-1].reading, Unreadable):
        return [_unknown(sensor, moments[-1].reading.why)]
    read = tuple(each for each in moments if each.reading is not None and not isinstance(each.reading, Unreadable))
    if not read:
        return []
    try:
        found = list(sensor.judge(Series(read, given)))
    except Exception as error:
        return [_unknown(sensor, f"{type(error).__name__}: {error}")]
    if len(found) > SIGNS_MAX:
        found = sorted(found, key=lambda each: -RANK[each.level])[:SIGNS_MAX]
    return found


def _unknown(sensor: Sensor, why: str) -> Sign:
    return sign(sensor.name, "sensor", Level.UNKNOWN, "", f"the sensor cannot make sense of what it reads: {why}")


def case(folder: Path) -> Verdict:
    """Judge a recorded tree, or its sub-folders 0, 1, ... that were recorded one after the other.

    `given.json` says what the node knows (series.Given). Its `sequence`, [{"dir": "0", "at": 0}, ...], gives the
    seconds. A sequence without times is treated as a lasting state. Raises Refused if the folder does not exist."""
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder", hint="veery sensors --help")
    about = _given(folder / "given.json")
    given, times = Given.of(about), _times(about)
    try:
        steps = sorted((each for each in folder.iterdir() if each.name.isascii() and each.name.isdigit()), key=_order)
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror}", hint="run it as the owner of the folder") from error
    steps = [each for each in steps if each.is_dir()][:MOMENTS_MAX]
    sources = [(times.get(each.name), Source(each, Recorded(each))) for each in steps]
    if not steps:
        sources = [(None, Source(folder, Recorded(folder)))]
    signs: list[Sign] = []
    for sensor in SENSORS:
        signs.extend(told(sensor, [Moment(at, take(sensor, source)) for at, source in sources], given))
    return verdict(signs)


def given_in(folder: Path) -> Given:
    """Return what `given.json` in `folder` says; nothing if it does not exist. Raises Refused if it is not JSON."""
    return Given.of(_given(folder / "given.json"))


def _order(path: Path) -> int:
    return int(path.name[:18])


def _given(path: Path) -> dict[str, Any]:
    text = read_text(path, GIVEN_MAX)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path}: not JSON: {error}", hint="veery sensors --help") from error
    if not isinstance(found, dict):
        raise Refused(f"{path}: not a JSON object", hint="veery sensors --help")
    inner = found.get("given")
    return {**found, **inner} if isinstance(inner, dict) else found


def _times(about: dict[str, Any]) -> dict[str, float]:
    rows = about.get("sequence")
    found: dict[str, float] = {}
    for row in rows[:MOMENTS_MAX] if isinstance(rows, list) else []:
        at = row.get("at") if isinstance(row, dict) else None
        if isinstance(at, int | float) and not isinstance(at, bool):
            found[str(row.get("dir"))] = float(at)
    return found
