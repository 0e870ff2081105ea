"""The command line against real daemons: a domain's life as a user types it, and as a script for xm or xl does."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from veery.lab.guest import Guest
from veery.lab.services import Lab

_INIT = b"""#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t devtmpfs dev /dev
echo wren is up
while true; do setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'; done
"""
_READY = "/ #"


def archive(path: Path) -> Path:
    """An initramfs with busybox and a shell on the console, so that the domain needs no disk (the kernel's
    Documentation/driver-api/early-userspace/buffer-format.rst)."""
    parts, number = [], 0

    def add(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        nonlocal number
        number += 1
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
        head = b"070701" + "".join(f"{value:08X}" for value in fields).encode() + raw
        parts.append(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

    for folder in ("bin", "proc", "dev"):
        add(folder, stat.S_IFDIR | 0o755)
    add("bin/busybox", stat.S_IFREG | 0o755, Path("/bin/busybox").read_bytes())
    add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    add("init", stat.S_IFREG | 0o755, _INIT)
    add("TRAILER!!!", 0)
    path.write_bytes(b"".join(parts))
    return path


class User:
    """Types commands: user("test1", "list")."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.environ = {**os.environ, "VEERY_LAB": lab.plan.lab}
        self.folder = folder
        for tool in ("veery", "xm", "xl"):
            (folder / tool).symlink_to(Path(sys.executable).with_name("veery"))

    def command(self, node: str, *words: str, tool: str = "veery") -> tuple[list[str], dict[str, str]]:
        return [str(self.folder / tool), *words], {**self.environ, "VEERY_NODE": node}

    def __call__(
        self, node: str, *words: str, tool: str = "veery", typed: str = "", code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        argv, environ = self.command(node, *words, tool=tool)
        done = subprocess.run(argv, env=environ, input=typed, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done


@pytest.fixture(scope="module")
def user(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(lab, tmp_path_factory.mktemp("user"))


@pytest.fixture
def wren(user: User, guest: Guest) -> Iterator[Path]:
    """A domain file; its domain is gone afterwards."""
    path = user.folder / "wren"
    ramdisk = archive(user.folder / "wren.initramfs")
    lines = (
        'name = "wren"',
        f'kernel = "{guest.kernel}"',
        f'ramdisk = "{ramdisk}"',
        "memory = 128",
        'extra = "quiet"',
        "vif = ['bridge=xenbr0']",
    )
    path.write_text("\n".join(lines) + "\n")
    try:
        yield path
    finally:
        for node in ("test1", "test2"):
            argv, environ = user.command(node, "destroy", "wren")
            subprocess.run(argv, env=environ, capture_output=True, timeout=90, check=False)
        argv, environ = user.command("test1", "delete", "wren")
        subprocess.run(argv, env=environ, capture_output=True, timeout=90, check=False)


def rows(user: User, node: str, tool: str = "xm") -> list[str]:
    """The names that `list` prints, as a script takes them."""
    return [line.split()[0] for line in user(node, "list", tool=tool).stdout.splitlines()[1:]]


@contextmanager
def running(user: User, node: str, *words: str, stderr: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command under way; ended after 90 s, so that reading what it says ends too."""
    argv, environ = user.command(node, *words)
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=environ, stdin=pipe, stdout=pipe, stderr=stderr, text=True) as process:
        timer = threading.Timer(90, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def boot(user: User, path: Path) -> str:
    """`create -c` until the shell's prompt, then leave; what was printed."""
    with running(user, "test1", "create", "-c", str(path)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        seen = ""
        while _READY not in seen:
            data = os.read(process.stdout.fileno(), 4096)
            assert data, seen
            seen += data.decode(errors="replace")
        process.stdin.write("\x1d")
        process.stdin.close()
        assert process.wait(60) == 0
    return seen


def echoed(user: User, word: str) -> None:
    """What is typed on the console is done in the guest; a busy machine may need longer than the console waits."""
    said = user("test1", "console", "wren", typed=f"echo {word}-$(echo one)\n").stdout
    end = time.monotonic() + 60
    while f"{word}-one" not in said and time.monotonic() < end:
        said = user("test1", "console", "wren").stdout
    assert f"{word}-one" in said


def test_a_domains_life(user: User, wren: Path) -> None:
    seen = boot(user, wren)
    assert seen.startswith("Started domain wren (id=")
    assert "wren is up" in seen
    assert rows(user, "test1") == ["Domain-0", "wren"]
    assert "is already here" in user("test1", "create", str(wren), code=1).stderr
    assert "runs on test1" in user("test2", "create", str(wren), code=1).stderr
    assert "wren" in user("test2", "list", "-A").stdout

    echoed(user, "twenty")
    assert user("test1", "domid", "wren").stdout.strip() == user("test1", "domid", "wren", tool="xl").stdout.strip()
    assert json.loads(user("test1", "list", "-l", "wren").stdout)[0]["config"]["c_info"]["name"] == "wren"
    assert "00:16:3e" in user("test1", "network-list", "wren", tool="xl").stdout
    assert user("test1", "vcpu-list", "wren").stdout.splitlines()[1].split()[0] == "wren"

    user("test1", "pause", "wren", tool="xl")
    assert "--p---" in user("test1", "list", "wren", tool="xl").stdout
    user("test1", "unpause", "wren", tool="xl")
    user("test1", "rename", "wren", "robin")
    assert rows(user, "test1") == ["Domain-0", "robin"]
    user("test1", "rename", "robin", "wren")
    user("test1", "save", "wren", str(user.folder / "wren.save"))
    assert rows(user, "test1") == ["Domain-0"]
    assert user("test1", "restore", str(user.folder / "wren.save")).stdout.startswith("Restored domain wren (id=")
    echoed(user, "thirty")

    moved = user("test1", "migrate", "wren", "test2")
    assert moved.stdout.startswith("wren moved from test1 to test2 in ")
    steps = [line.split()[3] for line in moved.stderr.splitlines() if line.split()[3] != "round"]
    assert [step for number, step in enumerate(steps) if step not in steps[:number]] == [
        "BEGIN", "PREPARE", "COPY", "LOADED", "COMMIT", "FINISH", "CONFIRM",
    ]  # fmt: skip
    assert (rows(user, "test1"), rows(user, "test2")) == (["Domain-0"], ["Domain-0", "wren"])
    assert "thirty-one" in user("test2", "console", "wren").stdout  # its past came along
    assert "it runs on test2" in user("test1", "destroy", "wren", code=1).stderr
    moves = json.loads(user("test1", "moves", "--json").stdout)
    assert user("test1", "move", "show", moves[-1]["id"]).stdout.startswith(f"move {moves[-1]['id']}: wren from test1")

    trial = user("test2", "selftest", "kvm", "--move", "wren", "--to", "test1").stdout
    answer = json.loads(trial)
    assert answer["good"], trial
    assert [(row["way"], row["state"], row["plan"]["possible"]) for row in answer["moves"]] == [
        ("there", "done", True), ("back", "done", True),
    ]  # fmt: skip
    assert not any(name in json.dumps(answer["moves"]) for name in ("wren", "test1", "test2", "172.16.31"))
    assert rows(user, "test2") == ["Domain-0", "wren"]

    user("test2", "destroy", "wren", tool="xm")
    assert user("test2", "list", "wren", tool="xm", code=3).stderr == "Error: Domain 'wren' does not exist.\n"
    user("test2", "delete", "wren")


def test_ctrl_c_cancels_a_move(user: User, wren: Path) -> None:
    boot(user, wren)
    with running(user, "test1", "migrate", "--rate", "2M", "wren", "test2", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = ""
        while "%" not in said:
            said = process.stderr.readline()
            assert said
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "veery: wren was not moved to test2: cancelled; wren runs on test1" in err
    assert rows(user, "test1", "xl") == ["Domain-0", "wren"]
    assert user("test1", "migrate", "-l", "wren", "172.16.31.2", tool="xm").stdout == ""
    assert rows(user, "test2", "xl") == ["Domain-0", "wren"]


def test_volumes(user: User) -> None:
    user("test1", "volume", "create", "cli", "8M")
    try:
        assert "already" in user("stor", "volume", "create", "cli", "8M", code=1).stderr
        shown = json.loads(user("test2", "volume", "show", "--json", "cli").stdout)
        assert (shown["volume"]["size"], shown["volume"]["node"]) == (8 << 20, "stor")
        image = user.folder / "image.raw"
        image.write_bytes(b"seed" * (1 << 20))
        assert "Imported" in user("test1", "volume", "import", "cli", str(image)).stdout
        assert Path(shown["volume"]["path"]).read_bytes()[: 4 << 20] == image.read_bytes()
        user("stor", "volume", "resize", "cli", "12M")
        assert "12.0 MiB" in user("test1", "volume", "list").stdout
        assert ":cli" in user("test1", "target", "list").stdout
    finally:
        user("test1", "volume", "delete", "cli")
    assert "cli" not in user("stor", "volume", "list").stdout


def test_nodes_and_networks(user: User) -> None:
    listed = user("test2", "node", "list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["Name", "stor", "test1", "test2"]
    assert user("test1", "network", "list").stdout.splitlines()[1].startswith("xenbr0")
    assert user("test1", "info", "nr_cpus").stdout.strip() == str(os.cpu_count())
    assert user("stor", "node", "token").stdout.strip().endswith("@172.16.31.3")
