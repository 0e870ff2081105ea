"""mem-max, vcpu-set, vcpu-pin, sched-*: what is asked of the daemon, and what goes to the real xl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_standin import BUSYBOX, HOST, NODE, Run, StandIn

XEN = {"node": {**NODE, "driver": "xen"}, "host": HOST, "domains": 1}
ADJUST = f"POST /v1/domains/{BUSYBOX['uuid']}/adjust"


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An xl in front of PATH that notes its words and ends with 7."""
    folder = tmp_path / "bin"
    folder.mkdir()
    xl = folder / "xl"
    xl.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words\nexit 7\n')
    xl.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return tmp_path / "words"


@pytest.mark.parametrize("tool", ["veery", "xl", "xm"])
@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("mem-max busybox 1g", {"maxmem": 1024}),
        ("mem-max 3 160", {"maxmem": 160}),
        ("vcpu-set busybox 2", {"vcpus": 2}),
        ("vcpu-pin busybox all 0-1", {"hard": "0-1"}),
        ("vcpu-pin busybox 1 all 2", {"vcpu": 1, "hard": "all", "soft": "2"}),
        ("vcpu-pin busybox 0 - 3", {"vcpu": 0, "soft": "3"}),
        ("sched-credit -d busybox -w 512 -c 50", {"weight": 512, "cap": 50}),
        ("sched-credit2 --domain=busybox --cap=0", {"cap": 0}),
    ],
)
def test_the_node_is_asked(daemon: StandIn, run: Run, tool: str, words: str, change: dict[str, Any]) -> None:
    asked: list[Any] = []
    daemon.routes[ADJUST] = lambda body: asked.append(json.loads(body)) or {}
    told = run(*words.split(), tool=tool)
    assert (told.code, told.out, told.err) == (0, "", "")
    assert asked == [change]


@pytest.mark.parametrize(
    "words",
    [
        "mem-max plain 160",
        "vcpu-set -i Domain-0 1",
        "vcpu-pin -f 0 all 0",
        "sched-credit",
        "sched-credit -d busybox",
        "sched-credit2 -p Pool-0 -r 1000 -s",
        "sched-credit2 -d plain -w 5",
    ],
)
def test_the_rest_is_the_real_xls(daemon: StandIn, run: Run, real: Path, words: str) -> None:
    daemon.routes["GET /v1/host"] = XEN
    assert run(*words.split(), tool="xl").code == 7
    assert real.read_text() == f"{words}\n"
    assert daemon.orders() == []


def test_without_xen_they_are_refused(daemon: StandIn, run: Run, real: Path) -> None:
    assert "Domain-0 is this machine itself" in run("vcpu-pin", "0", "all", "0").err
    assert "this node has no Xen" in run("sched-credit").err
    assert run("vcpu-set", "nothing", "1").code == 1
    assert run("vcpu-set", "busybox", "two").code == 2
    assert run("vcpu-pin", "busybox", "all", "-").code == 2
    assert not real.exists()
    assert daemon.orders() == []
