"""The Debian packages that the lab needs, and their installation. This module uses only the standard library."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from veery.errors import Failed, Refused
from veery.lab.apt import Apt, Report, debian_sources, machine_sources, release

# QEMU before 9.0 corrupts a domain's memory on a move under TCG (upstream 03bfc2188f, "physmem: Fix migration
# dirty bitmap coherency with TCG memory access"); Debian 12 has 7.2 itself and 10.0 in its backports.
QEMU = ("qemu-system-x86", "qemu-block-extra", "qemu-utils")
QEMU_MIN_MAJOR = 9
OTHERS = (
    "tgt",
    "etcd-server",
    "etcd-client",
    "busybox-static",
    "lvm2",
    "iproute2",
    "nftables",
    "e2fsprogs",
    "libfaketime",
    "python3-venv",
    "mmdebstrap",
)
BACKPORTS = {"bookworm": "bookworm-backports"}

_POLICY = Path("/usr/sbin/policy-rc.d")
_MARK = "# written by veery's set-up, for the time of one apt-get install"


def cache() -> Path:
    """Return the folder for downloads: XDG_CACHE_HOME/veery."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veery"


def missing() -> tuple[str, ...]:
    """Return the packages that are not installed, or too old. Takes about 20 ms, without a call of apt."""
    found = installed((*QEMU, *OTHERS))
    return tuple(
        name for name in (*QEMU, *OTHERS) if name not in found or (name in QEMU and major(found[name]) < QEMU_MIN_MAJOR)
    )


def installed(names: tuple[str, ...]) -> Mapping[str, str]:
    """Return the installed packages among `names`, with their versions."""
    form = "${Package}\t${db:Status-Status}\t${Version}\n"
    try:
        shown = subprocess.run(
            ["dpkg-query", "-W", "-f", form, *names], check=False, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError as error:
        raise Refused("dpkg-query is not installed", hint="the lab needs Debian 12 or later") from error
    rows = (row.split("\t") for row in shown.stdout.splitlines())
    return {name: version for name, status, version in rows if status == "installed"}


def major(version: str) -> int:
    """Return the first number of a package's version, after the epoch: 10 for "1:10.0.2+ds-2~bpo12+1"."""
    match = re.match(r"(?:\d+:)?(\d+)", version)
    return int(match[1]) if match else 0


def private_apt() -> tuple[Apt, str]:
    """Return apt with the machine's Debian sources and, if this release needs them, its backports; and the suite of the
    backports, "" if not needed. Raises Refused."""
    codename = release()
    backports = BACKPORTS.get(codename, "")
    sources = debian_sources(machine_sources(), codename, [backports] if backports else [])
    return Apt(cache() / "apt", sources), backports


def install(report: Report) -> tuple[str, ...]:
    """Install the missing packages without starting a service; return their names. Raises Refused, Failed."""
    restore_policy()
    names = missing()
    if not names:
        return ()
    if os.geteuid():
        raise Refused(f"missing packages: {' '.join(names)}", hint="run as root")
    apt, backports = private_apt()
    apt.update(report)
    emulator = [name for name in names if name in QEMU]
    with services_kept_down():
        if emulator:
            apt.install(emulator, report, suite=backports)
        if len(emulator) < len(names):
            apt.install([name for name in names if name not in QEMU], report)
    left = missing()
    if left:
        raise Failed(
            f"still missing or too old after apt-get install: {' '.join(left)}",
            hint=f"the lab needs QEMU {QEMU_MIN_MAJOR}.0 or later; see apt-cache policy qemu-system-x86",
        )
    return names


@contextmanager
def services_kept_down(policy: Path = _POLICY) -> Iterator[None]:
    """Keep installed packages from starting services in this context (invoke-rc.d(8) obeys policy-rc.d's 101)."""
    restore_policy(policy)
    if os.path.lexists(policy):
        policy.rename(_saved(policy))
    try:
        policy.write_text(f"#!/bin/sh\n{_MARK}\nexit 101\n")
        policy.chmod(0o755)
        yield
    finally:
        restore_policy(policy)


def restore_policy(policy: Path = _POLICY) -> None:
    """Restore the file that `services_kept_down` replaced, also after a killed run."""
    if policy.is_file() and _MARK in policy.read_text(errors="replace"):
        policy.unlink()
    if os.path.lexists(_saved(policy)) and not os.path.lexists(policy):
        _saved(policy).rename(policy)


def _saved(policy: Path) -> Path:
    return policy.with_name(policy.name + ".veery-saved")
