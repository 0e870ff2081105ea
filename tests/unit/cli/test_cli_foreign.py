"""Verbs of xl that veery does not have: to the real xl on a Xen node, words elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_standin import HOST, NODE, Run, StandIn

from veery.cli import foreign
from veery.cli.catalogue import entries

XEN = {"node": {**NODE, "driver": "xen"}, "host": HOST, "domains": 1}


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


def test_none_is_a_verb_of_veery() -> None:
    assert not foreign.VERBS & entries().keys()


@pytest.mark.parametrize("tool", ["veery", "xl", "xm"])
def test_a_xen_node_hands_them_to_xl(daemon: StandIn, run: Run, real: Path, tool: str) -> None:
    daemon.routes["GET /v1/host"] = XEN
    assert run("debug-keys", "q", tool=tool).code == 7
    assert real.read_text() == "debug-keys q\n"


@pytest.mark.parametrize("tool", ["veery", "xl", "xm"])
def test_the_way_out_is_named_elsewhere(daemon: StandIn, run: Run, real: Path, tool: str) -> None:
    told = run("sched-rtds", "-d", "busybox", tool=tool)
    assert (told.code, told.out) == (1, "")
    assert "veery has no sched-rtds" in told.err
    assert "hint: on a Xen node: xl sched-rtds -d busybox" in told.err
    assert not real.exists()


def test_another_xen_node_is_named(daemon: StandIn, run: Run, real: Path) -> None:
    daemon.routes["GET /v1/host"] = XEN
    assert "hint: on test1: xl debug-keys q" in run("--node", "test1", "debug-keys", "q").err
    assert not real.exists()


@pytest.mark.parametrize("verb", sorted(foreign.HEADERS))
def test_lists_of_what_no_domain_has_are_empty(daemon: StandIn, run: Run, verb: str) -> None:
    told = run(verb, *(["busybox"] if verb != "cpupool-list" else []), tool="xl")
    assert (told.code, told.out, told.err) == (0, foreign.HEADERS[verb] + "\n", "")
    if verb != "cpupool-list":
        assert run(verb, "wren", tool="xl").code == 1


def test_veery_named_xl_is_not_the_real_one(tmp_path: Path) -> None:
    (tmp_path / "veery").write_text("")
    (tmp_path / "xl").symlink_to(tmp_path / "veery")
    (tmp_path / "real").write_text("")
    assert foreign.real_xl([str(tmp_path / "xl"), str(tmp_path / "none")]) is None
    assert foreign.real_xl([str(tmp_path / "xl"), str(tmp_path / "real")]) == str(tmp_path / "real")


@pytest.mark.parametrize("verb", ["vcpu-list", "block-list", "network-list"])
def test_what_only_xen_knows_is_asked_of_its_xl(daemon: StandIn, run: Run, real: Path, verb: str) -> None:
    assert run(verb, "busybox", tool="xl").out.startswith(("Name", "Vdev", "Idx"))  # not a Xen node
    assert not real.exists()
    daemon.routes["GET /v1/host"] = XEN
    assert run(verb, "busybox", tool="xl").code == 7
    assert real.read_text() == f"{verb} busybox\n"
    assert run(verb, "--json", "busybox").code == 0


@pytest.mark.parametrize("words", ["sysrq busybox s", "trigger busybox nmi 0", "trigger busybox sleep"])
def test_signals_are_xls_on_a_xen_node(daemon: StandIn, run: Run, real: Path, words: str) -> None:
    daemon.routes["GET /v1/host"] = XEN
    assert run(*words.split(), tool="xl").code == 7
    assert real.read_text() == f"{words}\n"


def test_qemu_gives_no_sleep(daemon: StandIn, run: Run) -> None:
    assert "QEMU has no trigger sleep" in run("trigger", "busybox", "sleep").err
    assert run("sysrq", "busybox", "ss").code == 2
