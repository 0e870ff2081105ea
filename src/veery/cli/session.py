"""What a verb works with: the daemon, the options given before the verb, and whose voice to speak in."""

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
    """The command line cannot be understood: exit status 2. `verb` is where the help lies."""

    def __init__(self, message: str, verb: str = "") -> None:
        super().__init__(message)
        self.message, self.verb = message, verb


class NoDomain(Refused):
    """There is no domain of that name or id on the node; xm and xl have words and exit statuses of their own."""

    def __init__(self, word: str) -> None:
        super().__init__(f"no domain {word} here", hint="veery list shows the domains of this node, with -A of all")
        self.word = word


@dataclass
class Session:
    """One command. `tool` is "veery", or "xl" or "xm" where we were called by that name; `failure` is the exit status
    of an error that has no other."""

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
        """The daemon's. Raises Refused."""
        return find(self.settings, self.node, self.lab)

    @property
    def client(self) -> Client:
        """The daemon. Raises Refused."""
        if self._client is None:
            self._client = Client(self.address)
        return self._client

    def domain(self, word: str) -> str:
        """How to name domain `word` (a name, a domid or a UUID) in the API.

        xm and xl say in words of their own that there is no such domain, so for them it is looked up first;
        for veery the daemon's own answer is good."""
        return word if self.tool == "veery" else str(self.reading(word).domid)

    def readings(self, *, unsettled: bool = False) -> tuple[DomainReading, ...]:
        """Every domain on the node, Domain-0 first; with `unsettled` the moves that cannot be settled are told too."""
        told = self.client.get("/v1/domains")
        self.note_restored(told)
        if unsettled:
            self.note_unsettled(told)
        return tuple(as_reading(row) for row in told["domains"])

    def note_restored(self, told: dict[str, Any]) -> None:
        """Say where the store is not trusted: nothing is started, ended or moved then."""
        if told.get("restored"):
            self.note(f"veery: the store is not trusted ({told['restored']}); next: veery cluster adopt --plan")

    def note_unsettled(self, told: dict[str, Any]) -> None:
        """Say which moves cannot be settled: their domains take no orders until they are."""
        for sentence in told.get("unsettled", ()):
            self.note(f"veery: {sentence}; next: veery doctor")

    def reading(self, word: str) -> DomainReading:
        """Domain `word`. Raises NoDomain for xm and xl; for veery what the daemon says, which may know more."""
        if self.tool == "veery":
            return as_reading(self.client.get(domain_path(word))["reading"])
        return pick(self.readings(), word)

    def note_warnings(self, told: dict[str, Any]) -> None:
        """Say what the node's driver does not carry out of what was asked."""
        for warning in told.get("warnings") or ():
            self.note(f"{self.tool}: {warning}")

    def note(self, text: str) -> None:
        """Say something that is not the command's result."""
        print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)

    def print_json(self, value: object) -> None:
        """Print `value` (plain values, dataclasses) as the command's result."""
        import json

        print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def pick(readings: tuple[DomainReading, ...], word: str) -> DomainReading:
    """The domain that `word` names: its domid if it is a number, else its name or UUID. Raises NoDomain."""
    for reading in readings:
        if word in {str(reading.domid), reading.uuid} if word.isdigit() else word in {reading.name, reading.uuid}:
            return reading
    raise NoDomain(word)


def refuse_domain_0(words: Iterable[str]) -> None:
    """Raise Refused where one of `words`, the domains to move, is Domain-0."""
    if not {"0", "Domain-0"}.isdisjoint(words):
        raise Refused("Domain-0 is this machine itself and cannot be moved", hint="veery list shows the domains")


def as_reading(row: dict[str, Any]) -> DomainReading:
    """A DomainReading out of its JSON: codec.convert for the one value that the quickest commands need, since to
    import msgspec takes as long as all the rest of `veery list`."""
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
    """(message, hint) for whatever went wrong."""
    if isinstance(error, VeeryError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}", ""
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:60]!a} is no text that veery can use", "names are UTF-8, and those of nodes ASCII"
    line = " ".join(str(error).split())
    return f"internal error: {type(error).__name__}: {line}", "VEERY_DEBUG=1 shows where; please report it"
