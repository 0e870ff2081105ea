"""The commands that a hint names, as words: what a user would type."""

from __future__ import annotations

import re
from collections.abc import Iterator

from veery.cli import foreign
from veery.cli.catalogue import Entry, entries
from veery.cli.parser import Parser
from veery.cli.session import Usage

COMMAND = re.compile(r"(?<![\w/-])veery ((?:[a-z-]+|--[a-z]+)[^;,()`\n]*)")
_PROSE = """
    shows show ends starts tells tell lists works has asks may and or gives lets to it where when then again is on of
    wants there that those prints opens begins makes names forgets tries stops restarts restores
    attaches continues -"""
PROSE = frozenset(_PROSE.split())
"""Words of a sentence that goes on behind a command."""
OPENING = ("--node", "--settings", "--lab")
_LOOKING = """
    list, vm-list, vcpu-list, block-list, network-list, node list, node show, volume list, volume show, ha list,
    ha show, group list, fence list, fence show, moves, move show, why, events, cluster status, cluster cpu,
    target list, token list, info, dmesg, network list, uptime"""
LOOKING = frozenset(name.strip() for name in _LOOKING.split(","))
"""Verbs that change nothing."""


def commands(hint: str) -> Iterator[list[str]]:
    """The words behind `veery` of each command in `hint`, without the sentence that goes on behind it."""
    for match in COMMAND.finditer(hint):
        words = match[1].replace(":", " : ").split()
        end = next((place for place, word in enumerate(words) if _prose(words, place) or word == ":"), len(words))
        found = [word.rstrip(".") for word in words[:end]]
        if verb(found)[0] is not None:
            yield found


def _prose(words: list[str], place: int) -> bool:
    """Whether the sentence goes on at `place`."""
    return words[place] in PROSE and words[:place] != ["node", "vote"]  # `node vote on`


def verb(words: list[str]) -> tuple[Entry | None, list[str]]:
    """The verb that `words` name, and the words behind it; None where they name none."""
    rest = list(words)
    while rest and rest[0] in OPENING:
        rest = rest[2:]
    known = entries()
    for count in (2, 1):
        if (name := " ".join(rest[:count])) in known:
            return known[name], rest[count:]
    return None, rest


def unusable(words: list[str]) -> str:
    """Why the command could not be given as it stands; "" where it could."""
    entry, rest = verb(words)
    if entry is None:
        return "" if rest and rest[0] in foreign.VERBS else f"no verb in {words}"
    if "--help" in rest or (not rest and entry.name not in LOOKING and not _needs(entry)):
        return ""
    try:
        Parser(entry, entry.load()).parse_intermixed_args(rest)
    except (Usage, SystemExit) as error:
        # What an f-string fills in may be one of the choices.
        return "" if "invalid choice: 'PLACE'" in str(error) else f"veery {' '.join(words)}: {error}"
    return ""


def looks(words: list[str]) -> bool:
    """Whether the command changes nothing."""
    entry, rest = verb(words)
    return entry is not None and (entry.name in LOOKING or "--help" in rest)


def _needs(entry: Entry) -> bool:
    return any(
        not action.option_strings and action.nargs not in ("?", "*") for action in Parser(entry, entry.load())._actions
    )
