"""The verdict on a node, from the signs of its sensors over time. Pure.

    follow       add the signs of one reading of one sensor to the history
    conclude     turn the history into well, quarantine or evacuate, with the signs that led there
    acknowledge  note that an operator declares a node well
    rebooted     drop what sensors counted since the last boot

`now` and all times in a History are seconds of a clock that is never set (see node/health.py). A bad sign *raises* its
part: a fact does so at once, any other sign when most of the last readings show it. A raised part whose readings are
good again keeps its node in quarantine until it has been calm for long enough. A fact counts until an operator
acknowledges it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from veery.health.series import same_disk
from veery.health.sign import RANK, Level, Sign, worst
from veery.model.verdict import HealthRecord, HealthSign, NodeVerdict, SensorMode

PARTS_MAX = 500  # that a history keeps
SIGNS_MAX = 30  # in a record
WHOLE = "sensor"  # the part that stands for the sensor itself


class Kind(StrEnum):
    """The kind of evidence behind a bad sign."""

    FACT = "fact"  # an event that cannot be undone: it counts at once, and stays
    STATE = "state"  # a present state: it counts while it lasts
    COUNTER = "counter"  # a counter grows too fast: it counts while the counter does
    LOG = "log"  # a line of a log: it is checked against the present readings of other sensors, and it expires


FACTS = frozenset({"ecc", "apei", "mce", "smart", "nvme", "aer", "xen", "sel"})
LOGS = frozenset({"kernel"})
SINCE_BOOT = frozenset({"ecc", "apei", "mce", "aer", "xen", "kernel"})
"""Sensors whose facts concern the present boot only."""
PRESENT = frozenset({"smart", "nvme", "md", "rootfs"})
"""Sensors that read the present state of parts that also appear in logs."""
MEMORY = frozenset({"ecc", "apei", "mce", "xen", "sel"})
SEVERE = MEMORY | {"temperature", "ipmi"}
"""Sensors whose bad signs, except growing counters, mean that the node may die at any moment."""

BY_KIND = {
    Kind.FACT: SensorMode.EVACUATE,
    Kind.STATE: SensorMode.EVACUATE,
    Kind.COUNTER: SensorMode.TELL,
    Kind.LOG: SensorMode.TELL,
}
BY_SENSOR = {
    "clock": SensorMode.TELL,  # a move does not help the domains
    "psi": SensorMode.TELL,  # a move under memory pressure adds to it
    "iscsi": SensorMode.TELL,  # the brain has a rule of its own for a node that lost the storage
    "multipath": SensorMode.TELL,
    "latency": SensorMode.TELL,  # most often the target is slow
    "units": SensorMode.QUARANTINE,  # without Xen's toolstack nothing can be moved
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The limits for signs. The history keeps the last `kept` readings. If `up` of them are bad, they raise the part.
    `down` good ones in a row begin its calm."""

    kept: int = 5
    up: int = 3
    down: int = 3
    calm_s: float = 900.0  # the shortest calm after which a part no longer counts
    calm_factor: float = 10.0  # the calm also lasts this many times as long as the part took to be raised
    log_life_s: float = 3600.0  # a line of a log counts this long, unless it is logged again
    unknown_keeps_s: float = 86400.0  # a raised part without readings keeps its node in quarantine this long
    flap_window_s: float = 86400.0
    flap_count: int = 2  # a part raised this often in the window stays in quarantine, unless an operator says well


FIGURES = Figures()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The history of one part. `since`: when the present level began. `recent`: True for each of the last readings that
    was bad. `raised`: when the part began to count as bad, None if it does not. `bad_at`: the last bad reading.
    `rises`: the recent times at which it was raised. `known`: the finding that an operator acknowledged. `serial`: the
    part's own; `other`: another one that the last reading showed in its place. `grave`: as `recent`, without the
    readings that only ask for quarantine. `mild`: the part only asks for quarantine."""

    sensor: str
    part: str
    level: Level
    kind: Kind
    value: str = ""
    sentence: str = ""
    since: float = 0.0
    recent: tuple[bool, ...] = ()
    begun: float | None = None  # the first bad reading in a row
    raised: float | None = None
    bad_at: float | None = None
    rise_s: float = 0.0
    rises: tuple[float, ...] = ()
    known: str | None = None
    serial: str = ""
    other: str = ""
    grave: tuple[bool, ...] = ()
    mild: bool = False

    @property
    def finding(self) -> str:
        """Return a text that differs between two findings about the part."""
        return f"{self.value}|{self.sentence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The history of a node, by sensor and part. `verdict` is the last verdict, `since` the time at which it was
    reached."""

    parts: Mapping[str, Part] = field(default_factory=dict)
    verdict: NodeVerdict = NodeVerdict.WELL
    since: float = 0.0


