"""`unshare --mount --uts --propagation private python bench/cell.py FOLDER TREE NAME`: one node's libvirt daemons.

Called inside a node's network namespace. Its mount namespace has libvirt's programs in /usr and libvirt's folders below
FOLDER; its host name is NAME, for libvirt refuses two hosts of one name. It runs virtlogd and libvirtd, and reaps every
orphan at once: libvirt takes a QEMU for alive until its zombie is gone, and under an init that reaps late (a
container's) each move would take up to seconds longer. SIGTERM ends it all. Only the standard library is used here."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
BOUND = (  # a folder of FOLDER, and where libvirt looks for it
    ("config", "/etc/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("log", "/var/log/libvirt"),
    ("cache", "/var/cache/libvirt"),
    ("run", "/run"),
)


def mount(folder: Path, tree: Path) -> None:
    """Lay the tree over /usr and `folder`'s etc and var over theirs, read-only; what libvirt writes is in `folder`."""
    for layer, place in ((tree / "usr", "/usr"), (folder / "etc", "/etc"), (folder / "var", "/var")):
        _mount("-t", "overlay", "-o", f"lowerdir={layer}:{place}", "overlay", place)
    for name, place in BOUND:
        _mount("--bind", folder / name, place)
    _mount("-t", "sysfs", "sysfs", "/sys")  # that of this network namespace


def main(folder: Path, tree: Path, name: str) -> int:
    """Run until SIGTERM, or until a daemon ends by itself; its exit status."""
    mount(folder, tree)
    socket.sethostname(name)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    daemons = {_spawn("virtlogd"), _spawn("libvirtd", "--listen")}

    def end(*_: object) -> None:
        for each in daemons:
            os.kill(each, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    status = 0
    while daemons:
        pid, ended = os.wait()
        if pid in daemons:
            daemons.discard(pid)
            status = status or os.waitstatus_to_exitcode(ended)
            end()
    return status


def _spawn(*words: str) -> int:
    def with_us() -> None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return subprocess.Popen(words, stdin=subprocess.DEVNULL, preexec_fn=with_us).pid  # noqa: PLW1509 (one thread)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True, timeout=30)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
