"""`make fresh`: run the README's commands in a bare Debian root, so that nothing installed on this machine helps them.

`mmdebstrap --variant=minbase` makes the root, with the four packages that the README requires. The root has a clean
clone of HEAD and its own home folder. Its commands share this machine's network, because they download packages; they
have their own mounts, processes and /run."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from veery.errors import Failed, VeeryError
from veery.lab.apt import Source, debian_sources, machine_sources, release
from veery.lab.packages import cache
from veery.lab.programs import ASKED_FOR

SUITES = ("bookworm", "trixie")
TARGETS = ("demo", "test")
_ROOT_TIMEOUT_S, _TARGET_TIMEOUT_S, _STEP_TIMEOUT_S = 1800.0, 5400.0, 300.0
# The settings with which this machine reaches its mirrors: each existing file is copied.
_COPIED = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"),
    *("/etc/apt/apt.conf.d/80proxy", "/etc/apt/auth.conf"),
)
_PASSED = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "CI")
_PASSED_PREFIX = "PIP_"
_DROPPED = frozenset({"PIP_FIND_LINKS", "PIP_CONSTRAINT"})  # folders of this machine
# bash is process 1 there, because it reaps orphans and make does not. The root is its own mount, which the lab's
# `ip netns add` requires of "/": so pivot_root(8) is used, not chroot(1).
_INSIDE = """\
set -e
root=$1; shift
mount --bind "$root" "$root"
cd "$root"
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t proc proc proc
mkdir -p mnt/before
pivot_root . mnt/before
umount -l /mnt/before
cd /
"$@"
exit $?
"""


def sources(suite: str) -> tuple[Source, ...]:
    """Return this machine's Debian sources, changed to `suite`. Raises Refused."""
    own = release()
    return tuple(
        dataclasses.replace(each, suites=tuple(name.replace(own, suite) for name in each.suites))
        for each in debian_sources(machine_sources(), own)
        if not any(name.endswith("-backports") for name in each.suites)
    )


def make(root: Path, suite: str) -> None:
    """Make a bare root of Debian `suite` in the empty folder `root`. Raises Failed, Refused."""
    with tempfile.NamedTemporaryFile("w", suffix=".sources") as file:
        file.write("\n".join(each.text() for each in sources(suite)))
        file.flush()
        words = [
            "mmdebstrap",
            "--variant=minbase",
            "--mode=root",
            "--quiet",
            f"--include={','.join(sorted(ASKED_FOR))}",
        ]
        _run([*words, suite, str(root), file.name], deadline=_ROOT_TIMEOUT_S)
    for name in _COPIED:
        if Path(name).is_file():
            copy = root / name.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.unlink(missing_ok=True)
            shutil.copy(name, copy)


def command(root: Path, words: Sequence[str], environ: dict[str, str]) -> list[str]:
    """Return the command line that runs `words` in `root`, in namespaces that end with it."""
    keep = {
        name: value
        for name, value in environ.items()
        if name in _PASSED or (name.startswith(_PASSED_PREFIX) and name not in _DROPPED)
    }
    settings = {
        **keep,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": environ.get("TERM", "dumb"),
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    inside = ["env", "-i", *(f"{name}={value}" for name, value in settings.items()), *words]
    alone = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--"]
    return [*alone, "bash", "-c", _INSIDE, "fresh", str(root), *inside]


def main(argv: Sequence[str] | None = None) -> int:
    """Make the root, run each target in it, and remove it; return 0, or 1 if a target failed."""
    parser = argparse.ArgumentParser(prog="python -m veery.lab.fresh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", choices=SUITES, default=SUITES[0], help="the Debian release of the root")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"make's targets (default: {' '.join(TARGETS)})")
    options = parser.parse_args(argv)
    folder = cache() / "fresh"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True))
            root = Path(scratch) / "root"
            _say(f"making a bare root of Debian {options.suite}")
            make(root, options.suite)
            _run(
                ["git", "clone", "--quiet", "--no-hardlinks", os.curdir, str(root / "root/veery")],
                deadline=_STEP_TIMEOUT_S,
            )
            for target in options.targets or TARGETS:
                _say(f"make {target}")
                words = ["make", "--no-print-directory", "-C", "/root/veery", *shlex.split(target)]
                _run(command(root, words, dict(os.environ)), deadline=_TARGET_TIMEOUT_S)
    except VeeryError as error:
        _say(f"error: {error.message}")
        return 1
    _say("good")
    return 0


def _run(words: Sequence[str], *, deadline: float) -> None:
    try:
        code = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, timeout=deadline).returncode
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{words[0]} did not end within {deadline:g} s") from error
    if code:
        raise Failed(f"{words[0]} exited with {code}")


def _say(text: str) -> None:
    sys.stderr.write(f"fresh: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
