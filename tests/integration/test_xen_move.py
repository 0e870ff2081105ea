"""A move of xl's through our relays, whichever process is killed in whichever phase: one domain runs, on the owner.

The relays, the processes and the signals are real; xl is tests/fakexl.py, which ends and fails as xl does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests import fakexl
from tests.xlnode import UUID, World

from veery.host import tls
from veery.host.process import Process

DEADLINE = 60.0


class Node:
    """A process of tests.xlnode."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE):
            return (await self.process.stdout.readline()).decode().strip()

    def order(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class Move:
    """One domain on `source`, an empty `target`, and the processes of one move between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.target = World(folder, "source"), World(folder, "target")
        (folder / "bin").mkdir()
        program = folder / "bin" / "xl"
        program.write_text(f"#!{sys.executable}\n{Path(fakexl.__file__).read_text()}")
        program.chmod(0o755)
        self.env = {**os.environ, "XL_WORLD": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        self.sender: Node | None = None
        self.receiver: Node | None = None
        with self.source.table() as rows:
            disks = [{"vdev": "xvda", "pdev_path": "/dev/here", "backend": "phy"}]
            rows["7"] = {"name": "busybox", "uuid": UUID, "state": "running", "disks": disks}

    async def _node(self, *words: str) -> Node:
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "tests.xlnode", *words]
        return Node(await asyncio.create_subprocess_exec(*command, env=self.env, stdin=pipe, stdout=pipe))

    async def begin(self, *certificates: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as door:
            port = str(door.getsockname()[1])
        self.receiver = await self._node("receive", str(self.folder), port, *certificates)
        assert await self.receiver.says() == "prepared"
        self.sender = await self._node("send", str(self.folder), port, *certificates)

    def hold(self, place: str) -> None:
        (self.folder / f"hold-{place}").touch()

    def let_go(self) -> None:
        for path in self.folder.glob("hold-*"):
            path.unlink()

    async def reached(self, place: str) -> None:
        await until((self.folder / f"at-{place}").exists)

    def process(self, which: str) -> Process:
        """One of the four: xl and relay, of the source and of the target."""
        end, _, role = which.partition(" ")
        folder = self.folder / ("out" if end == "source" else "in")
        if role == "xl":
            found = Process.load(folder / "xl")
            assert found is not None
            return found
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if os.fsencode(folder / "door") in words:  # `sh -c` has it as a part of a word
                    ticks = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
                    return Process(int(entry.name), ticks)
        raise AssertionError(f"no {which}")

    async def kill(self, which: str) -> None:
        if which == "source node":
            assert self.sender is not None
            await self.sender.kill()
        elif which == "target node":
            assert self.receiver is not None
            await self.receiver.kill()
        else:
            process = self.process(which)
            process.send(signal.SIGKILL)
            await until(lambda: not process.alive())

    async def settle(self, owner: str) -> None:
        """What the nodes do in their next lives, by the owner key."""
        for node in (self.sender, self.receiver):
            assert node is not None
            await node.kill()
        if owner == "source":
            await self.source.outgoing().resume()
            await self.target.incoming().end()
            await self.target.destroy()
        else:
            await self.target.incoming().finish(paused=False)
            await self.source.outgoing().end()
            await self.source.destroy()

    def clean(self) -> None:
        """Nothing of the move is left, and xl was never let decide."""
        assert not (self.folder / "out").exists()
        assert not (self.folder / "in").exists()
        assert not (self.folder / "LIMBO").exists()
        assert self.source.logged() == []

    async def close(self) -> None:
        self.let_go()
        for node in (self.sender, self.receiver):
            if node is not None:
                await node.kill()
        await self.source.outgoing().end()
        await self.target.incoming().end()


async def until(true: object) -> None:
    ends = time.monotonic() + DEADLINE
    while not true():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not happen"
        await asyncio.sleep(0.005)


@pytest.fixture
async def move() -> AsyncIterator[Move]:
    folder = Path(tempfile.mkdtemp(prefix="v"))  # short: a socket's path has at most 107 bytes
    made = Move(folder)
    try:
        yield made
    finally:
        await made.close()
        shutil.rmtree(folder)


def running(name: str = "busybox") -> list[tuple[str, str]]:
    return [(name, "running")]


async def test_a_move(move: Move) -> None:
    await move.begin()
    assert move.sender is not None and move.receiver is not None
    assert (await move.sender.says()).startswith("sent")
    assert await move.receiver.says() == "loaded"
    assert move.source.states() == [("busybox", "suspended")]
    assert move.target.states() == [("busybox--incoming", "paused")]
    move.receiver.order()
    assert await move.receiver.says() == "finished"
    assert move.target.states() == running()
    with move.target.table() as rows:
        assert rows["1"]["disks"][0]["pdev_path"] == "/dev/there"
    await move.settle("target")
    assert (move.source.states(), move.target.states()) == ([], running())
    move.clean()


async def test_it_is_undone_after_everything_was_loaded(move: Move) -> None:
    await move.begin()
    assert move.sender is not None
    assert (await move.sender.says()).startswith("sent")
    await move.settle("source")
    assert (move.source.states(), move.target.states()) == (running(), [])
    move.clean()


PHASES = ("copy", "suspended", "loading", "loaded")  # each of them with each victim is the longer proof
VICTIMS = ("source xl", "source relay", "source node", "target xl", "target relay", "target node")


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("phase", PHASES)
async def test_killed_before_everything_is_loaded_it_runs_at_the_source(move: Move, phase: str, victim: str) -> None:
    move.hold(phase)
    await move.begin()
    await move.reached(phase)
    await move.kill(victim)
    move.let_go()
    await move.settle("source")
    assert (move.source.states(), move.target.states()) == (running(), [])
    move.clean()


@pytest.mark.parametrize("owner", ["source", "target"])
@pytest.mark.parametrize("victim", VICTIMS)
async def test_killed_afterwards_it_runs_on_the_owner(move: Move, victim: str, owner: str) -> None:
    await move.begin()
    assert move.sender is not None and move.receiver is not None
    assert (await move.sender.says()).startswith("sent")
    assert await move.receiver.says() == "loaded"
    await move.kill(victim)
    await move.settle(owner)
    here, there = (running(), []) if owner == "source" else ([], running())
    assert (move.source.states(), move.target.states()) == (here, there)
    move.clean()


@pytest.mark.parametrize("victim", ["target xl", "target relay", "target node"])
async def test_killed_while_xl_lets_it_run(move: Move, victim: str) -> None:
    move.hold("going")
    await move.begin()
    assert move.sender is not None and move.receiver is not None
    assert (await move.sender.says()).startswith("sent")
    assert await move.receiver.says() == "loaded"
    move.receiver.order()
    await move.reached("going")
    await move.kill(victim)
    if victim != "target node":
        assert await move.receiver.says() == "finished"
    await move.settle("target")
    assert (move.source.states(), move.target.states()) == ([], running())
    move.clean()


async def test_an_xl_that_cannot_let_it_run_does_not_destroy_it(move: Move) -> None:
    (move.folder / "fail-going").touch()
    await move.begin()
    assert move.sender is not None and move.receiver is not None
    assert (await move.sender.says()).startswith("sent")
    assert await move.receiver.says() == "loaded"
    move.receiver.order()
    assert await move.receiver.says() == "finished"
    await move.settle("target")
    assert (move.source.states(), move.target.states()) == ([], running())
    move.clean()


async def test_a_killed_xl_leaves_the_domain_as_fast_as_it_was(move: Move) -> None:
    move.hold("copy")
    await move.begin()
    await move.reached("copy")
    await move.kill("source xl")
    move.let_go()
    assert move.sender is not None
    assert (await move.sender.says()).startswith("failed")
    await move.settle("source")
    assert (move.source.states(), move.target.states()) == (running(), [])
    move.clean()


async def test_killed_while_xl_resumes(move: Move) -> None:
    for place in ("suspended", "resuming"):
        move.hold(place)
    await move.begin()
    await move.reached("suspended")
    await move.kill("target relay")
    (move.folder / "hold-suspended").unlink()
    await move.reached("resuming")
    await move.kill("source xl")
    assert move.sender is not None
    assert (await move.sender.says()).startswith("failed")
    assert move.source.states() == running()
    await move.settle("source")
    assert (move.source.states(), move.target.states()) == (running(), [])
    move.clean()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["source xl", "source relay", "target relay", "target xl", "target node"])
async def test_the_copy_that_failed_says_so_and_the_next_one_works(move: Move, victim: str) -> None:
    move.hold("suspended")
    await move.begin()
    await move.reached("suspended")
    await move.kill(victim)
    move.let_go()
    assert move.sender is not None
    assert (await move.sender.says()).startswith("failed")
    assert move.source.states() == running()
    await move.settle("source")
    await move.begin()
    assert (await move.sender.says()).startswith("sent")
    await move.settle("target")
    assert (move.source.states(), move.target.states()) == ([], running())


async def test_encrypted(move: Move) -> None:
    folder = move.folder / "tls"
    ca = tls.make_ca("test", epoch=time.time())
    request = tls.make_request("localhost")
    signed = tls.sign(ca, request.cert, name="localhost", addresses=["127.0.0.1"], epoch=time.time())
    tls.write_folder(folder, ca=ca.cert, node=tls.KeyPair(signed, request.key))
    await move.begin(str(folder))
    assert move.sender is not None
    assert (await move.sender.says()).startswith("sent")
    await move.settle("target")
    assert (move.source.states(), move.target.states()) == ([], running())


async def test_at_a_given_pace(move: Move) -> None:
    move.env["RATE"] = str(2 << 20)
    begun = time.monotonic()
    await move.begin()
    assert move.sender is not None
    assert (await move.sender.says()).startswith("sent")
    assert time.monotonic() - begun > 1.0  # 4 MiB, less what a pipe holds
    await move.settle("target")
