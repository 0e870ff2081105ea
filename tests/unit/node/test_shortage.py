"""Too few descriptors, or too little memory: veeryd goes on, and takes nothing for dead that it cannot see."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from veery.daemon.tasks import Task, lasting, periodic
from veery.errors import Failed
from veery.host.acceptor import Acceptor
from veery.host.caps import Caps, Place
from veery.host.process import Process
from veery.host.shortage import is_shortage
from veery.host.tasks import stop

NO_MORE = OSError(errno.EMFILE, "Too many open files")

BLIND = """
import os, resource
from veery.errors import Failed
from veery.host.process import Process, start_ticks
me = Process(os.getpid(), start_ticks(os.getpid()))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
try:
    print("alive" if me.alive() else "dead")
except Failed as error:
    print("not known:", error.message)
"""


WAITING = """
import asyncio, os, resource, subprocess
from veery.errors import Failed
from veery.host.process import Process, start_ticks

async def main():
    child = subprocess.Popen(["sleep", "600"])
    process = Process(child.pid, start_ticks(child.pid))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    ended = asyncio.create_task(process.gone())
    await asyncio.wait({ended}, timeout=2)
    print("taken for ended" if ended.done() else "waits")
    try:
        process.send(15)
        print("sent")
    except Failed as error:
        print("not sent:", error.hint)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await asyncio.wait({ended}, timeout=2)
    print("taken for ended" if ended.done() else "waits")
    process.send(9)
    await asyncio.wait_for(ended, 60)
    print("ended")

asyncio.run(main())
"""
KEPT = """
import resource, sys
from pathlib import Path
from veery.errors import Failed
from veery.host import kept
from veery.migrate.journal import Journal
from veery.node.volume_moves import journal as volumejournal

folder = Path(sys.argv[1])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
journals = Journal(folder), volumejournal.Journal(folder)
for look in (lambda: kept.take(folder / "a.source.json", int), *(each.open for each in journals)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        found = look()
    except (Failed, OSError):
        print("not known")
    else:
        print("read", found)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(*sorted(path.name for path in folder.iterdir()))
"""


def run(script: str, *words: object) -> list[str]:
    """What a Python program of its own prints, line by line."""
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()


def test_the_end_of_a_process_that_cannot_be_seen_is_waited_for() -> None:
    told = run(WAITING)
    assert told[0] == "waits"
    assert told[1].startswith("not sent: ls /proc/")
    assert told[2:] == ["waits", "ended"]


def test_a_file_that_cannot_be_opened_for_now_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.source.json").write_text("7\n")
    told = run(KEPT, tmp_path)
    assert told == ["not known"] * 3 + ["a.source.json"]


async def test_a_connection_that_fails_does_not_end_its_listener() -> None:
    served = []

    async def serve(connection: socket.socket, _: str, place: Place) -> None:
        served.append(connection)
        if len(served) == 1:
            raise MemoryError
        if len(served) == 2:
            raise ValueError("a bug")
        place.leave()
        connection.close()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        caps = Caps(total=9, strangers=9, each=9)
        acceptor = Acceptor("test", listener, caps, whose=lambda _, address: (address, False), serve=serve)
        running = asyncio.create_task(acceptor.run())
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 60) == b""
            writer.close()
        assert len(served) == 3
        assert not running.done()
        assert caps.count == 0
        await stop(running)


def test_what_a_shortage_is() -> None:
    assert is_shortage(NO_MORE)
    assert is_shortage(MemoryError())
    assert is_shortage(ExceptionGroup("two", [NO_MORE, ExceptionGroup("deep", [OSError(errno.ENOMEM, "")])]))
    assert not is_shortage(ExceptionGroup("two", [NO_MORE, ValueError()]))
    assert not is_shortage(OSError(errno.EIO, "broken disk"))
    caused = Failed("not seen")
    caused.__cause__ = NO_MORE
    assert is_shortage(caused)
    assert not is_shortage(Failed("not seen"))


def test_a_process_that_cannot_be_seen_is_not_taken_for_dead() -> None:
    told = subprocess.run([sys.executable, "-c", BLIND], capture_output=True, text=True, timeout=60, check=True).stdout
    assert told.startswith("not known: /proc/"), told


async def test_a_task_that_looks_again_and_again_outlives_a_shortage() -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            raise ExceptionGroup("tasks", [NO_MORE])

    await asyncio.wait_for(lasting(periodic("guard", work), pause=0.0), 10)
    assert begun == 2


@pytest.mark.parametrize(("again", "error"), [(False, NO_MORE), (True, OSError(errno.EIO, "")), (True, ValueError())])
async def test_any_other_end_is_the_daemons(again: bool, error: Exception) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(type(error)):
        await asyncio.wait_for(lasting(Task("one", work, again=again), pause=0.0), 10)


def test_a_programs_log_is_read_by_root_alone(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    log.touch(mode=0o644)
    process = Process.spawn(["true"], log_file=log)
    assert log.stat().st_mode & 0o777 == 0o600
    asyncio.run(process.stop(grace=5))
