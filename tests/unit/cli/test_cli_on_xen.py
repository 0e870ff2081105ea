"""On a Xen node what Xen alone knows is the real xl's; elsewhere the columns that are asked for are printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_standin import BUSYBOX, HOST, NODE, Run, StandIn

from veery.cli import tables

XEN = {"node": {**NODE, "driver": "xen"}, "host": HOST, "domains": 1}
DISKS = (
    "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n"
    "51712 0   3      1     -1     8        /local/domain/0/backend/vbd/3/51712\n"
)
VIFS = (
    "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n"
    "0   0  00:16:3e:28:bb:f6     0     4      9   768/769         /local/domain/0/backend/vif/3/0\n"
)
LONG = [
    {"domid": 0, "config": {"c_info": {"type": "pv"}}},
    {"domid": 3, "config": {"disks": [{"pdev_path": "/dev/veery/root", "vdev": "xvda", "backend": "phy"}]}},
]


@pytest.fixture
def real(daemon: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Xen node; the real xl prints what stands in a file of its verb's name."""
    daemon.routes["GET /v1/host"] = XEN
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (
        ("block-list", DISKS),
        ("network-list", VIFS),
        ("list", json.dumps(LONG)),
        ("vm-list", "real\n"),
    ):
        (tmp_path / name).write_text(text)
    xl = folder / "xl"
    xl.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words\n[ -f {tmp_path}/$1 ] && exec cat {tmp_path}/$1\nexit 7\n')
    xl.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return tmp_path / "words"


@pytest.mark.parametrize(
    "words", ["list", "list busybox", "list -v", "list -c -n", "list -Z busybox", "vm-list", "vcpu-list 0", "uptime"]
)
def test_xl_looks_by_the_real_xl(run: Run, real: Path, words: str) -> None:
    told = run(*words.split(), tool="xl")
    assert real.read_text() == f"{words}\n"
    assert told.code == (7 if words.split(maxsplit=1)[0] in ("vcpu-list", "uptime") else 0)


@pytest.mark.parametrize("words", ["list -c", "list -v -n busybox", "vcpu-list", "vcpu-list 0"])
def test_veery_asks_it_for_what_it_does_not_know(run: Run, real: Path, words: str) -> None:
    run(*words.split())
    assert real.read_text() == f"{words}\n"


def test_the_long_list_is_xls_with_our_volumes(daemon: StandIn, run: Run, real: Path) -> None:
    spec = {"name": "busybox", "kernel": "/k", "disks": [{"vdev": "xvda", "volume": "root"}]}
    daemon.routes[f"GET /v1/domains/{BUSYBOX['uuid']}"] = {"reading": BUSYBOX, "spec": spec, "owner": None}
    for tool in ("veery", "xl"):
        zero, found = json.loads(run("list", "-l", tool=tool).out)
        assert zero == LONG[0]
        assert found["config"]["disks"] == [
            {"pdev_path": "/dev/veery/root", "vdev": "xvda", "backend": "phy", "volume": "root"}
        ]
        (found,) = json.loads(run("list", "-l", "busybox", tool=tool).out)
        assert found["domid"] == 3


def test_a_real_xl_that_fails_leaves_the_long_list_ours(daemon: StandIn, run: Run, real: Path) -> None:
    spec = {"name": "busybox", "kernel": "/k"}
    daemon.routes[f"GET /v1/domains/{BUSYBOX['uuid']}"] = {"reading": BUSYBOX, "spec": spec, "owner": None}
    real.with_name("list").write_text("no JSON")
    (found,) = json.loads(run("list", "-l").out)
    assert found["config"]["c_info"]["name"] == "busybox"


def test_device_columns_are_xens_in_each_tools_form(run: Run, real: Path) -> None:
    assert run("block-list", "busybox").out == DISKS
    assert run("network-list", "busybox").out == VIFS
    header, row = run("block-list", "busybox", tool="xm").out.splitlines()
    assert header == "Vdev  BE handle state evt-ch ring-ref BE-path"
    assert row.split() == ["51712", "0", "3", "1", "-1", "8", "/local/domain/0/backend/vbd/3/51712"]
    header, row = run("network-list", "busybox", tool="xm").out.splitlines()
    assert header.startswith("Idx BE     MAC Addr.")
    assert row.split()[:3] == ["0", "0", "00:16:3e:28:bb:f6"]
    assert "768" in row
    assert run("block-list", "wren", tool="xm").code == 3
    assert list(tables.disks_in_xm("Vdev\n")) == []


def test_xms_vcpu_list_is_xens_too(run: Run, real: Path) -> None:
    real.with_name("vcpu-list").write_text(
        "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)\n"
        "busybox                              3     0    1   -b-       2.3  0-1 / all\n"
        "busybox                              3     1    -   --p       0.0  all / all\n"
    )
    header, first, second = run("vcpu-list", "busybox", tool="xm").out.splitlines()
    assert header.endswith("CPU Affinity")
    assert first.split() == ["busybox", "3", "0", "1", "-b-", "2.3", "0-1"]
    assert second.split() == ["busybox", "3", "1", "-", "--p", "0.0", "any", "cpu"]
    assert run("vcpu-list", "wren", tool="xm").code == 3


def test_xms_long_list_is_s_expressions(daemon: StandIn, run: Run) -> None:
    disks = [{"vdev": "xvda", "volume": "root"}, {"vdev": "xvdb", "target": "/images/a b", "readwrite": False}]
    spec = {"name": "busybox", "kernel": "/k", "memory": 512, "maxmem": 600, "disks": disks}
    spec["vifs"] = [{"bridge": "xenbr0", "mac": "00:16:3e:28:bb:f6"}]
    daemon.routes[f"GET /v1/domains/{BUSYBOX['uuid']}"] = {"reading": BUSYBOX, "spec": spec, "owner": None}
    told = run("list", "--long", tool="xm").out
    assert told.count("(domain\n") == 2
    assert told.startswith("(domain\n    (domid 0)\n")
    (busybox,) = told.split("(domain\n")[2:]
    for text in (
        "    (domid 3)\n",
        "    (name busybox)\n",
        "    (maxmem 600)\n    (memory 512)\n",
        "    (state -b----)\n",
        "    (device\n        (vif\n            (bridge xenbr0)\n",
        "            (dev xvda:disk)\n            (uname volume:root)\n            (mode w)\n",
        "            (uname 'file:/images/a b')\n            (mode r)\n",
    ):
        assert text in busybox
    assert told.count("(") == told.count(")")
    assert run("list", "-l", "busybox", tool="xm").out == "(domain\n" + busybox


def test_without_xen_the_columns_are_there_too(daemon: StandIn, run: Run) -> None:
    header, zero, row = run("list", "-c", "-n", tool="xl").out.splitlines()
    assert header.endswith("Time(s)         Cpupool NODE Affinity")
    assert zero.endswith("          Pool-0 all")
    assert row.endswith("          Pool-0 all")
    assert run("list", "-Z").out.splitlines()[0].endswith("Time(s)   Security Label")
    told = run("info", "-n")
    assert told.out.splitlines()[-2:] == [
        "node:    memsize    memfree    distances",
        "   0:      2047        998      10",
    ]
    assert "show one node only" in run("list", "-A", "-c").err
    assert "it has no virtual processors" in run("vcpu-list", "0").err