def kind_of(sign: Sign) -> Kind:
    """Return the kind of evidence behind a sign."""
    if sign.counter:
        return Kind.COUNTER
    return Kind.FACT if sign.sensor in FACTS else Kind.LOG if sign.sensor in LOGS else Kind.STATE


def mode_of(sensor: str, kind: Kind, modes: Mapping[str, SensorMode]) -> SensorMode:
    """Return how far a sign of `sensor` may go: the mode in the settings' `modes`, or the default."""
    return modes.get(sensor) or BY_SENSOR.get(sensor) or BY_KIND[kind]


# ---- one reading
def follow(history: History, sensor: str, signs: Sequence[Sign], now: float, figures: Figures = FIGURES) -> History:
    """Return `history` with the signs of one reading of `sensor`. A part that had a sign before and has none now is
    well. If the sensor as a whole is unknown, so are its parts. A part that is read under another name keeps its
    history, by its serial. A part loses its history if another serial has taken its place."""
    read: dict[str, Sign] = {}
    for each in signs:
        known = read.get(each.part)
        if known is None or (RANK[each.level], not each.counter) > (RANK[known.level], not known.counter):
            read[each.part] = each
    history = dataclasses.replace(history, parts=_found_again(history.parts, sensor, read))
    blind = WHOLE in read and read[WHOLE].level is Level.UNKNOWN
    parts = dict(history.parts)
    for old in [each for each in history.parts.values() if each.sensor == sensor and each.part not in read]:
        level = Level.UNKNOWN if blind and old.part != WHOLE else Level.OK
        gone = Sign(sensor=sensor, part=old.part, level=level, value=old.value, sentence=old.sentence)
        parts[f"{sensor}/{old.part}"] = _step(history, old, gone, now, figures)
    for part, sign in read.items():
        key = f"{sensor}/{part}"
        old = history.parts.get(key) or Part(sensor=sensor, part=part, level=sign.level, kind=kind_of(sign), since=now)
        parts[key] = _step(history, old, sign, now, figures)
    return dataclasses.replace(history, parts=_kept(parts, read, sensor, now, figures))


def _found_again(parts: Mapping[str, Part], sensor: str, read: Mapping[str, Sign]) -> Mapping[str, Part]:
    """Return the parts, those of `sensor` under the names under which their serials are read now: names of disks change
    at a boot. A serial that is read under several names, or under its old one too, does not change its name."""
    names: dict[str, list[str]] = {}
    for name, each in read.items():
        if each.serial:
            names.setdefault(each.serial, []).append(name)
    moved: dict[str, Part] = {}
    for key, part in parts.items():
        now = names.get(part.serial, []) if part.sensor == sensor else []
        if len(now) == 1 and part.part not in now:
            there = parts.get(f"{sensor}/{now[0]}")
            if there is None or there.raised is None or there.serial:
                moved[key] = dataclasses.replace(part, part=now[0], other="")
    stay = {key: each for key, each in parts.items() if key not in moved}
    return {**stay, **{f"{sensor}/{each.part}": each for each in moved.values()}}


def _identified(old: Part, sign: Sign, now: float) -> Part:
    """Return the part, or a new one if two readings in a row show the same other serial in its place."""
    if sign.level is Level.UNKNOWN or not sign.serial:
        return old
    if old.serial in ("", sign.serial):
        return dataclasses.replace(old, serial=sign.serial, other="")
    if old.other != sign.serial:
        return dataclasses.replace(old, other=sign.serial)
    return Part(sensor=old.sensor, part=old.part, level=sign.level, kind=kind_of(sign), since=now, serial=sign.serial)


