"""An xl of ours with all that it started: it leads a session of its own, in which are libxl's helpers and hotplug
scripts. Found by /proc, so that those are found too whose xl was killed."""

from __future__ import annotations

import signal
from pathlib import Path

from veery.host.process import Process, start_ticks

_OURS = ("xl", "libxl-save-help", "sh", "bash", "block", "vif-bridge", "veery-")
"""What a process of such a session is called (comm, 15 letters): a pid may be another's by now."""


def members(leader: Process) -> tuple[Process, ...]:
    """The living processes of the session that `leader` leads, or led; the leader last."""
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
    """SIGKILL for all of it; returns when it is gone. Raises Failed when one of them does not end."""
    while found := members(leader):
        for each in reversed(found):  # first the leader, which would start others
            each.send(signal.SIGKILL)
        for each in found:
            await each.stop(grace=0)
    await leader.gone()  # our child is reaped


def noted(path: Path) -> Process | None:
    """The process that a pid file names, also when it is gone: its session may not be. None without a file."""
    try:
        pid, ticks = (int(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return None
    return Process(pid, ticks)


def stopped(process: Process) -> bool:
    """Whether it stands still by a signal."""
    try:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state == "T" and start_ticks(process.pid) == process.ticks
