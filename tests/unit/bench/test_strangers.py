"""The strangers of the bench come, come again, and go; and what is made of the figures."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from bench import page, strangers
from bench.figures import Figures

TOP = Path(__file__).parents[3]
PLACE = "<!-- bench:strangers -->\nold\n<!-- bench:end -->\n"


async def test_strangers_stand_and_send_until_they_are_sent_away() -> None:
    met = asyncio.Event()
    idle, heard = 0, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal idle, heard
        idle += 1
        try:
            if await reader.read(1):
                idle, heard = idle - 1, heard + 1
            if idle >= 3 and heard >= 2:
                met.set()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.crowd", "3", "2", "120", place),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=TOP,
        env=os.environ | {"CROWD_FROM": "127.0.0.1,127.0.0.2"},
    )
    try:
        async with asyncio.timeout(90):
            await met.wait()
            said, _ = await process.communicate(b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        server.close()
    told = json.loads(said)
    assert (told["standing"], told["most"]) == (3, 3)
    assert told["counts"]["cut off"] >= 2


def test_the_table(tmp_path: Path) -> None:
    seen = {kind: strangers.Seen(total=[800.0], gap=[60.0]) for kind in strangers.KINDS}
    for kind, seconds in (("quiet", 9.3), ("strangers", 9.9)):
        for values in (seen[kind].cuts.total, seen[kind].cuts.detect):
            values.append(seconds)
    figures = Figures()
    told = [{"most": 700, "counts": {"answers 200": 5, "cut off": 2, "idle: OSError": 9}}]
    strangers.rows(figures, seen, told, argparse.Namespace(idle=2000, busy=200))
    figures.write(tmp_path / "strangers.json")
    text, _ = page.rewrite(PLACE, page.read(tmp_path / "strangers.json"))
    assert "| quiet | 800 | 60 | 9.3 | 9.3 | 1 |" in text
    assert "| strangers | 800 | 60 | 9.9 | 9.9 | 1 |" in text
    assert "| later with strangers, aim 1 s |  |  | 0.6 |  |  |" in text
    assert "strangers: requests answered or cut off" in figures.table()
    assert next(row.median for row in figures.rows if row.name.startswith("strangers: requests")) == 7
