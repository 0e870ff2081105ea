"""What outside programs write is bounded, and only root reads it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from veery.host.process import LOG_KEEP_BYTES, LOG_MAX_BYTES, Process, Service, trim_log

CHATTER = "import sys\nfor n in range(1 << 40): print(f'{n:099}', flush=n % 1000 == 0)"


def test_the_end_of_a_long_log_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    log.write_bytes(b"begin" + bytes(LOG_MAX_BYTES) + b"the end")
    trim_log(log)
    old = tmp_path / "etcd.log.old"
    assert log.stat().st_size == 0
    assert old.stat().st_size == LOG_KEEP_BYTES
    assert old.read_bytes().endswith(b"the end")
    assert old.stat().st_mode & 0o777 == 0o600
    log.write_bytes(b"short")
    trim_log(log)
    assert log.read_bytes() == b"short"
    trim_log(tmp_path / "none.log")


async def test_a_program_that_writes_without_end_stays_within_its_bound(tmp_path: Path) -> None:
    log = tmp_path / "chatter.log"
    process = Process.spawn([sys.executable, "-c", CHATTER], log_file=log)
    trimmed = 0
    try:
        async with asyncio.timeout(120):
            while trimmed < 3:
                size = log.stat().st_size
                trim_log(log)
                trimmed += size > LOG_MAX_BYTES
                await asyncio.sleep(0.01)
    finally:
        await process.stop(grace=0)
    assert log.stat().st_mode & 0o777 == 0o600
    rows = log.read_bytes().splitlines()
    assert rows == [] or rows[-1].isdigit()  # it goes on at the beginning, without a hole
    assert b"\0" not in log.read_bytes()


async def test_a_service_trims_its_log_and_counts_its_ends(tmp_path: Path) -> None:
    (tmp_path / "brief.log").write_bytes(bytes(LOG_MAX_BYTES + 1))
    service = Service("brief", lambda: ["true"], run=tmp_path, pause=0.01)
    running = asyncio.create_task(service.run())
    try:
        async with asyncio.timeout(60):
            while service.ends(within=600.0) < 3 or not (tmp_path / "brief.log.old").exists():
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert service.ends(within=0.0) == 0
