"""The context of one command: the client of veeryd, the common options, and the tool name (veery, xm or xl)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from veery.client.address import Address, find
from veery.client.http import Client, domain_path
from veery.errors import Refused, VeeryError

if TYPE_CHECKING:
    from veery.model.domain import DomainReading


class Usage(Exception):
    """An invalid command line: exit status 2. `verb` is the verb whose --help explains it."""

    def __init__(self, message: str, verb: str = "") -> None:
        super().__init__(message)
        self.message, self.verb = message, verb


class NoDomain(Refused):
    """No domain of this name or id on the node. xm and xl have their own messages and exit statuses for it."""

    def __init__(self, word: str) -> None:
        super().__init__(
            f"no domain {word} here", hint="veery list shows the domains of this node; veery list -A those of all nodes"
        )
        self.word = word


@dataclass
class Session:
    """One command. `tool` is the name that it was called by: "veery", "xl" or "xm". `failure` is the exit status of an
    error that has no other status."""

    tool: str = "veery"
    node: str = ""
    settings: str = ""
    lab: str = ""
    json: bool = False
    dry: bool = False
    verb: str = ""
    failure: int = 1
    _client: Client | None = field(default=None, repr=False)

    @property
    def address(self) -> Address:
        """The address of veeryd. Raises Refused."""
        return find(self.settings, self.node, self.lab)

    @property
    def client(self) -> Client:
        """The client of veeryd. Raises Refused."""
        if self._client is None:
            self._client = Client(self.address)
        return self._client

    def domain(self, word: str) -> str:
        """Return the name of domain `word` (a name, a domid or a UUID) in the API.

        xm and xl have their own messages for a missing domain, so this looks the domain up first. For veery it does
        not: veeryd's own error is right."""
        return word if self.tool == "veery" else str(self.reading(word).domid)

    def readings(self, *, unsettled: bool = False) -> tuple[DomainReading, ...]:
        """Return every domain on the node, Domain-0 first. `unsettled` also notes moves that cannot be settled."""
        told = self.client.get("/v1/domains")
        self.note_restored(told)
        if unsettled:
            self.note_unsettled(told)
        return tuple(as_reading(row) for row in told["domains"])

    def note_restored(self, told: dict[str, Any]) -> None:
        """Print a note if the store is not trusted: veeryd then starts, stops and moves nothing."""
        if told.get("restored"):
            self.note(f"veery: the store is not trusted ({told['restored']}); next: veery cluster adopt --plan")

    def note_unsettled(self, told: dict[str, Any]) -> None:
        """Print the moves that cannot be settled: until they are, veeryd refuses orders for their domains."""
        for sentence in told.get("unsettled", ()):
            self.note(f"veery: {sentence}; next: veery doctor")

    def reading(self, word: str) -> DomainReading:
        """Return domain `word`. Raises NoDomain for xm and xl, and veeryd's own error for veery."""
        if self.tool == "veery":
            return as_reading(self.client.get(domain_path(word))["reading"])
        return pick(self.readings(), word)

    def note_warnings(self, told: dict[str, Any]) -> None:
        """Print the warnings of an answer: the parts of the order that the node's driver does not carry out."""
        for warning in told.get("warnings") or ():
            self.note(f"{self.tool}: {warning}")

    def note(self, text: str) -> None:
        """Print `text` on stderr: it is not the result of the command."""
        print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)

    def print_json(self, value: object) -> None:
        """Print `value` (plain values, dataclasses) as the result of the command."""
        import json

        print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def pick(readings: tuple[DomainReading, ...], word: str) -> DomainReading:
    """Return the domain that `word` names: by domid if it is a number, else by name or UUID. Raises NoDomain."""
    for reading in readings:
        if word in {str(reading.domid), reading.uuid} if word.isdigit() else word in {reading.name, reading.uuid}:
            return reading
    raise NoDomain(word)


def refuse_domain_0(words: Iterable[str]) -> None:
    """Raise Refused if one of `words`, the domains to move, is Domain-0."""
    if not {"0", "Domain-0"}.isdisjoint(words):
        raise Refused("Domain-0 is this machine itself and cannot be moved", hint="veery list shows the domains")


def as_reading(row: dict[str, Any]) -> DomainReading:
    """Build a DomainReading from its JSON. The fastest commands need this value only, and codec.convert would import
    msgspec, which takes as long as all the rest of `veery list`."""
    from veery.model.domain import DomainReading, DomainState

    known = {name: row[name] for name in DomainReading.__slots__ if name in row}
    known["state"] = DomainState(known["state"])
    return DomainReading(**known)


def _plain(value: object) -> object:
    import dataclasses

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def sentence(error: Exception) -> tuple[str, str]:
    """Return (message, hint) of any error."""
    if isinstance(error, VeeryError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", ""
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:60]!a} is not valid text", "names are UTF-8, names of nodes are ASCII"
    line = " ".join(str(error).split())
    return f"internal error: {type(error).__name__}: {line}", "VEERY_DEBUG=1 shows where; please report it"
