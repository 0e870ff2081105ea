"""The entry point of `veery VERB`: find the verb, load and run it, and print an error as one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veery.cli.catalogue import Entry, entries
from veery.cli.session import Session, Usage, sentence


@dataclass(frozen=True, slots=True)
class Extra:
    """A verb of another package: its summary in `veery --help`, and its main function."""

    summary: str
    main: Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None, *, extra: Mapping[str, Extra] | None = None) -> int:
    """Run the command line `argv` (argv[0] is the name of the tool). Returns the exit status."""
    name, *words = sys.argv if argv is None else argv
    tool = Path(name).name if Path(name).name in {"xm", "xl"} else "veery"
    session = Session(tool=tool, node=os.environ.get("VEERY_NODE", ""))
    try:
        try:
            return _run(session, list(words), extra or {})
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        session.note("")
        return 130
    except SystemExit as ended:  # argparse, after --help
        return ended.code if isinstance(ended.code, int) else 1
    except Exception as error:
        return _print_error(session, error)


def _run(session: Session, words: list[str], extra: Mapping[str, Extra]) -> int:
    if session.tool != "veery":
        from veery.cli import tools

        return tools.run(session, words)
    words = _options(session, words)
    if not words or words[0] in {"-h", "--help", "help"}:
        if len(words) > 1:
            return _run(session, [*words[1:], "--help"], extra)
        from veery.cli.parser import overview

        print(overview({name: item.summary for name, item in extra.items()}))
        return 0 if words else 2
    if words[0] in {"--version", "-V"}:
        words[0] = "version"
    if words[0] in extra:
        common = [*(["--json"] if session.json else []), *(["--lab", session.lab] if session.lab else [])]
        return extra[words[0]].main([*words[1:2], *common, *words[2:]])
    if words[0] not in entries():
        from veery.cli import foreign

        if words[0] in foreign.VERBS:
            return foreign.run(session, words[0], words[1:])
    entry, rest = find(words, extra)
    from veery.cli.parser import run_verb

    return run_verb(session, entry, rest)


def _options(session: Session, words: list[str]) -> list[str]:
    """Store the options before the verb in `session`, and return the rest. xl's -v, -f, -t and -T have no effect."""
    while words and words[0].startswith("-") and words[0] not in {"-h", "--help", "--version", "-V"}:
        word = words.pop(0)
        name, joined, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in {"node", "settings", "lab"}:
            if not joined:
                if not words:
                    raise Usage(f"{word} needs a value")
                value = words.pop(0)
            setattr(session, name, value)
        elif word == "--json":
            session.json = True
        elif not word.startswith("--") and set(word[1:]) <= set("vftTN") and len(word) > 1:
            session.dry = session.dry or "N" in word
        else:
            raise Usage(f"unknown option {word}")
    return words


def find(words: Sequence[str], extra: Mapping[str, Extra] | None = None) -> tuple[Entry, list[str]]:
    """Return the verb with which `words` begin (one word or two), and the words after it. Raises Usage."""
    known = entries()
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in known:
            return known[name], list(words[count:])
    inner = [name.partition(" ")[2] for name in known if name.startswith(f"{words[0]} ")]
    if inner:
        raise Usage(f"veery {words[0]} needs one of {'|'.join(inner)}")
    import difflib

    close = difflib.get_close_matches(words[0], [*known, *(extra or ())], 1)
    raise Usage(f"no verb {words[0]!r}" + (f"; did you mean {close[0]}?" if close else ""))


# ---- errors
def _print_error(session: Session, error: Exception) -> int:
    """Print `error` in the format of the tool: veery, xm or xl. Returns the exit status."""
    if os.environ.get("VEERY_DEBUG"):
        import traceback

        traceback.print_exc()
    if session.tool != "veery":
        from veery.cli import tools

        return tools.print_error(session, error)
    if isinstance(error, Usage):
        session.note(f"veery: {error.message}\n  hint: veery {error.verb + ' ' if error.verb else ''}--help")
        return 2
    message, hint = sentence(error)
    session.note(f"veery: {message}" + (f"\n  hint: {hint}" if hint else ""))
    return 1
