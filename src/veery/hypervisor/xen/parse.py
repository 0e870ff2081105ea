"""What xl prints, as values. Pure.

Formats: tools/xl/xl_info.c and xl_vcpu.c of Xen 4.14 to 4.20; tests/data/xl has recorded outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from veery.errors import Failed
from veery.model.domain import DomainEnd, DomainState, VcpuReading


class Reason(IntEnum):
    """Why a domain is shut down (xen/include/public/sched.h, SHUTDOWN_*)."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2  # for a save or a move; also its source, until it is resumed or destroyed
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


ENDS: dict[int, DomainEnd] = {
    Reason.POWEROFF: DomainEnd.POWEROFF,
    Reason.REBOOT: DomainEnd.REBOOT,
    Reason.CRASH: DomainEnd.CRASH,
    Reason.WATCHDOG: DomainEnd.WATCHDOG,
    Reason.SOFT_RESET: DomainEnd.REBOOT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One domain as `xl list -v` shows it. `memory` in MiB; `letters` as printed; `reason` is None while it is not shut
    down. `uuid` identifies the domain: its name changes during a move (NAME--incoming, NAME--migratedaway)."""

    name: str
    domid: int
    memory: int
    vcpus: int
    letters: str
    cpu_seconds: float
    uuid: str
    reason: int | None = None

    @property
    def dying(self) -> bool:
        """True if it is being destroyed, or is destroyed and another domain still holds a page of it."""
        return self.letters[5] == "d"

    @property
    def held(self) -> bool:
        """True if an order has stopped its processors."""
        return self.letters[2] == "p"

    @property
    def end(self) -> DomainEnd | None:
        """Why it stopped by itself; None while it lives, and while it is only suspended."""
        return None if self.reason is None or self.dying else ENDS.get(self.reason)

    @property
    def state(self) -> DomainState:
        """Its current state, as far as Xen reports it."""
        if self.dying:
            return DomainState.DYING
        if self.reason is not None:
            if self.reason == Reason.SUSPEND:
                return DomainState.PAUSED
            return DomainState.CRASHED if self.reason == Reason.CRASH else DomainState.SHUTDOWN
        if self.held:
            return DomainState.PAUSED
        return DomainState.BLOCKED if self.letters[1] == "b" else DomainState.RUNNING


_ROW = re.compile(
    r"(?P<name>.*?) +(?P<domid>\d+) +(?P<memory>\d+) +(?P<vcpus>\d+) +(?P<letters>[r-][b-][p-][s-].[d-]) +"
    r"(?P<seconds>[\d.]+) +(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}) +(?P<reason>[0-9a-f]+|-) +\S+\s*"
)


def rows(text: str) -> tuple[Row, ...]:
    """Return the domains of `xl list -v`, Domain-0 first. Raises Failed for another text."""
    header, *lines = text.splitlines() or [""]
    if not re.match(r"Name +ID +Mem +VCPUs\s+State\s+Time\(s\) +UUID", header):
        raise Failed(f"xl list -v printed {header[:60]!r}", hint="is this Xen newer than veery knows?")
    found = []
    for line in lines:
        match = _ROW.fullmatch(line)
        if match is None:
            raise Failed(f"xl list -v printed {line[:60]!r}", hint="is this Xen newer than veery knows?")
        reason = match["reason"]
        found.append(
            Row(
                name=match["name"],
                domid=int(match["domid"]),
                memory=int(match["memory"]),
                vcpus=int(match["vcpus"]),
                letters=match["letters"],
                cpu_seconds=float(match["seconds"]),
                uuid=match["uuid"],
                reason=None if reason == "-" else int(reason, 16),
            )
        )
    return tuple(found)


_VCPU = re.compile(r"(?P<name>.*?) +(?P<domid>\d+) +(?P<number>\d+) +(?P<cpu>\d+|-) +\S+ +(?P<seconds>[\d.]+) +\S.*")


def vcpus(text: str) -> tuple[VcpuReading, ...]:
    """Return the rows of `xl vcpu-list DOMAIN`; a processor that is offline shows `-` for its place."""
    found = []
    for line in text.splitlines()[1:]:
        match = _VCPU.fullmatch(line)
        if match is None:
            raise Failed(f"xl vcpu-list printed {line[:60]!r}", hint="is this Xen newer than veery knows?")
        cpu = -1 if match["cpu"] == "-" else int(match["cpu"])
        found.append(VcpuReading(number=int(match["number"]), cpu=cpu, seconds=float(match["seconds"])))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """`xl info`. Memory in MiB; `capabilities` are the words of xen_caps, `virtual` those of virt_caps; `processor` the
    feature words of hw_caps; `rows` are all rows as printed, in order."""

    version: str
    major: int
    minor: int
    capabilities: tuple[str, ...]
    virtual: tuple[str, ...]
    processor: tuple[int, ...]
    cpus: int
    cpu_mhz: float
    memory_total: int
    memory_free: int
    rows: dict[str, str]

    def logs_dirty_pv(self) -> bool:
        """Return whether a PV domain can move live from here: that needs shadow paging, which virt_caps shows since Xen
        4.13; builds after XSA-495 lack it."""
        return "shadow" in self.virtual


def info(text: str) -> Info:
    """Return the values of `xl info`. Raises Failed where a row is missing that it always has."""
    table = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            table[key.strip()] = value.strip()
    try:
        return Info(
            version=table["xen_version"],
            major=int(table["xen_major"]),
            minor=int(table["xen_minor"]),
            capabilities=tuple(table["xen_caps"].split()),
            virtual=tuple(table.get("virt_caps", "").split()),
            processor=tuple(int(word, 16) for word in table.get("hw_caps", "").split(":") if word),
            cpus=int(table["nr_cpus"]),
            cpu_mhz=float(table["cpu_mhz"]),
            memory_total=int(table["total_memory"]),
            memory_free=int(table["free_memory"]),
            rows=table,
        )
    except (KeyError, ValueError) as error:
        raise Failed(
            f"the output of xl info is not understood: {error}", hint="is dom0's Xen tool stack up? xl info"
        ) from error


_NOISE = re.compile(r"^(Parsing config|Loading new save file|Saving to |\s*Savefile contains|xc: info|migration )")
_WHERE = re.compile(
    r"^(libxl: )?(error|fatal error|warning|notice)?:? ?([a-z_0-9]+\.c:\d+:\w+: )?(Domain \d+:)?", re.IGNORECASE
)


def complaint(text: str) -> str:
    """Return the most useful line of xl's and libxl's messages: the first error, without its place in their source."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    errors = [line for line in lines if "error" in line.lower() or "fail" in line.lower()] or lines
    if not errors:
        return "no reason given"
    return _WHERE.sub("", errors[0]).strip() or errors[0]
