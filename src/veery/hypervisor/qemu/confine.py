"""AppArmor: QEMU starts under veery's profile where the host has it loaded (packaging/apparmor/veery-qemu).

The process that becomes QEMU enters the profile at exec (Linux, Documentation/admin-guide/LSM/apparmor.rst;
/proc/PID/attr/apparmor/exec). Where that fails QEMU does not start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PROFILE = "veery-qemu"
LOADED, ATTRIBUTE = Path("/sys/kernel/security/apparmor/profiles"), Path("/proc/self/attr/apparmor/exec")
_ENTER = 'echo "exec $0" >"$1" && shift && exec "$@"'


def confined(words: Sequence[str], *, loaded: Path = LOADED, attribute: Path = ATTRIBUTE) -> list[str]:
    """Return the command line that runs `words` under the profile; `words` themselves where it is not loaded."""
    if not is_loaded(loaded):
        return list(words)
    return ["sh", "-c", _ENTER, PROFILE, str(attribute), *words]


def is_loaded(loaded: Path = LOADED) -> bool:
    """Return whether the kernel has the profile; it lists one a line, "NAME (MODE)"."""
    try:
        lines = loaded.read_text().splitlines()
    except OSError:  # no AppArmor here
        return False
    return any(line.split(" (")[0] == PROFILE for line in lines)
