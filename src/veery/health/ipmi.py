"""IPMI sensors, from the output of FreeIPMI's ipmi-sensors or of ipmitool.

Sources: IPMI 2.0, table 42-3 (sensor types and their states); ipmi-sensors(8); ipmitool(1). A state is judged by its
text and by the kind of part: FreeIPMI calls an empty slot Critical, and boards use generic states inconsistently."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines, real

ABSENT = re.compile(r"absent|not installed|not present|disabled|unplugged|^n/?a$|no reading", re.I)
GENERIC = re.compile(
    r"state (de)?asserted|limit (not )?exceeded|^0x[0-9a-f]+$|^ok$|performance (lags|met)"
    r"|transition to (ok|idle|active|running)|^oem |power off/power down|device (enabled|inserted)",
    re.I,
)
BAD_STATES = re.compile(
    r"uncorrectable|overheat|\bIERR\b|thermal trip|machine check exception|bus fatal|PCI SERR|non-?recoverable", re.I
)
WATCH_STATES = re.compile(
    r"redundancy (lost|degraded)|non-redundant|power supply failure|failure detected|input lost|AC lost|out-of-range"
    r"|predictive|drive fault|rebuild|in critical array|in failed array|correctable ECC|logging limit"
    r"|battery.*(low|fail)|throttled|config(uration)? error|bus (un)?correctable|PCI PERR|power (off|cycle).*fail"
    r"|soft power control failure|power unit failure|lower critical|upper (non-)?critical|non-?critical",
    re.I,
)
SUPPLY_NAME = re.compile(r"(ps|psu|pwr ?supply|power ?supply)[ _#-]?\d", re.I)
SUPPLY_FAILED = re.compile(r"failure detected|power supply failure", re.I)
SUPPLY_LOST = re.compile(rf"{SUPPLY_FAILED.pattern}|input lost|AC lost|out-of-range|predictive", re.I)
POWER_NAME = re.compile(r"(ps|psu|pwr|power)\b", re.I)
POWER_LOST = re.compile(r"redundancy (lost|degraded)|non-redundant", re.I)
HARMLESS_TYPES = re.compile(
    r"entity presence|physical security|os boot|os (stop|critical)|system (event|firmware)|event logging|lan\b"
    r"|watchdog|button|platform|management subsystem|session|version|fru state|boot|terminator|chassis|acpi",
    re.I,
)
HOTTEST_CELSIUS = 150  # a higher reading is not from a real sensor
BATTERY = re.compile(r"bat", re.I)
LOW = re.compile(r"lower|at or below", re.I)


class State(StrEnum):
    """How a tool marks a row."""

    GOOD = "good"
    WARNING = "warning"
    CRITICAL = "critical"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sensor. `kind`: as named by FreeIPMI, or derived from the unit. `said`: its states in the tool's words."""

    name: str
    kind: str
    state: State
    reading: float | None
    said: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The rows; None if the tool answered but no row could be parsed."""

    rows: tuple[Row, ...] | None


class Ipmi:
    """The sensors of the management controller."""

    name = "ipmi"

    def read(self, source: Source) -> Reading | None:
        rows: list[Row] = []
        answered = False
        for program, form in FORMS:
            for text in source.outputs(program).values():
                answered = True
                rows.extend(form(lines(text)))
        return Reading(tuple(rows) or None) if answered else None

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        rows = series.last.rows
        if rows is None:
            yield sign(self.name, "bmc", Level.UNKNOWN, "", "the management controller gave no reading")
            return
        well = 0
        for row in rows:
            level, said = judged(row, rows)
            lost = _is_supply(row) and any(SUPPLY_LOST.search(each) for each in row.said)
            if lost and level is Level.WATCH and _none_left(rows):
                level, said = Level.BAD, "no power supply is left that works"
            if level is Level.OK:
                well += row.state is not State.ABSENT
                continue
            unsafe = lost or (_is_power(row) and any(POWER_LOST.search(each) for each in row.said))
            value = row.said[-1] if row.said else row.state
            yield sign(self.name, row.name, level, value, said, exposed=unsafe and level is Level.WATCH)
        if all(row.state is State.ABSENT for row in rows):
            yield sign(self.name, "bmc", Level.UNKNOWN, "", "no sensor of the management controller has a reading")
            return
        yield sign(self.name, "bmc", Level.OK, well, f"{well} of {len(rows)} sensors are well or not judged")


def judged(row: Row, rows: Sequence[Row]) -> tuple[Level, str]:
    """Return the level of one sensor among all, and why."""
    if row.state is State.ABSENT or HARMLESS_TYPES.search(row.kind):
        return Level.OK, ""
    said = "; ".join(row.said)
    if any(ABSENT.search(each) for each in row.said):
        return Level.OK, ""
    if "redundan" in said.lower() and not re.search(r"fully redundant", said, re.I) and _has_one_by_design(rows):
        return Level.OK, ""
    if any(BAD_STATES.search(each) for each in row.said) and row.kind not in ANALOG:
        return Level.BAD, f"{row.kind}: {said}"
    if row.kind in ANALOG:
        return _analog(row, rows)
    if any(WATCH_STATES.search(each) for each in row.said) or (row.kind == "Battery" and _is_weak(row)):
        return Level.WATCH, f"{row.kind}: {said}"
    if row.state is State.CRITICAL and row.said and not all(GENERIC.search(each) for each in row.said):
        return Level.WATCH, f"{row.kind}: {said}"
    return Level.OK, ""


def _is_supply(row: Row) -> bool:
    """Return True for a row of one power supply. ipmitool shows no types: there the name decides."""
    if "redun" in row.name.lower():
        return False
    return row.kind == "Power Supply" or (row.kind == "Discrete" and SUPPLY_NAME.match(row.name) is not None)


def _none_left(rows: Sequence[Row]) -> bool:
    """Return True if each of several power supplies reports a fault, and one has failed. If all merely report that
    their input is lost, the controller must be wrong: the node runs. Boards without a bus to their only supply report
    it as failed, so a single one proves nothing."""
    supplies = [
        row
        for row in rows
        if _is_supply(row) and row.state is not State.ABSENT and not any(ABSENT.search(each) for each in row.said)
    ]
    faulty = [row for row in supplies if any(SUPPLY_LOST.search(each) for each in row.said)]
    failed = any(SUPPLY_FAILED.search(each) for row in supplies for each in row.said)
    return failed and len(faulty) == len(supplies) > 1


def _is_power(row: Row) -> bool:
    return row.kind in ("Power Supply", "Power Unit") or (row.kind == "Discrete" and bool(POWER_NAME.match(row.name)))


ANALOG = ("Temperature", "Voltage", "Fan", "Current")


def _analog(row: Row, rows: Sequence[Row]) -> tuple[Level, str]:
    """Judge a sensor that has a reading and limits."""
    if row.state is State.GOOD or (row.said and all(GENERIC.search(each) for each in row.said)):
        return Level.OK, ""
    is_low = any(LOW.search(each) for each in row.said)
    if row.kind == "Voltage" and row.reading == 0:
        return Level.OK, ""  # nothing is connected there, or the controller lost a reading
    if row.kind == "Temperature" and (is_low or (row.reading is not None and not 0 < row.reading < HOTTEST_CELSIUS)):
        return Level.OK, ""
    if row.state is State.WARNING:
        return Level.WATCH, f"{row.kind} is out of its range"
    if row.kind in ("Fan", "Current") or BATTERY.search(row.name):
        fans = [each for each in rows if each.kind == "Fan" and each.state is not State.ABSENT]
        if row.kind == "Fan" and len(fans) > 1 and all(fan.state is State.CRITICAL for fan in fans):
            return Level.BAD, "no fan turns as it should"
        return Level.WATCH, f"{row.kind} is at a critical limit"
    return Level.BAD, f"{row.kind} is at a critical limit"


def _is_weak(row: Row) -> bool:
    return any(each.lower() in ("low", "failed") for each in row.said)


def _has_one_by_design(rows: Sequence[Row]) -> bool:
    """Return True if one power supply is present and another place is empty: then there was no redundancy to lose."""
    supplies = [row for row in rows if row.kind == "Power Supply" and "redun" not in row.name.lower()]
    present = [row for row in supplies if any("presence detected" in each.lower() for each in row.said)]
    empty = [row for row in supplies if row.state is State.ABSENT or any(ABSENT.search(each) for each in row.said)]
    return len(present) == 1 and bool(empty)


FREE_STATES = {"nominal": State.GOOD, "warning": State.WARNING, "critical": State.CRITICAL}


def _free(rows: Sequence[str]) -> Iterator[Row]:
    """Parse ipmi-sensors: id, name, type, [state,] reading, units, [six limits,] event; separated by commas or bars."""
    for row in rows:
        bars = [row.split("|")] if "|" in row else csv.reader([row.replace("\0", "")])
        cells = [cell.strip() for cell in next(iter(bars), [])]
        if len(cells) < 6 or not cells[0].isdigit():
            continue
        said = tuple(re.findall(r"'([^']{1,80})'", row))
        if cells[3].lower() in (*FREE_STATES, "n/a") and len(cells) != 6:
            state, reading = FREE_STATES.get(cells[3].lower(), State.ABSENT), cells[4]
        else:
            state, reading = _as_said(said), cells[3]
        yield Row(name=cells[1], kind=cells[2], state=state, reading=real(reading), said=said)


def _as_said(said: Sequence[str]) -> State:
    """Return the state of a row that shows none, derived from its events."""
    text = " ".join(said).lower()
    if not said:
        return State.ABSENT
    if "non-critical threshold" in text:
        return State.WARNING
    return State.CRITICAL if "critical threshold" in text or "non-recoverable threshold" in text else State.GOOD


TOOL_STATES = {
    "ok": State.GOOD,
    "nc": State.WARNING,
    "lnc": State.WARNING,
    "unc": State.WARNING,
    "cr": State.CRITICAL,
    "lcr": State.CRITICAL,
    "ucr": State.CRITICAL,
    "nr": State.CRITICAL,
    "lnr": State.CRITICAL,
    "unr": State.CRITICAL,
}
UNITS = (("degrees", "Temperature"), ("volts", "Voltage"), ("rpm", "Fan"), ("amps", "Current"))


def _tool(rows: Sequence[str]) -> Iterator[Row]:
    """Parse ipmitool sdr (name | reading | state), sdr elist (name | id | state | entity | reading), sensor (ten
    columns), and the first two with -c."""
    for row in rows:
        cells = [cell.strip() for cell in (row.split("|") if "|" in row else row.split(","))]
        at = next((i for i, cell in enumerate(cells[1:], 1) if cell in TOOL_STATES or cell in ("ns", "na")), None)
        if at is None or len(cells) < 3:
            continue
        shown = cells[4] if len(cells) == 5 and at == 2 else cells[1]
        unit = cells[2] if at == 3 else shown
        kind = next((kind for word, kind in UNITS if word in unit.lower()), "Discrete")
        first = shown.split()[0] if shown else ""
        said = () if kind != "Discrete" else tuple(each.strip() for each in shown.split(",") if each.strip())
        if kind != "Discrete" and cells[at].startswith("l"):
            said = ("lower limit",)
        state = TOOL_STATES.get(cells[at], State.ABSENT)
        yield Row(name=cells[0], kind=kind, state=state, reading=real(first), said=said)


FIELD = re.compile(r"\s*([A-Z][\w /()-]{2,40}?)\s*: ?(.*)", re.ASCII)
PLACED = re.compile(r"\s+\[(.{1,80})\]\s*", re.ASCII)


def _verbose(rows: Sequence[str]) -> Iterator[Row]:
    """Parse ipmitool -v sdr: blocks of fields. Only `States Asserted` describes the present; other fields list possible
    states."""
    name = kind = ""
    said: list[str] = []
    asserted = False
    for row in [*rows, "Sensor ID : "]:
        if match := PLACED.fullmatch(row):
            if asserted:
                said.append(match[1])
            continue
        if not (match := FIELD.match(row)):
            continue
        asserted = match[1] == "States Asserted"
        if match[1] == "Sensor ID":
            if name and kind:
                yield Row(name=name, kind=kind, state=State.GOOD, reading=None, said=tuple(said))
            name, kind, said = match[2].partition(" (0x")[0].strip(), "", []
        elif match[1].startswith("Sensor Type (Discrete"):
            kind = match[2].partition(" (0x")[0].strip()


FORMS = (
    ("ipmi-sensors", _free),
    ("ipmitool-sdr", _tool),
    ("ipmitool-sdr-elist", _tool),
    ("ipmitool-sensor", _tool),
    ("ipmitool-sdr-v", _verbose),
)
