"""`xm` and `xl`: the old tools, as symbolic links to veery.

The verbs are veery's own, which accept xl's flags. This module has the differences: the messages and exit statuses of
errors (xl: 1, and 2 for a bad command line; xm: 1, and 3 for an unknown domain), unique prefixes of verbs, and
arguments with another meaning in xm. Sources: tools/xl/xl.c, xl_utils.c and xl_cmdtable.c of Xen 4.17, and
tools/python/xen/xm/main.py, create.py, migrate.py, shutdown.py of Xen 4.2."""

from __future__ import annotations

import getopt
from collections.abc import Callable

from veery.cli import foreign
from veery.cli.catalogue import Entry, entries
from veery.cli.parser import run_verb
from veery.cli.session import NoDomain, Session, Usage, sentence
from veery.errors import Refused

_SHARED = (
    "create list console shutdown reboot destroy pause unpause save restore rename mem-set migrate vcpu-list uptime "
    "domid domname info top dmesg block-list block-attach block-detach network-list network-attach network-detach "
    "sysrq trigger dump-core mem-max vcpu-set vcpu-pin sched-credit sched-credit2"
)
VERBS = {"xl": f"{_SHARED} vm-list cd-insert cd-eject".split(), "xm": f"{_SHARED} delete".split()}
_BY_REAL_XL = frozenset({"list", "vm-list", "vcpu-list", "uptime", "block-list", "network-list"})
"""Verbs whose output comes from Xen's own xl on a Xen node."""
_VEERY_WORDS = frozenset({"--json", "-h", "--help", "-A", "--cluster", "-l", "--long"})
"""Options that only veery has, or to which veery adds something."""
_XM_PORT = 8002


def run(session: Session, words: list[str]) -> int:
    """Run `words` as xl or xm would. Returns the exit status."""
    words = _options(session, words)
    if not words or words[0] in {"help", "-h", "--help"}:
        return _help(session, words[1:], status=0 if words[1:] or (words and session.tool == "xl") else 1)
    entry = lookup(session.tool, words[0])
    if entry is None and words[0] in foreign.VERBS:
        session.verb = words[0]
        return foreign.run(session, words[0], words[1:])
    if entry is None:
        if session.tool == "xm":
            session.note(f"Error: Subcommand {words[0]} not found!")
            _help(session, [], status=1)
        else:
            session.note("command not implemented")
        return 1
    rest = words[1:]
    if session.tool == "xl" and entry.name in _BY_REAL_XL and not _VEERY_WORDS & set(rest):
        status = foreign.real_answer(session, entry.name, rest)
        if status is not None:
            return status
    if session.tool == "xm":
        entry, rest = _XM[entry.name](entry, rest) if entry.name in _XM else (entry, rest)
    return run_verb(session, entry, rest)


def _options(session: Session, words: list[str]) -> list[str]:
    """Remove xl's options before the verb and return the rest. -v -f -t -T have no effect; -N is the dry run."""
    while session.tool == "xl" and words and words[0].startswith("-") and words[0] not in {"-h", "--help"}:
        if not set(words[0][1:]) <= set("vftTN"):
            raise Refused("unknown global option")
        session.dry = session.dry or "N" in words[0]
        words = words[1:]
    return words


def lookup(tool: str, word: str) -> Entry | None:
    """Return the verb that `word` names, or of which it is a unique prefix; None if there is none."""
    names = VERBS[tool]
    if word not in names:
        begun = [name for name in names if name.startswith(word)]
        if len(begun) != 1:
            return None
        word = begun[0]
    return entries()[word]


def _help(session: Session, words: list[str], *, status: int) -> int:
    if words and (entry := lookup(session.tool, words[0])):
        return run_verb(session, entry, ["--help"])
    if session.tool == "xl":
        print("Usage xl [-vfNtT] <subcommand> [args]\n\nxl full list of subcommands:\n")
    else:
        print("Usage: xm <subcommand> [args]\n\nControl, list, and manipulate Xen guest instances.\n")
        print("xm full list of subcommands:\n")
    for name in VERBS[session.tool]:
        summary = entries()[name].summary
        print(f" {name:<19} {summary[0].upper()}{summary[1:]}")
    return status