def _step(history: History, old: Part, sign: Sign, now: float, figures: Figures) -> Part:
    """Return one part after one more reading."""
    old = _identified(old, sign, now)
    level, value, sentence = sign.level, sign.value, sign.sentence
    stands = old.raised is not None and old.kind is Kind.FACT
    kind = old.kind if stands or level is not Level.BAD else kind_of(sign)
    counts = level is Level.BAD or (level is Level.WATCH and sign.exposed and kind is Kind.STATE)
    same = old.level is level and (kind is not Kind.LOG or (old.value, old.sentence) == (value, sentence))
    if not counts and (old.raised is not None or level is Level.UNKNOWN):  # keep the bad finding: it says most
        value, sentence = old.value or value, old.sentence or sentence
    new = dataclasses.replace(
        old, level=level, kind=kind, value=value, sentence=sentence, since=old.since if same else now
    )
    if level is Level.UNKNOWN:
        return _calmed(new if new.raised is None else dataclasses.replace(new, recent=(), grave=()), now, figures)
    bad = counts and new.known != new.finding and not _is_void(history, new, now, figures)
    new = dataclasses.replace(
        new,
        recent=(*old.recent, bad)[-figures.kept :],
        grave=(*old.grave, bad and level is Level.BAD)[-figures.kept :],
        bad_at=now if bad else old.bad_at,
        begun=(now if old.begun is None else old.begun) if bad else old.begun,
        known=new.known if counts else None,
    )
    if new.raised is not None:
        return _calmed(_weighed(new, figures), now, figures)
    if not any(new.recent):
        return dataclasses.replace(new, begun=None)
    if not bad or not (kind in (Kind.FACT, Kind.LOG) or new.recent.count(True) >= figures.up):
        return new
    rises = tuple(at for at in new.rises if now - at < figures.flap_window_s)
    begun = now if new.begun is None else new.begun
    mild = kind is Kind.STATE and new.grave.count(True) < figures.up
    return dataclasses.replace(new, raised=now, rise_s=now - begun, rises=(*rises, now)[-figures.kept :], mild=mild)


def _weighed(part: Part, figures: Figures) -> Part:
    """Return the raised part, mild if its last bad readings only ask for quarantine."""
    if part.kind is not Kind.STATE or part.grave.count(True) >= figures.up:
        return dataclasses.replace(part, mild=False)
    eased = any(part.recent[-figures.down :]) and not any(part.grave[-figures.down :])
    return dataclasses.replace(part, mild=part.mild or eased)


def _is_void(history: History, part: Part, now: float, figures: Figures) -> bool:
    """Return whether a line of a log no longer counts: it is old, or a sensor reads the part and does not find it
    bad."""
    if part.kind is not Kind.LOG:
        return False
    if now - part.since >= figures.log_life_s:
        return True
    readers = (each for each in history.parts.values() if each.sensor in PRESENT)
    return any(
        each.level in (Level.OK, Level.WATCH) and (same_disk(part.part, each.part) or same_disk(each.part, part.part))
        for each in readers
    )


def _calmed(part: Part, now: float, figures: Figures) -> Part:
    """Return the part, no longer raised if it has been calm for long enough."""
    if part.raised is None or part.kind is Kind.FACT:
        return part
    quiet_s = now - (part.raised if part.bad_at is None else part.bad_at)
    if part.level is Level.UNKNOWN:
        over = quiet_s >= figures.unknown_keeps_s
    else:
        over = _is_calm(part, figures) and quiet_s >= max(figures.calm_s, figures.calm_factor * part.rise_s)
    return dataclasses.replace(part, raised=None, begun=None, recent=(), grave=(), mild=False) if over else part


def _is_calm(part: Part, figures: Figures) -> bool:
    return not any(part.recent[-figures.down :])


def _kept(
    parts: dict[str, Part], read: Mapping[str, Sign], sensor: str, now: float, figures: Figures
) -> dict[str, Part]:
    """Return the parts without those that have nothing to report."""
    kept = {
        key: each
        for key, each in parts.items()
        if each.sensor != sensor or each.part in read or each.raised is not None or _flaps(each, now, figures)
    }
    if len(kept) > PARTS_MAX:
        gravest = sorted(kept, key=lambda key: (kept[key].raised is None, -RANK[kept[key].level]))[:PARTS_MAX]
        kept = {key: kept[key] for key in gravest}
    return kept


def _flaps(part: Part, now: float, figures: Figures) -> bool:
    """Return whether the part was raised repeatedly within the window."""
    recent = [at for at in part.rises if now - at < figures.flap_window_s]
    return len(recent) >= figures.flap_count


