"""The newest QEMU that Debian has for its stable release, unpacked beside the machine's own and never installed.

It comes with its own C library and loader, so it runs on an older Debian too."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from veery.host.run import run
from veery.lab.apt import Source, debian_sources, machine_sources, release
from veery.lab.packages import cache

SUITE, PACKAGE, PROGRAM = "trixie", "qemu-system-x86", "qemu-system-x86_64"
BACKPORTS = f"{SUITE}-backports"
UNREAD = ("usr/libexec", "usr/share/doc", "usr/share/man", "usr/share/locale", "var", "etc")
FETCH_DEADLINE_S = 900.0


def program() -> Path:
    """A program that is this QEMU, for `binary` under [qemu]. Fetched if it is not there yet. Not for a running loop.
    Raises Refused, Failed."""
    tree = cache() / f"qemu-{BACKPORTS}"
    if not tree.exists():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: asyncio.run(_fetch(tree))).result()
    return tree / PROGRAM


async def _fetch(tree: Path) -> None:
    tree.parent.mkdir(parents=True, exist_ok=True)
    base = debian_sources(machine_sources(), release())[0]
    source = Source(base.uris, (SUITE, BACKPORTS), ("main",), base.options)
    with tempfile.TemporaryDirectory(prefix=".", dir=tree.parent) as name:
        made, sources = Path(name) / "tree", Path(name) / "debian.sources"
        sources.write_text(source.text())
        words = ["mmdebstrap", "--variant=extract", "--mode=root", "--quiet", f"--include={PACKAGE}"]
        words += ['--aptopt=Apt::Install-Recommends "false"', f'--aptopt=APT::Default-Release "{BACKPORTS}"']
        words += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
        await run([*words, SUITE, made, sources], deadline=FETCH_DEADLINE_S)
        for unread in UNREAD:
            shutil.rmtree(made / unread, ignore_errors=True)
        (libraries,) = (made / "usr/lib").glob("*-linux-gnu")
        (loader,) = libraries.glob("ld-linux*.so.*")
        places = {"LIBRARIES": libraries, "LOADER": loader, "BINARY": made / "usr/bin" / PROGRAM}
        places["DATA"] = made / "usr/share/qemu"
        line = f"exec LOADER --library-path LIBRARIES --argv0 {PROGRAM} BINARY -L DATA".split()
        line = [shlex.quote(str(tree / places[one].relative_to(made))) if one in places else one for one in line]
        script = made / PROGRAM
        script.write_text(f'#!/bin/sh\n{" ".join(line)} "$@"\n')
        script.chmod(0o755)
        made.rename(tree)