# ---- errors
def print_error(session: Session, error: Exception) -> int:
    """Print `error` as the tool would. Returns the exit status."""
    if isinstance(error, NoDomain):
        return _no_domain(session, error.word)
    if isinstance(error, Usage):
        if session.tool == "xm":
            session.note(f"Error: {error.message}")
            return 1
        session.note(f"'xl {error.verb}': {error.message}\n")
        return 2
    message, hint = sentence(error)
    label = "Error: " if session.tool == "xm" else "xl: "
    session.note(f"{label}{message}" + (f"\n  hint: {hint}" if hint else ""))
    if session.verb == "migrate" and session.tool == "xl":
        session.note("Migration failed, resuming at sender.")
    return session.failure


def _no_domain(session: Session, word: str) -> int:
    if session.tool == "xm":
        session.note(f"Error: Domain '{word}' does not exist.")
        return 3  # XendClient.ERROR_INVALID_DOMAIN
    if session.verb == "domid":
        session.note(f"Can't get domid of domain name '{word}', maybe this domain does not exist.")
    elif session.verb == "domname":
        session.note(f"Can't get domain name of domain id '{word}', maybe this domain does not exist.")
    elif session.verb in {"block-attach", "block-list"}:
        session.note(f"{word} is an invalid domain identifier")
    else:
        session.note(f"{word} is an invalid domain identifier (rc=-6)")  # ERROR_INVAL
    return 1


# ---- xm's own arguments
def _getopt(words: list[str], short: str, long: list[str], verb: str) -> tuple[dict[str, str], list[str]]:
    try:
        options, rest = getopt.gnu_getopt(words, short, long)
    except getopt.GetoptError as error:
        raise Usage(str(error), verb) from error
    return dict(options), rest


def _xm_list(entry: Entry, words: list[str]) -> tuple[Entry, list[str]]:
    options, rest = _getopt(words, "lv", ["long", "vcpus", "label", "state=", "pool="], "list")
    if {"-v", "--vcpus"} & options.keys():
        return entries()["vcpu-list"], rest
    if {"--label", "--pool"} & options.keys() or options.get("--state", "all") != "all":
        raise Refused("veery cannot select domains by label, pool or state", hint="omit these options")
    return entry, [*(["-l"] if {"-l", "--long"} & options.keys() else []), *rest]


def _xm_migrate(entry: Entry, words: list[str]) -> tuple[Entry, list[str]]:
    options, rest = _getopt(words, "lp:n:sc", ["live", "port=", "node=", "ssl", "change_home_server"], "migrate")
    port = options.get("-p", options.get("--port", "0"))
    if port not in {"0", str(_XM_PORT)}:
        raise Refused(
            "the target's settings define its relocation port", hint="omit -p, and set relocation.port on the target"
        )
    if options.get("-n", options.get("--node", "-1")) != "-1":
        raise Refused("veery has no NUMA placement", hint="omit -n")
    live = bool({"-l", "--live"} & options.keys())
    return entry, ["--live" if live else "--no-live", *rest]


def _xm_shutdown(entry: Entry, words: list[str]) -> tuple[Entry, list[str]]:
    options, rest = _getopt(words, "awHR", ["all", "wait", "halt", "reboot"], "shutdown")
    halt, reboot = {"-H", "--halt"} & options.keys(), {"-R", "--reboot"} & options.keys()
    if halt and reboot:
        raise Usage("Can't specify halt and reboot", "shutdown")
    kept = [name for name in options if name in {"-a", "--all", "-w", "--wait"}]
    return entries()["reboot"] if reboot else entry, [*kept, *rest]


def _xm_block_attach(entry: Entry, words: list[str]) -> tuple[Entry, list[str]]:
    if len(words) not in {4, 5}:
        raise Usage("'xm block-attach' requires between 4 and 5 arguments.\n", "block-attach")
    domain, uname, device, mode = words[:4]
    spec = f"{uname if ':' in uname else f'phy:{uname}'},{device},{mode}"
    return entry, [domain, spec, *(f"backend={name}" for name in words[4:])]


def _xm_save(entry: Entry, words: list[str]) -> tuple[Entry, list[str]]:
    options, rest = _getopt(words, "c", ["checkpoint"], "save")
    if len(rest) != 2:
        raise Usage("Wrong number of parameters", "save")
    return entry, [*(["-c"] if options else []), *rest]


_XM: dict[str, Callable[[Entry, list[str]], tuple[Entry, list[str]]]] = {
    "list": _xm_list,
    "migrate": _xm_migrate,
    "shutdown": _xm_shutdown,
    "block-attach": _xm_block_attach,
    "save": _xm_save,
}
