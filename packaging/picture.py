"""docs/demo.svg: what `veery lab demo` shows on a terminal, the end of it. `.venv/bin/python packaging/picture.py`."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

LINES, COLUMNS = 52, 100
ROOT = Path(__file__).parent.parent


def record() -> str:
    """The demo's output, as a terminal gets it."""
    said = bytearray()

    def read(handle: int) -> bytes:
        data = os.read(handle, 4096)
        said.extend(data)
        return data

    os.environ.update(COLUMNS=str(COLUMNS), LINES="60", TERM="xterm-256color")
    status = pty.spawn([str(ROOT / ".venv/bin/veery"), "lab", "demo"], read)
    if status:
        sys.exit(f"the demo failed with status {status}")
    return said.decode()


def shown(raw: str) -> list[str]:
    """The lines that stay: what a bar drew and wiped is gone."""
    lines = [re.split(r"\r|\x1b\[2K|\x1b\[K", line)[-1] for line in raw.replace("\r\n", "\n").split("\n")]
    kept = [re.sub(r"\x1b\[\?25[lh]|\x1b\[\d*A", "", line) for line in lines]
    return [line for number, line in enumerate(kept) if line.strip() or (number and kept[number - 1].strip())]


def main() -> None:
    """Run, draw, write."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in shown(record())[-LINES:]:
        console.print(Text.from_ansi(line), soft_wrap=False, overflow="ellipsis", no_wrap=True)
    context = console.export_svg(title="make demo")
    context = re.sub(r"@font-face \{.*?\}", "", context, flags=re.DOTALL)  # no fonts from the network
    context = re.sub(r"<!--.*?-->", "", context, flags=re.DOTALL).replace("Fira Code", "DejaVu Sans Mono")
    (ROOT / "docs/demo.svg").write_text("\n".join(row.rstrip() for row in context.splitlines()) + "\n")


if __name__ == "__main__":
    main()
