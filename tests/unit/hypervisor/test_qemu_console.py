"""The console's log: readers at their own pace, and a past that takes no more room than it is worth."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from veery.hypervisor.qemu.console import KEEP, TRIM, ConsoleHub
from veery.hypervisor.qemu.process import Home


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


async def test_readers_keep_their_own_places(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    append(log, b"boot\n")
    hub = ConsoleHub("busybox", log, tmp_path / "port")
    early = hub.open()
    assert await early.read() == b"boot\n"
    waiting = asyncio.create_task(early.read())
    await asyncio.sleep(0)
    append(log, b"more\n")
    async with asyncio.timeout(10):
        assert await waiting == b"more\n"
    late = hub.open()
    assert await late.read() == b"boot\nmore\n"
    append(log, b"last\n")
    hub.end()
    assert await early.read() == b"last\n"
    assert await early.read() == b""
    await hub.close()
    assert await late.read() == b""


async def test_the_past_takes_no_room(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    hub = ConsoleHub("busybox", log, tmp_path / "port")
    assert hub.backlog() == b""
    hub.trim()
    append(log, b"x" * (TRIM - 1))
    hub.trim()
    slow = hub.open()
    assert log.stat().st_blocks * 512 >= TRIM - 4096
    for number in range(40):
        append(log, bytes([65 + number % 26]) * (100 << 10))
        hub.trim()
        log_blocks = log.stat().st_blocks * 512
        assert log_blocks <= TRIM + (200 << 10)
    assert log.stat().st_size == TRIM - 1 + (4000 << 10)
    assert hub.backlog() == (bytes([65 + 37 % 26]) * (56 << 10) + b"M" * (100 << 10) + b"N" * (100 << 10))
    assert await slow.read() == hub.backlog()  # what it missed is gone; it is not shown zeros
    assert len(hub.backlog()) == KEEP
    os.truncate(log, 0)
    append(log, b"anew")
    assert await slow.read() == b"anew"
    await hub.close()


def test_qemus_own_words(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.words() == ""
    home.qemu_log.write_text(
        "2026-11-23T10:00:00.1Z qemu-system-x86_64: warning: TCG doesn't support requested feature\n"
        '2026-11-23T10:00:00.1Z qemu-system-x86_64: -device {"driver":"virtio-blk-pci","drive":"d"}: Failed to get'
        ' "write" lock\nIs another process using the image [/x]?\n'
    )
    assert home.words() == 'Failed to get "write" lock'
    home.qemu_log.write_text(
        "qemu-system-x86_64: Not a migration stream\nqemu-system-x86_64: load of migration failed\n"
    )
    assert home.words() == "Not a migration stream; load of migration failed"
    home.qemu_log.write_text("/usr/bin/qemu: cannot execute binary file\n")
    assert home.words() == "/usr/bin/qemu: cannot execute binary file"
    home.qemu_log.write_text("qemu-system-x86_64: terminating on signal 15 from pid 1\n")
    assert home.words() == ""
