"""An `xl` that moves domains which are rows in a file: the same words, the same ends, the same failures as the real one
has (tools/xl/xl_migrate.c of Xen 4.17). Only the standard library: it is copied to where PATH finds it.

XL_WORLD is a folder with `source.json` and `target.json`, {domid: {"name", "uuid", "state"}}, and with files that hold
it: while `hold-PLACE` is there it waits at PLACE, having made `at-PLACE`."""

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

WORLD = Path(os.environ.get("XL_WORLD", "."))
BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
MAGIC = b"Xen saved domain, xl format\n \0 \r"
CHUNK, CHUNKS = 1 << 18, 16


@contextlib.contextmanager
def world(side):
    with (WORLD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = WORLD / f"{side}.json"
        rows = json.loads(path.read_text()) if path.exists() else {}
        yield rows
        path.with_suffix(".new").write_text(json.dumps(rows))
        path.with_suffix(".new").rename(path)


def at(place):
    if (WORLD / f"hold-{place}").exists():
        (WORLD / f"at-{place}").touch()
        while (WORLD / f"hold-{place}").exists():
            time.sleep(0.005)


def read(handle, size):
    data = b""
    while len(data) < size:
        piece = os.read(handle, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def write(handle, data):
    while data:
        data = data[os.write(handle, data) :]


def state(side, domid, value):
    with world(side) as rows:
        rows[domid]["state"] = value


def helper():
    """libxl's, which holds the pipe when xl is killed."""
    if os.fork() == 0:
        Path("/proc/self/comm").write_text("libxl-save-help")
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.05)
        time.sleep(30)
        os._exit(0)


def migrate(domid, rune):
    with world("source") as rows:
        row = rows[domid]
    (take, out), (back, give) = os.pipe(), os.pipe()
    for handle in (out, back):  # xl's own ends go along to the child, as libxl_pipe makes them
        os.set_inheritable(handle, True)
    subprocess.Popen(["sh", "-c", rune], stdin=take, stdout=give, close_fds=False)
    os.close(take)
    os.close(give)
    helper()
    config = json.dumps({"c_info": {"name": row["name"], "uuid": row["uuid"]}, "disks": row["disks"]}).encode() + b"\0"
    try:
        if read(back, len(BANNER)) != BANNER:
            return 1
        with world("source") as rows:
            rows[domid]["logged"] = True
        body = struct.pack("=I", len(config)) + config
        write(out, struct.pack("=32sIIII", MAGIC, 0x01020304, 3, 0, len(body)) + body)
        for number in range(CHUNKS):
            write(out, bytes([number]) * CHUNK)
            if number == CHUNKS // 2:
                at("copy")
        state("source", domid, "suspended")
        at("suspended")
        write(out, b"END.")
        at("sent")
        if read(back, len(READY)) != READY:
            raise EOFError
    except (EOFError, OSError):
        sys.stderr.write("Migration failed, resuming at sender.\n")
        at("resuming")
        with world("source") as rows:
            rows[domid]["logged"] = False
            if rows[domid]["state"] == "suspended":
                rows[domid]["state"] = "running"
        return 1
    (WORLD / "LIMBO").touch()  # the sender was told READY: that must never be
    return 3


def migrate_receive():
    write(1, BANNER)
    domid = ""
    try:
        head = read(0, 48)
        magic, order, flags, _, size = struct.unpack("=32sIIII", head)
        body = read(0, size)
        (length,) = struct.unpack_from("=I", body)
        config = json.loads(body[4 : 4 + length].rstrip(b"\0"))
        assert magic == MAGIC and order == 0x01020304 and flags == 3
        name = config["c_info"]["name"]
        with world("target") as rows:
            domid = str(max([0, *map(int, rows)]) + 1)
            rows[domid] = {**config["c_info"], "name": f"{name}--incoming", "state": "paused", "disks": config["disks"]}
        for number in range(CHUNKS):
            assert read(0, CHUNK) == bytes([number]) * CHUNK
        at("loading")
        assert read(0, 4) == b"END."
        at("loaded")
    except (EOFError, OSError):
        with world("target") as rows:
            rows.pop(domid, None)
        sys.stderr.write("migration target: Domain creation failed (code -3).\n")
        return 1
    write(1, READY)
    code = 0
    try:
        if read(0, len(GO)) != GO:
            raise EOFError
        at("going")
        if (WORLD / "fail-going").exists():
            raise EOFError
        with world("target") as rows:
            rows[domid].update(name=name, state="running")
    except EOFError:
        code = 1
    try:
        write(1, REPORT)
        write(1, bytes([code]))
    except OSError:
        return 1  # and what there is of the domain stays
    if code:
        with world("target") as rows:
            rows.pop(domid, None)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    verb, *words = sys.argv[1:]
    sys.exit(migrate(words[2], words[3]) if verb == "migrate" else migrate_receive())
