"""The sensors of the running node: its own root folder, and its own programs, each with a deadline.

Every sensor reads in its own thread. A sensor that hangs in a driver or on a program delays only those that read the
same program."""

from __future__ import annotations

import ctypes
import json
import os
import re
import selectors
import shutil
import signal
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from veery.health.looking import SENSORS, Unreadable, Verdict, take, told, verdict
from veery.health.mounts import OWN_PATHS
from veery.health.series import Given, Moment, Sensor
from veery.health.source import MATCHES_MAX, TEXT_MAX, Source

SENSOR_DEADLINE_S = 90.0  # for everything that one sensor reads
PLUGIN_DEADLINE_S = 10.0
KILLED_WAIT_S = 1.0  # for a killed program to end; one that hangs in the kernel is abandoned
KMSG_RECORDS_MAX = 20_000
KMSG_AGE_S = 86400.0  # older lines of the log do not describe the present
PLUGINS = "etc/veery/sensors.d"
PLUGIN_NAME = re.compile(r"[A-Za-z0-9][\w-]{0,63}", re.ASCII)
DISK = re.compile(r"(sd[a-z]{1,4}|nvme\d{1,3}n\d{1,3})", re.ASCII)
TIMEX_BYTES = 512


Feeds = Mapping[str, Callable[[], str | None]]
"""Outputs by name. Each blocks for some seconds at most and returns None if there is nothing to read."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a program: its exit status (None if it was killed at its deadline), and its output."""

    status: int | None
    text: str


class Runner(Protocol):
    """Runs programs."""

    def __call__(self, words: Sequence[str], deadline_s: float, *, errors: bool) -> Answer | None:
        """Run a command line to its end. With `errors` its stderr is part of the output. Return None if the program
        does not exist. Never raises, and never takes much longer than the deadline."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program whose output sensors read; `{}` in its words stands for each disk."""

    output: str
    words: tuple[str, ...]
    package: str
    deadline_s: float = 20.0
    unless: str = ""  # a program that shows the same information better
    needs: str = ""  # a path that exists on machines where the program has something to report

    def is_wanted(self, root: Path) -> bool:
        """Return True if the machine has something that only this program shows."""
        return (root / self.needs).exists() if self.needs else self.output == "smartctl" and bool(host_disks(root))

    @property
    def is_json(self) -> bool:
        return any("json" in word for word in self.words)


SMARTCTL = ("smartctl", "--json=c", "-n", "standby", "-i", "-H", "-A", "-l", "error", "-l", "selftest", "{}")
FREEIPMI = ("ipmi-sensors", "--comma-separated-output", "--no-header-output", "--output-sensor-state")
FAILED_UNITS = ("systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--no-pager")
PROGRAMS = (
    Program("smartctl", SMARTCTL, "smartmontools"),
    Program("nvme-smart-log", ("nvme", "smart-log", "-o", "json", "{}"), "nvme-cli", unless="smartctl"),
    Program("ipmi-sensors", FREEIPMI, "freeipmi-tools", 60.0, needs="dev/ipmi0"),
    Program("ipmitool-sdr", ("ipmitool", "sdr", "elist"), "ipmitool", 60.0, unless="ipmi-sensors", needs="dev/ipmi0"),
    Program("ipmitool-sel", ("ipmitool", "sel", "elist", "last", "100"), "ipmitool", 60.0, needs="dev/ipmi0"),
    Program("multipath-ll", ("multipath", "-ll"), "multipath-tools"),
    Program("iscsiadm-session-P1", ("iscsiadm", "-m", "session", "-P", "1"), "open-iscsi"),
    Program("chronyc-c-tracking", ("chronyc", "-c", "tracking"), "chrony"),
    Program("systemctl-failed", FAILED_UNITS, "systemd", needs="run/systemd/system"),
    Program("xl-dmesg", ("xl", "dmesg"), "xen-utils-common", needs="proc/xen/capabilities"),
)


