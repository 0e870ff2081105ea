"""The manual, docs/commands.md, made from the same text as --help: `python -m veery.cli.manual > docs/commands.md`."""

from __future__ import annotations

from veery.cli.catalogue import GROUPS
from veery.cli.parser import Parser, overview

_HEAD = """# Commands

Made from the commands' own `--help` by `python -m veery.cli.manual > docs/commands.md`; a test checks that it is
current. `veery lab --help` tells of the laboratory.
"""


def manual() -> str:
    """The whole text."""
    parts = [_HEAD, _block(overview({"lab": "a whole cluster in network namespaces of this machine"}))]
    for title, group in GROUPS:
        parts.append(f"## {title}\n")
        for entry in group:
            parts += [f"### veery {entry.name}\n", _block(Parser(entry, entry.load()).format_help())]
    return "\n".join(parts)


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    print(manual(), end="")
