"""`xl migrate` and `xl migrate-receive` of the scripted xl: the words, the ends and the failures of the real one
(tools/xl/xl_migrate.c of Xen 4.17). What flows has the head of a real stream, and zeros for memory."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from typing import Any

from scripted_xl import Complaint, Host, guest, kill

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
MAGIC = b"Xen saved domain, xl format\n \0 \r"
HEAD = struct.Struct("=32sIIII")
CHUNK, END = 1 << 20, b"END."
SUSPENDED = 2  # of a row's reason codes


def _read(handle: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(handle, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def send(host: Host, ref: str, rune: str) -> None:
    """`xl migrate -s '' DOMAIN RUNE`: it resumes the domain where its pipe ends, and is never told READY."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    domain = host.find(ref)
    (take, out), (back, give) = os.pipe(), os.pipe()
    subprocess.Popen(["sh", "-c", rune], stdin=take, stdout=give)
    os.close(take)
    os.close(give)
    kept = ("memory", "maxmem", "vcpus", "devices", "paused")
    config = {"c_info": {name: domain[name] for name in ("name", "uuid")}, "row": {name: domain[name] for name in kept}}
    text = json.dumps(config).encode() + b"\0"
    body = struct.pack("=I", len(text)) + text
    try:
        if _read(back, len(BANNER)) != BANNER:
            raise Complaint("migration target did not say that it is ready")
        _write(out, HEAD.pack(MAGIC, 0x01020304, 3, 0, len(body)) + body)
        for _ in range(domain["memory"]):
            _write(out, bytes(CHUNK))
        _stop(host, domain)
        _write(out, END)
        if _read(back, len(READY)) != READY:
            raise EOFError
    except (EOFError, OSError):
        sys.stderr.write("Migration failed, resuming at sender.\n")
        row = host.find(ref)
        if row.get("reason") == SUSPENDED:
            host.change(row["domid"], reason=None)
            os.kill(row["pid"], signal.SIGCONT)
        raise Complaint("Migration failed") from None
    raise Complaint("the sender was told READY: that must never be")


def _stop(host: Host, domain: dict[str, Any]) -> None:
    """The guest follows its call to suspend."""
    if host.find(str(domain["domid"])).get("reason") is not None:
        raise EOFError  # it has shut down meanwhile
    os.kill(domain["pid"], signal.SIGSTOP)
    host.change(domain["domid"], reason=SUSPENDED)


def receive(host: Host) -> None:
    """`xl migrate-receive`: it destroys its half where its pipe ends before GO."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    _write(1, BANNER)
    half: dict[str, Any] = {}
    try:
        magic, order, flags, _, size = HEAD.unpack(_read(0, HEAD.size))
        body = _read(0, size)
        (length,) = struct.unpack_from("=I", body)
        config = json.loads(body[4 : 4 + length].rstrip(b"\0"))
        assert (magic, order, flags) == (MAGIC, 0x01020304, 3)
        half = _half(host, config)
        for _ in range(half["memory"]):
            _read(0, CHUNK)
        assert _read(0, len(END)) == END
    except (EOFError, OSError):
        _forget(host, half)
        raise Complaint("migration target: Domain creation failed (code -3).") from None
    _write(1, READY)
    try:
        if _read(0, len(GO)) != GO:
            raise EOFError
    except EOFError:
        _forget(host, half)
        raise Complaint("migration target: Failure, destroying our copy.") from None
    host.change(half["domid"], name=config["c_info"]["name"], paused=False)
    os.kill(half["pid"], signal.SIGCONT)
    _write(1, REPORT)  # by itself, as xl does: the relay leaves room in the pipe for this much
    _write(1, b"\0")


def _half(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """The domain as it stands until it may run."""
    names = {**config["c_info"], "name": f"{config['c_info']['name']}--incoming"}
    domain: dict[str, Any] = {**config["row"], **names, "paused": True, "woken": True}
    with host.held():
        if domain["maxmem"] > host.free():
            raise Complaint("libxl: error: xc: panic: Cannot allocate memory")
        domain["domid"] = host.next()
        domain["pid"] = guest(host, domain)
        os.kill(domain["pid"], signal.SIGSTOP)
        host.write(domain)
    return domain


def _forget(host: Host, half: dict[str, Any]) -> None:
    if half:
        kill(half)
        with host.held():
            host.remove(half)
