"""veeryd's priority over domains, on real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from veery.host import priority

_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="a nice value below 0 needs CAP_SYS_NICE")
_AUTOGROUP = Path("/proc/self/autogroup")


def _raised(script: str, *, nice: int = 0) -> list[str]:
    """What a process prints that has raised itself, and is the first of its session."""
    whole = f"import os, subprocess\nfrom veery.host import priority\npriority.raise_own()\n{script}"
    done = subprocess.run(
        ["nice", "-n", str(nice - os.getpriority(os.PRIO_PROCESS, 0)), sys.executable, "-c", whole],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        start_new_session=True,
    )
    return done.stdout.split()


@_ROOT
def test_a_domain_of_a_raised_process_has_the_ordinary_value() -> None:
    script = (
        "print(os.getpriority(os.PRIO_PROCESS, 0))\n"
        "print(subprocess.check_output(['nice'], text=True))\n"
        "print(subprocess.check_output(priority.ordinary(['nice']), text=True))"
    )
    assert _raised(script) == [str(priority.NICE), str(priority.NICE), "0"]


@_ROOT
def test_a_value_that_its_caller_chose_stays() -> None:
    assert _raised("print(os.getpriority(os.PRIO_PROCESS, 0))", nice=-3) == ["-3"]


@_ROOT
@pytest.mark.skipif(not _AUTOGROUP.exists(), reason="this kernel has no autogroups")
def test_its_session_and_a_services_session_are_raised_and_a_domains_is_not() -> None:
    script = (
        "from pathlib import Path\n"
        "service = subprocess.Popen(['sleep', '50'], start_new_session=True)\n"
        "domain = subprocess.Popen(priority.ordinary(['sleep', '50']), start_new_session=True)\n"
        "priority.share(service.pid)\n"
        "for each in ('self', service.pid, domain.pid):\n"
        "    print(Path(f'/proc/{each}/autogroup').read_text().split()[-1])\n"
        "service.kill()\n"
        "domain.kill()"
    )
    assert _raised(script) == [str(priority.NICE), str(priority.NICE), "0"]


@pytest.mark.skipif(os.getpriority(os.PRIO_PROCESS, 0) < 0, reason="these tests run raised themselves")
def test_a_process_that_is_not_raised_changes_no_command() -> None:
    assert priority.ordinary(["qemu", Path("/x")]) == ["qemu", Path("/x")]
