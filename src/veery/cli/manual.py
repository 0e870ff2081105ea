"""The manual, generated from the text of --help.

`python -m veery.cli.manual > docs/commands.md` writes the page of all commands.
`python -m veery.cli.manual --man FOLDER` writes the man pages."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import veery
from veery.cli.catalogue import GROUPS
from veery.cli.parser import Parser, overview

_HEAD = """# Commands

`python -m veery.cli.manual > docs/commands.md` generates this page from each command's `--help`. A test checks that the
page is current. `veery lab --help` describes the lab.
"""
_LAB = {"lab": "a whole cluster in network namespaces of this machine"}
_SUMMARY = "keep virtual machines running while their hosts change"


def manual() -> str:
    """Return the text of docs/commands.md."""
    parts = [_HEAD, _block(overview(_LAB))]
    for title, group in GROUPS:
        parts.append(f"## {title}\n")
        for entry in group:
            parts += [f"### veery {entry.name}\n", _block(Parser(entry, entry.load()).format_help())]
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


# ---- man pages
def pages() -> Iterator[tuple[str, str]]:
    """Yield (file name, roff text) of each page: veery(1), one page for each verb, veeryd(8)."""
    also = "Each verb has a page: \\fBveery\\-migrate\\fR(1) for \\fBveery migrate\\fR. See also \\fBveeryd\\fR(8)."
    yield "veery.1", page("veery", 1, _SUMMARY, overview(_LAB), also)
    for _, group in GROUPS:
        for entry in group:
            name = f"veery-{entry.name.replace(' ', '-')}"
            text = Parser(entry, entry.load()).format_help()
            yield f"{name}.1", page(name, 1, entry.summary, text, "\\fBveery\\fR(1)")
    yield "veeryd.8", page("veeryd", 8, "the daemon of one veery node", _DAEMON, "\\fBveery\\fR(1)")


_DAEMON = """usage: veeryd [--settings FILE] [--version]

systemd starts veeryd once this machine is a node of a cluster. veeryd starts
the node's etcd, tgtd and domains. They keep running when veeryd stops, crashes
or is upgraded. The next veeryd finds them again.

Options:
  --settings FILE  the settings file (or set VEERY_SETTINGS)
  --version        print the version and exit

Files:
  /etc/veery/veery.toml  the settings
  /var/lib/veery         state that survives a reboot: identity, certificates,
                         etcd's data, and the volumes by default
  /run/veery             sockets, pids and logs
"""


def page(name: str, section: int, summary: str, text: str, also: str) -> str:
    """Return a man page from the --help `text`. Lines keep their breaks; headings become headings of the page."""
    rows = [f'.TH "{_roff(name).upper()}" {section} "" "veery {veery.__version__}" "veery"', ".SH NAME"]
    rows += [f"{_roff(name)} \\- {_roff(summary)}", ".SH SYNOPSIS", ".nf"]
    described = False
    for line in text.rstrip().splitlines():
        if heading := re.fullmatch(r"([A-Z][A-Za-z ]+):", line):
            rows += [".fi", f".SH {heading[1].upper()}", ".nf"]
        elif not line and not described:
            described = True
            rows += [".fi", ".SH DESCRIPTION", ".nf"]
        else:
            rows.append(_roff(line.removeprefix("usage: ").removeprefix("  ")) if line else "")
    return "\n".join([*rows, ".fi", ".SH SEE ALSO", also]) + "\n"


def _roff(line: str) -> str:
    """Escape `line` so that roff prints it unchanged."""
    text = line.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith(".") else text


def main(argv: list[str] | None = None) -> int:
    """Print the manual, or write the man pages into a folder."""
    parser = argparse.ArgumentParser(prog="python -m veery.cli.manual", description="Generate the manual.")
    parser.add_argument("--man", metavar="FOLDER", type=Path, help="write man pages into FOLDER/man1 and FOLDER/man8")
    folder = parser.parse_args(argv).man
    if folder is None:
        print(manual(), end="")
        return 0
    for name, text in pages():
        path = folder / f"man{name[-1]}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
