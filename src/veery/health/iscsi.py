"""iSCSI sessions and SCSI disks of the initiator.

Source: drivers/scsi/scsi_transport_iscsi.c (LOGGED_IN, FAILED, FREE); Documentation/scsi (device states). The log
counts only if no state is available, because sessions that end on purpose or come back are also logged as errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from veery.health import kmsg
from veery.health.series import Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source, lines

HOLD_S = 10.0
PROGRAMS = ("iscsiadm-session-P1", "iscsiadm-session-P3")
UP = "LOGGED_IN"
WINDOW_S = 600.0
OFTEN = 3
LOST = re.compile(
    r"\s*session(\d{1,6}): session recovery timed out|"
    r"\s*connection(\d{1,6}):\d+: (?:detected conn error|ping timeout of)",
    re.ASCII,
)
LOST_STATES = ("offline", "transport-offline", "blocked")
ATTACHED = re.compile(r"\s*Attached scsi disk (sd[a-z]{1,4})\s+State: ([\w-]{1,20})", re.ASCII)
FIELD = re.compile(r"\s*(Target|SID|iSCSI Connection State|iSCSI Session State): ?(.{0,300})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reading:
    """States by session and by disk; `sessions` is None if iscsiadm's answer cannot be parsed."""

    sessions: dict[str, str] | None = field(default_factory=dict)
    disks: dict[str, str] = field(default_factory=dict)
    log: tuple[kmsg.Record, ...] = ()


class Iscsi:
    """The sensor of iSCSI sessions."""

    name = "iscsi"

    def read(self, source: Source) -> Reading | None:
        sessions: dict[str, str] | None = {}
        texts = [text for program in PROGRAMS for text in source.outputs(program).values()]
        for text in texts:
            found = _sessions(lines(text))
            if found is None:
                sessions = None
                break
            sessions = {**(sessions or {}), **found}
        for path in source.paths("sys/class/iscsi_session/session*/state"):
            if sessions is not None:
                key = path.parent.name
                state = source.word(f"sys/class/iscsi_session/{key}/state") or ""
                if sessions.get(key, UP) == UP:
                    sessions[key] = state
        disks = {
            path.parent.parent.name: source.word(path.relative_to(source.root)) or ""
            for path in source.paths("sys/block/sd*/device/state")
        }
        for match in (ATTACHED.match(line) for text in texts for line in lines(text)):
            if match:
                disks.setdefault(match[1], match[2])
        log = tuple(record for record in kmsg.read(source) or () if LOST.match(record.text))
        return Reading(sessions, disks, log) if texts or sessions or disks or log else None

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        last = series.last
        if last.sessions is None:
            yield sign(self.name, "sessions", Level.UNKNOWN, "", "iscsiadm's answer cannot be understood")
        if not (last.sessions is None or last.sessions or last.disks or last.log):
            yield sign(self.name, "sessions", Level.OK, 0, "there is no session")
        for name, state in (last.sessions or {}).items():

            def lost(reading: Reading, name: str = name) -> bool:
                return (reading.sessions or {}).get(name, UP) != UP

            if lost(last) and series.held(lost, HOLD_S):
                yield sign(self.name, name, Level.WATCH, state, "the session is not logged in")
            else:
                yield sign(self.name, name, Level.OK, state, "the session is logged in")
        yield from self._logged(series)
        for disk, state in last.disks.items():
            if state in LOST_STATES:
                is_host = series.given.host_disks is not None and series.given.is_ours(disk)
                level = Level.BAD if is_host and state == "offline" else Level.WATCH
                yield sign(self.name, disk, level, state, "the kernel does not reach the disk")
            else:
                yield sign(self.name, disk, Level.OK, state, "the disk answers")

    def _logged(self, series: Series[Reading]) -> Iterator[Sign]:
        """Report sessions that the log shows as lost, if their present state is unknown."""
        lost: dict[str, list[kmsg.Record]] = {}
        for record in kmsg.merged(moment.reading.log for moment in series.moments):
            if match := LOST.match(record.text):
                lost.setdefault(f"session{match[1] or match[2]}", []).append(record)
        for name, records in lost.items():
            given_up = any("recovery timed out" in record.text for record in records)
            often = kmsg.most_within(records, WINDOW_S) >= OFTEN
            if name not in (series.last.sessions or {}) and (given_up or often):
                yield sign(
                    self.name, name, Level.WATCH, len(records), "the session was lost, and nothing shows it back"
                )


def _sessions(rows: list[str]) -> dict[str, str] | None:
    """Parse the sessions of `iscsiadm -m session -P 1`. Return None if the text has none and does not say so."""
    found: dict[str, str] = {}
    sid = ""
    connection = ""
    for row in rows:
        if not (match := FIELD.match(row)):
            continue
        key, value = match[1], match[2].strip()
        if key == "SID":
            sid, connection = f"session{value}", ""
        elif key == "iSCSI Connection State":
            connection = value
        elif key == "iSCSI Session State" and sid:
            found[sid] = value if value != UP or connection in ("LOGGED IN", "") else connection
    if not found and any(row.strip() for row in rows) and not any("No active sessions" in row for row in rows):
        return None
    return found