# ---- the verdict
def conclude(
    history: History, modes: Mapping[str, SensorMode], now: float, figures: Figures = FIGURES
) -> tuple[History, HealthRecord]:
    """Return the verdict at `now`. The times in the record are those of the history's clock."""
    signs = [found for each in history.parts.values() if (found := _sign(each, modes, now, figures)) is not None]
    order = tuple(NodeVerdict)
    signs.sort(
        key=lambda each: (
            -order.index(each.asks),
            not each.severe,
            -order.index(each.would),
            -RANK[Level(each.level)],
            each.since,
            each.sensor,
            each.part,
        )
    )
    verdict = max((each.asks for each in signs), key=order.index, default=NodeVerdict.WELL)
    leading = [each for each in signs if each.asks is NodeVerdict.EVACUATE]
    severe = any(each.severe for each in leading)
    singly = not severe and any(each.sensor in MEMORY for each in leading)
    if verdict is not history.verdict:
        history = dataclasses.replace(history, verdict=verdict, since=now)
    record = HealthRecord(
        verdict=verdict, since=history.since, severe=severe, singly=singly, signs=tuple(signs[:SIGNS_MAX])
    )
    return history, record


def _sign(part: Part, modes: Mapping[str, SensorMode], now: float, figures: Figures) -> HealthSign | None:
    """Return the sign of a part, None if it is well."""
    mode = mode_of(part.sensor, part.kind, modes)
    wants = _wants(part, now, figures)
    if mode is SensorMode.OFF or (wants is NodeVerdict.WELL and part.level is Level.OK):
        return None
    most = {SensorMode.TELL: NodeVerdict.WELL, SensorMode.QUARANTINE: NodeVerdict.QUARANTINE}
    asks = min(wants, most.get(mode, NodeVerdict.EVACUATE), key=tuple(NodeVerdict).index)
    calm = part.raised is not None and part.kind is not Kind.FACT and part.level is not Level.BAD
    calm = calm and part.recent[-1:] != (True,)
    flapping = part.raised is None and wants is NodeVerdict.QUARANTINE
    sentence = part.sentence
    if flapping:
        sentence = f"it was bad {len(part.rises)} times of late: {sentence}"
    elif calm:
        sentence = f"it was bad a while ago: {sentence}"
    return HealthSign(
        sensor=part.sensor,
        part=part.part,
        level=part.level,
        value=part.value,
        sentence=sentence,
        since=part.since if part.raised is None else part.raised,
        asks=asks,
        would=wants,
        shared=part.kind is Kind.STATE,
        serial=part.serial,
        severe=asks is NodeVerdict.EVACUATE and part.sensor in SEVERE and part.kind is not Kind.COUNTER,
    )


def _wants(part: Part, now: float, figures: Figures) -> NodeVerdict:
    """Return what a part asks for, before its sensor's mode limits it."""
    if part.raised is None:
        return NodeVerdict.QUARANTINE if _flaps(part, now, figures) else NodeVerdict.WELL
    if part.kind is Kind.FACT:
        return NodeVerdict.EVACUATE
    if part.mild:
        return NodeVerdict.QUARANTINE
    often = len([at for at in part.rises if now - at < figures.flap_window_s]) > figures.flap_count
    if often or part.level is Level.UNKNOWN or _is_calm(part, figures):
        return NodeVerdict.QUARANTINE
    return NodeVerdict.EVACUATE


# ---- back
def acknowledge(history: History, sensor: str = "") -> History:
    """Note that an operator declares the node, or the readings of one sensor, well. The present findings count again
    only when they change."""
    parts = {
        key: dataclasses.replace(
            each,
            known=each.finding,
            raised=None,
            recent=(),
            grave=(),
            mild=False,
            begun=None,
            bad_at=None,
            rises=(),
            rise_s=0.0,
        )
        if sensor in ("", each.sensor)
        else each
        for key, each in history.parts.items()
    }
    return dataclasses.replace(history, parts=parts)


def replaced(before: History, after: History) -> tuple[Part, ...]:
    """Return the parts of `before` that counted as bad and whose place another serial has taken in `after`."""
    return tuple(
        each
        for key, each in before.parts.items()
        if each.raised is not None
        and (new := after.parts.get(key)) is not None
        and new.serial != each.serial
        and all(other.serial != each.serial for other in after.parts.values() if other.sensor == each.sensor)
    )


def rebooted(history: History) -> History:
    """Drop the parts that sensors count since boot: the machine has booted again."""
    parts = {key: each for key, each in history.parts.items() if each.sensor not in SINCE_BOOT}
    return dataclasses.replace(history, parts=parts)


def level_of(signs: Sequence[Any]) -> Level:
    """Return the worst level of one sensor's signs; `ok` if there are none."""
    return worst(each.level for each in signs) if signs else Level.OK
