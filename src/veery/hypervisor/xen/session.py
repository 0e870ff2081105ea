"""An xl that veeryd started, with all its children. It leads a session of its own, which holds libxl's helpers and
hotplug scripts. The session is found by /proc, so that its processes are found even if their xl was killed."""

from __future__ import annotations

import signal
from pathlib import Path

from veery.host.process import Process, start_ticks

_OURS = ("xl", "libxl-save-help", "sh", "bash", "block", "vif-bridge", "veery-")
"""The names of the processes of such a session (comm, 15 letters): another process may have the pid by now."""


def members(leader: Process) -> tuple[Process, ...]:
    """Return the living processes of the session that `leader` leads, or led; the leader last."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        pid, session, ticks = int(folder.name), int(fields[3]), int(fields[19])
        if session == leader.pid and ticks >= leader.ticks and fields[0] not in "ZX" and name.startswith(_OURS):
            found.append(Process(pid, ticks))
    return tuple(sorted(found, key=lambda each: each.pid == leader.pid))


async def kill(leader: Process) -> None:
    """Send SIGKILL to the whole session; returns when it is gone. Raises Failed when one process does not end."""
    while found := members(leader):
        for each in reversed(found):  # the leader first, because it would start others
            each.send(signal.SIGKILL)
        for each in found:
            await each.stop(grace=0)
    await leader.gone()  # reaps the child


def noted(path: Path) -> Process | None:
    """Return the process that a pid file names, even if it is gone, because its session may still exist. None without a
    file."""
    try:
        pid, ticks = (int(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return None
    return Process(pid, ticks)


def stopped(process: Process) -> bool:
    """Return whether the process is stopped by a signal."""
    try:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state == "T" and start_ticks(process.pid) == process.ticks