class Live:
    """The outputs of this machine's programs. Each program runs once, for the first sensor that asks for it; other
    sensors that read the same program wait for its end."""

    def __init__(self, root: Path, run: Runner, log: str | None, feeds: Feeds = MappingProxyType({})) -> None:
        """`feeds`: what the daemon itself can read, by the names of outputs."""
        self._root = root
        self._run = run
        self._log, self._feeds = log, feeds
        self._kept: dict[str, dict[str, str]] = {}
        self._guard = threading.Lock()  # of `_running`
        self._running: dict[str, threading.Lock] = {}  # one lock for each program

    def of(self, program: str) -> Mapping[str, str]:
        with self._guard:
            running = self._running.setdefault(program, threading.Lock())
        with running:
            if program not in self._kept:
                self._kept[program] = self._made(program)
            return self._kept[program]

    def _made(self, program: str) -> dict[str, str]:
        own: dict[str, Callable[[], str | None]] = {
            "kmsg": lambda: self._log,
            "adjtimex": _adjtimex,
            "statvfs": lambda: _statvfs(self._root),
            **self._feeds,
        }
        if program in own:
            text = own[program]()
            return {} if text is None else {"": text}
        if program == "plugin":
            return self._plugins()
        row = next((each for each in PROGRAMS if each.output == program), None)
        if row is None or (row.unless and shutil.which(_word(row.unless))):
            return {}
        if row.needs and not (self._root / row.needs).exists():
            return {}
        parts = host_disks(self._root) if "{}" in row.words else [""]
        if row.output == "nvme-smart-log":
            parts = [part for part in parts if part.startswith("nvme")]
        found: dict[str, str] = {}
        for part in parts:
            words = [f"/dev/{part}" if word == "{}" else word for word in row.words]
            answer = self._run(words, row.deadline_s, errors=not row.is_json)
            if answer is not None:
                found[part] = answer.text
        return found

    def _plugins(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in plugins(self._root):
            answer = self._run([str(path)], PLUGIN_DEADLINE_S, errors=False)
            if answer is None or answer.status is None:
                found[path.name] = json.dumps({"exit": 3, "out": "the plug-in did not run to its end in time"})
            else:
                found[path.name] = json.dumps({"exit": answer.status, "out": answer.text[: TEXT_MAX // 8]})
        return found


def _word(output: str) -> str:
    return next(row.words[0] for row in PROGRAMS if row.output == output)


def plugins(root: Path) -> list[Path]:
    """Return the operator's own sensors: programs that only root, who owns them, can write."""
    found = []
    for path in sorted((root / PLUGINS).glob("*"))[:MATCHES_MAX]:
        try:
            about = path.stat()
        except OSError:
            continue
        mine = about.st_uid in (0, os.geteuid()) and not about.st_mode & 0o022
        if mine and stat.S_ISREG(about.st_mode) and about.st_mode & 0o100 and PLUGIN_NAME.fullmatch(path.name):
            found.append(path)
    return found


def host_disks(root: Path) -> list[str]:
    """Return the machine's own disks. Disks of iSCSI sessions are volumes."""
    return [name for name, is_volume in _disks(root) if not is_volume]


def _disks(root: Path) -> list[tuple[str, bool]]:
    found = []
    for path in sorted((root / "sys/block").glob("*"))[:MATCHES_MAX]:
        if DISK.fullmatch(path.name):
            found.append((path.name, "/session" in os.path.realpath(path)))
    return found


def known(root: Path) -> Given:
    """Return what this node knows apart from the readings. Uplinks are the cards and bonds in bridges."""
    uplinks = {
        path.parent.name
        for path in (root / "sys/class/net").glob("*/brport")
        if (path.parent / "device").exists() or (path.parent / "bonding").exists()
    }
    disks = _disks(root)
    return Given(
        uplinks=frozenset(uplinks) or None,
        host_disks=frozenset(name for name, is_volume in disks if not is_volume),
        own_luns=frozenset(name for name, is_volume in disks if is_volume),
        now=datetime.now(),
    )


def look(
    root: Path, run: Runner, sensors: Sequence[Sensor] = SENSORS, deadline_s: float = SENSOR_DEADLINE_S
) -> Verdict:
    """Read all sensors of this machine at once, each in its own thread, and judge them."""
    given, log = known(root), kernel_log(root)
    readings: dict[str, Any] = {}
    live = Live(root, run, log)

    def read(sensor: Sensor) -> None:
        readings[sensor.name] = take(sensor, Source(root, live))

    threads = [threading.Thread(target=read, args=(sensor,), daemon=True, name=sensor.name) for sensor in sensors]
    for thread in threads:
        thread.start()
    end = time.monotonic() + deadline_s
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = Unreadable(f"it gave no answer within {deadline_s:g} s")
    moments = [(sensor, Moment(None, readings.get(sensor.name, late))) for sensor in sensors]
    return verdict([sign for sensor, moment in moments for sign in told(sensor, [moment], given)])


def lacking(root: Path) -> list[tuple[str, str]]:
    """Return the programs, with their packages, that are not installed but would show something on this machine."""
    rows = [row for row in PROGRAMS if not (row.unless and shutil.which(_word(row.unless)))]
    rows = [row for row in rows if row.is_wanted(root) and not shutil.which(row.words[0])]
    return list(dict.fromkeys((row.words[0], row.package) for row in rows))


def kernel_log(root: Path) -> str | None:
    """Return the last day of the kernel's log from /dev/kmsg, or None if it cannot be read. One read returns one
    record."""
    try:
        log = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    rows: list[str] = []
    oldest = time.monotonic() - KMSG_AGE_S
    try:
        for _ in range(KMSG_RECORDS_MAX):
            try:
                row = os.read(log, 8192).decode(errors="replace")
            except BrokenPipeError:
                continue  # records were overwritten meanwhile: the next read continues with the oldest one left
            except OSError:
                break
            if not row:
                break
            fields = row.split(",", 3)
            if len(fields) == 4 and fields[2].isdigit() and int(fields[2]) / 1e6 >= oldest:
                rows.append(row.partition("\n")[0])
    finally:
        os.close(log)
    return "".join(f"{row}\n" for row in rows)


def _adjtimex() -> str | None:
    """Read struct timex (adjtimex(2)) on 64 bits: modes, offset, freq, maxerror, esterror, status."""
    buffer = ctypes.create_string_buffer(TIMEX_BYTES)
    try:
        if ctypes.CDLL(None).adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    _, offset, _, maxerror, esterror, status = struct.unpack_from("@I4xqqqqi", buffer)
    return json.dumps({"status": status, "offset": offset, "maxerror": maxerror, "esterror": esterror})


def _statvfs(root: Path) -> str | None:
    found: dict[str, dict[str, int]] = {}
    for path in OWN_PATHS:
        try:
            room = os.statvfs(root / path.lstrip("/"))
        except OSError:
            continue
        found[path] = {"f_bavail": room.f_bavail, "f_blocks": room.f_blocks, "f_frsize": room.f_frsize}
    return json.dumps(found) if found else None


def run(words: Sequence[str], deadline_s: float, *, errors: bool) -> Answer | None:
    """Run a program of this machine (see Runner)."""
    if shutil.which(words[0]) is None:
        return None
    try:
        process = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError:
        return None
    assert process.stdout is not None
    text, ended = _read(process.stdout.fileno(), time.monotonic() + deadline_s)
    try:
        status = process.wait(KILLED_WAIT_S) if ended else None
    except subprocess.TimeoutExpired:
        status = None
    if status is None:
        _kill(process)
    process.stdout.close()
    return Answer(status, text)


def _read(output: int, end: float) -> tuple[str, bool]:
    """Read until the end of the output, the deadline or the size limit. Return the text, and True if the output
    ended."""
    found = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while len(found) < TEXT_MAX and (left := end - time.monotonic()) > 0:
            if not selector.select(left):
                break
            data = os.read(output, 65536)
            if not data:
                return found.decode(errors="replace"), True
            found += data
    return found[:TEXT_MAX].decode(errors="replace"), False


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(KILLED_WAIT_S)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
