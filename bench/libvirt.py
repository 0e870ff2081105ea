"""libvirt, to be measured beside: fetched from the machine's own Debian sources and unpacked, never installed.

A machine that gets it as a package gets its services too. Here it is a folder in the user's cache, which bench/cell.py
lays over /usr in a mount namespace."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from veery.errors import Failed, Refused
from veery.lab.apt import Report
from veery.lab.packages import cache, private_apt

PACKAGES = (
    "libvirt0",
    "libvirt-common",
    "libvirt-clients",
    "libvirt-daemon",
    "libvirt-daemon-common",
    "libvirt-daemon-log",
    "libvirt-daemon-driver-qemu",
    "libvirt-daemon-driver-secret",
)
PROGRAMS = ("sbin/libvirtd", "sbin/virtlogd", "bin/virsh")


def folder() -> Path:
    """Where it is unpacked: a tree with usr/ in it."""
    return cache() / "libvirt"


def fetch(report: Report) -> Path:
    """The tree, downloaded and unpacked if it is not there yet. Raises Refused, Failed."""
    final = folder()
    if all((final / "usr" / name).exists() for name in PROGRAMS):
        return final
    apt, suite = private_apt()
    apt.update(report)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=final.parent) as name:
        scratch, tree = Path(name), Path(name) / "tree"
        report("downloading libvirt", 0.3)
        for package in apt.gather(PACKAGES, scratch, suite=suite):
            report(f"unpacking {package.name}", 0.7)
            _run("dpkg", "-x", package, tree)
        for old in ("lib", "lib64", "bin", "sbin"):  # Debian 12 still has packages from before /usr was merged
            if (tree / old).is_dir():
                shutil.copytree(tree / old, tree / "usr" / old, symlinks=True, dirs_exist_ok=True)
        missing = _missing(tree)
        if missing:
            raise Failed(f"libvirt lacks {', '.join(missing)}", hint="install the packages that have them")
        shutil.rmtree(final, ignore_errors=True)
        tree.rename(final)
    return final


def version(tree: Path) -> str:
    """Its version, "11.3.0"."""
    return _run("env", f"LD_LIBRARY_PATH={_libraries(tree)}", tree / "usr/bin/virsh", "--version").strip()


def _missing(tree: Path) -> list[str]:
    """The shared libraries that its programs and its QEMU driver do not find (ldd(1))."""
    drivers = sorted((tree / "usr").glob("lib/*/libvirt/connection-driver/*.so"))
    found = set()
    for path in (*(tree / "usr" / name for name in PROGRAMS), *drivers):
        rows = _run("env", f"LD_LIBRARY_PATH={_libraries(tree)}", "ldd", path).splitlines()
        found |= {row.split()[0] for row in rows if "not found" in row}
    return sorted(found)


def _libraries(tree: Path) -> Path:
    return tree / "usr/lib" / f"{platform.machine()}-linux-gnu"


def _run(*words: str | Path) -> str:
    try:
        result = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    except FileNotFoundError as error:
        raise Refused(f"{words[0]} is not installed", hint="libvirt is only fetched on Debian") from error
    if result.returncode:
        raise Failed(f"{words[0]}: {result.stderr.strip()}", hint="is the disk full?")
    return result.stdout
