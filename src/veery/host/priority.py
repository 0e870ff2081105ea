"""The priority of veeryd, etcd and tgtd over domains, for processor time.

A node whose veeryd gets no processor time renews no lease and writes no heartbeat, and is fenced. So a domain that uses
all processors must not delay veeryd. veeryd raises its own nice value. What it starts inherits that; domains are
started with the ordinary value. Processes of one session share an autogroup, if the kernel has them: nice values then
count only within it, so the group's value is raised too (sched(7))."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

NICE = -10  # about ten times the weight of an ordinary process (sched(7): 1.25 a step)
ORDINARY = 0


def raise_own() -> None:
    """Raise the priority of this process, unless its caller did. Without CAP_SYS_NICE it keeps its own: it works then,
    but is slower on a busy node. Call it before any thread starts: a thread has a nice value of its own."""
    if os.getpriority(os.PRIO_PROCESS, 0) < ORDINARY:
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except PermissionError:
        log.warning("veeryd has no CAP_SYS_NICE: domains that use all processors may delay it until it is fenced")
        return
    _raise_group("self")


def share(pid: int) -> None:
    """Give the session of `pid` the priority of this process. For a service that veeryd starts in its own session."""
    if os.getpriority(os.PRIO_PROCESS, 0) < ORDINARY:
        _raise_group(str(pid))


def ordinary(argv: Sequence[str | Path]) -> list[str | Path]:
    """Return `argv` as a command that starts with the ordinary nice value, whatever this process has."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    return ["nice", "-n", str(ORDINARY - own), *argv] if own < ORDINARY else list(argv)


def _raise_group(process: str) -> None:
    with contextlib.suppress(OSError):  # a kernel without autogroups, or the process has ended
        Path(f"/proc/{process}/autogroup").write_text(str(NICE))
