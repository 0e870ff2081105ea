"""Parser of tgtadm's output: targets with their LUNs, sessions and accounts (tgt 1.0.85, usr/target.c)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from veery.errors import Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One TCP connection of a session; `address` is "" once tgtd has closed it and waits for its last I/O."""

    cid: int
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One I_T nexus: the session of the logged-in `initiator`. `sid` is the session's TSIH."""

    sid: int
    initiator: str
    alias: str = ""
    connections: tuple[Connection, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lun:
    """One logical unit. `size_mb` has tgt's own rounding (`shown_size`); `path` is "" for the controller, LUN 0."""

    lun: int
    kind: str
    scsi_id: str
    serial: str
    size_mb: int
    block_size: int
    online: bool
    readonly: bool
    backing: str
    path: str
    flags: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One target in the output of `tgtadm --op show`. `acl`: initiator names and addresses. `accounts`: the bound CHAP
    users."""

    tid: int
    iqn: str
    state: str
    luns: tuple[Lun, ...] = ()
    sessions: tuple[Session, ...] = ()
    accounts: tuple[str, ...] = ()
    outgoing: str = ""
    acl: tuple[str, ...] = ()

    def lun(self, number: int) -> Lun | None:
        """Return logical unit `number`, or None."""
        return next((lun for lun in self.luns if lun.lun == number), None)


def shown_size(size: int) -> int:
    """Return the "MB" that tgt prints for `size` bytes (target.c, print_disksize). Different sizes in whole MiB give
    different values."""
    sectors = size // 512
    return (sectors - (sectors // 625 - 974)) // 1950


def is_filler(user: str) -> bool:
    """Return whether an account is a filler: its name is "#" and a number."""
    return bool(re.fullmatch(r"#\d+", user))


def filler(bound: Collection[str]) -> str:
    """Return the name of a filler that is not among the accounts `bound` to a target."""
    return next(name for number in itertools.count() if (name := f"#{number}") not in bound)


# ---------------------------------------------------------------- parsing


@dataclass(slots=True)
class _Draft:
    """A target while its lines are parsed."""

    tid: int
    iqn: str
    state: str = ""
    luns: list[dict[str, str]] = field(default_factory=list)
    sessions: list[dict[str, str]] = field(default_factory=list)
    connections: list[list[dict[str, str]]] = field(default_factory=list)
    accounts: list[str] = field(default_factory=list)
    acl: list[str] = field(default_factory=list)

    def take(self, section: str, text: str) -> None:
        """Take one line of `section`, without its indentation."""
        if section == "Account":
            self.accounts.append(text)
            return
        if section == "ACL":
            self.acl.append(text)
            return
        key, _, value = text.partition(":")
        value = value.strip()
        if section == "System" and key == "State":
            self.state = value
        elif section == "LUN":
            if key == "LUN":
                self.luns.append({})
            self.luns[-1][key] = value
        elif section == "I_T nexus":
            if key == "I_T nexus":
                self.sessions.append({})
                self.connections.append([])
            if key == "Connection":
                self.connections[-1].append({})
            place = self.connections[-1][-1] if self.connections[-1] else self.sessions[-1]
            place[key] = value

    def target(self) -> Target:
        """Return the finished value. Raises KeyError or ValueError if a field is missing or not a number."""
        outgoing = [name.removesuffix(" (outgoing)") for name in self.accounts if name.endswith(" (outgoing)")]
        return Target(
            tid=self.tid,
            iqn=self.iqn,
            state=self.state,
            luns=tuple(_lun(fields) for fields in self.luns),
            sessions=tuple(map(_session, self.sessions, self.connections)),
            accounts=tuple(name for name in self.accounts if not name.endswith(" (outgoing)")),
            outgoing=outgoing[0] if outgoing else "",
            acl=tuple(self.acl),
        )


def _lun(fields: dict[str, str]) -> Lun:
    size, _, block = fields["Size"].partition(" MB, Block size: ")
    return Lun(
        lun=int(fields["LUN"]),
        kind=fields["Type"],
        scsi_id=fields["SCSI ID"],
        serial=fields["SCSI SN"],
        size_mb=int(size),
        block_size=int(block),
        online=fields["Online"] == "Yes",
        readonly=fields["Readonly"] == "Yes",
        backing=fields["Backing store type"],
        path="" if fields["Backing store path"] == "None" else fields["Backing store path"],
        flags=fields["Backing store flags"],
    )


def _session(fields: dict[str, str], connections: list[dict[str, str]]) -> Session:
    initiator, _, alias = fields.get("Initiator", "").partition(" alias: ")
    return Session(
        sid=int(fields["I_T nexus"]),
        initiator=initiator,
        alias="" if alias == "none" else alias,
        connections=tuple(
            Connection(cid=int(one["Connection"]), address=one.get("IP Address", "")) for one in connections
        ),
    )


_TARGET = re.compile(r"Target (\d+): (\S+)")
_SECTION = re.compile(r" {4}(\S.*) information:")


def parse_targets(text: str) -> tuple[Target, ...]:
    """Parse the output of `tgtadm --mode target --op show`. Raises Failed with the first invalid line."""
    drafts: list[_Draft] = []
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if match := _TARGET.fullmatch(line):
                drafts.append(_Draft(int(match[1]), match[2]))
            elif match := _SECTION.fullmatch(line):
                section = match[1]
            elif line.startswith(" " * 8):
                drafts[-1].take(section, line.strip())
            elif line.strip():
                raise ValueError(line)
        except (IndexError, ValueError) as error:
            raise Failed(f"tgtadm: cannot parse line {number}: {line.strip()!r}") from error
    try:
        return tuple(draft.target() for draft in drafts)
    except (KeyError, ValueError) as error:
        raise Failed(f"tgtadm: a field is missing or not a number: {error}") from error


_CONNECTION = re.compile(r"Session: (\d+)\n {4}Connection: (\d+)\n {8}Initiator: (.*)\n {8}(?:IP Address: (.*))?\n")


def parse_connections(text: str) -> tuple[Session, ...]:
    """Parse the output of `tgtadm --mode conn --op show --tid N`: every connection that tgtd still has, one Session
    each. Raises Failed if it cannot be parsed."""
    found, at = [], 0
    while match := _CONNECTION.match(text, at):
        sid, cid, initiator, address = match.groups()
        connection = Connection(cid=int(cid), address=address or "")
        found.append(Session(sid=int(sid), initiator=initiator, connections=(connection,)))
        at = match.end()
    if text[at:].strip():
        raise Failed(f"tgtadm: cannot parse the connections: {text[at:].strip().splitlines()[0]!r}")
    return tuple(found)
