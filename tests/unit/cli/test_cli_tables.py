"""The tables of xl and xm, to the letter."""

from __future__ import annotations

import re

import pytest
from cli_standin import BUSYBOX, CRASHED, DISK, HOST, VIF, ZERO, Run, StandIn

XL_LIST = """\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0  1023     2     r-----     710.1
busybox                                      3   512     1     -b----       2.3
"""
XM_LIST = """\
Name                                        ID   Mem VCPUs      State   Time(s)
Domain-0                                     0  1023     2     r-----    710.1
busybox                                      3   512     1     -b----      2.3
"""


@pytest.mark.parametrize(("tool", "text"), [("veery", XL_LIST), ("xl", XL_LIST), ("xm", XM_LIST)])
def test_list(daemon: StandIn, run: Run, tool: str, text: str) -> None:
    told = run("list", tool=tool)
    assert (told.code, told.out, told.err) == (0, text, "")


def test_crashed_letters_differ_between_xl_and_xm(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/domains"]["domains"] = [CRASHED]
    assert "---sc-" in run("list", tool="xl").out
    assert "----c-" in run("list", tool="xm").out


def test_list_verbose(daemon: StandIn, run: Run) -> None:
    header, _, row = run("list", "-v", tool="xl").out.splitlines()
    assert header.endswith("\tTime(s)   UUID                            Reason-Code\tSecurity Label")
    assert row.endswith(f"     2.3 {BUSYBOX['uuid']}        -                -")


def test_list_cluster_tells_of_silent_nodes(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/domains?cluster=1"] = {"nodes": {"test1": [BUSYBOX], "test2": [ZERO]}, "silent": ["test3"]}
    told = run("list", "-A")
    assert told.code == 1
    assert [line.split("\t")[-1] for line in told.out.splitlines()] == ["Node", "test1", "test2"]
    assert "test3 does not answer" in told.err


def test_list_tells_of_a_disks_error(daemon: StandIn, run: Run) -> None:
    stands = {**BUSYBOX, "state": "paused", "reason": "disk-xvda: No space left on device"}
    daemon.routes["GET /v1/domains"] = {"node": "test1", "domains": [ZERO, stands]}
    daemon.routes["GET /v1/domains?cluster=1"] = {"nodes": {"test1": [ZERO, stands]}, "silent": []}
    why = "busybox is paused: disk-xvda: No space left on device; after the repair: "
    for words, way in ((["list"], "veery unpause busybox"), (["list", "-A"], "veery --node test1 unpause busybox")):
        told = run(*words)
        assert told.code == 0
        assert f"{why}{way}\n" in told.err
    assert run("list", tool="xl").err == ""
    assert run("list", "--json").err == ""


def test_list_long_is_xls_json(daemon: StandIn, run: Run) -> None:
    import json

    daemon.routes[f"GET /v1/domains/{BUSYBOX['uuid']}"] = {
        "reading": BUSYBOX,
        "spec": {"name": "busybox"},
        "owner": None,
    }
    value = json.loads(run("list", "-l", tool="xl").out)
    assert [(item["domid"], item["config"]["c_info"]["name"]) for item in value] == [(3, "busybox")]


def test_vcpu_list(daemon: StandIn, run: Run) -> None:
    assert run("vcpu-list", "busybox", tool="xl").out == (
        "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)\n"
        "busybox                              3     0    1   -b-       2.3  all / all\n"
    )
    assert run("vcpu-list", "busybox", tool="xm").out == (
        "Name                                ID  VCPU   CPU State   Time(s) CPU Affinity\n"
        "busybox                              3     0     1   -b-       2.3 any cpu\n"
    )


def test_uptime(daemon: StandIn, run: Run) -> None:
    import time

    daemon.routes["GET /v1/domains"]["domains"] = [{**BUSYBOX, "started": time.time() - 2 * 86400 - 3600 - 60}]
    row = re.compile(r"busybox {30}3 2 days,  1:0[1-9]:[0-5][0-9]")  # it goes on while we look
    for tool, head in (("xl", "Name                                ID Uptime"), ("xm", "Name{32}ID Uptime ")):
        first, second = run("uptime", tool=tool).out.splitlines()
        assert first == head.replace("{32}", " " * 32)
        assert row.fullmatch(second), second
    told = run("uptime", "-s", "busybox", tool="xl").out.rstrip()
    assert re.search(r" up 2 days,  1:0[1-9], busybox \(3\)$", told), told


def test_block_list(daemon: StandIn, run: Run) -> None:
    assert run("block-list", "busybox", tool="xl").out == (
        "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n"
        "51712 0   3      4     -1     -1       volume:root                   \n"
    )
    assert (
        run("block-list", "busybox", tool="xm").out.splitlines()[0] == "Vdev  BE handle state evt-ch ring-ref BE-path"
    )
    assert run("block-list", "--json", "busybox").out.count(DISK["source"]["iqn"]) == 1


def test_network_list(daemon: StandIn, run: Run) -> None:
    assert run("network-list", "3", tool="xl").out == (
        "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n"
        "0   0  00:16:3e:28:bb:f6     0     4     -1    -1/-1          xenbr0/vif3.0                 \n"
    )
    row = run("network-list", "3", tool="xm").out.splitlines()[1]
    assert row.split()[:3] == ["0", "0", VIF["spec"]["mac"]]


def test_info(daemon: StandIn, run: Run) -> None:
    lines = run("info", tool="xl").out.splitlines()
    assert lines[0] == "host                   : test1"
    assert "cpu_mhz                : 2272.000" in lines
    assert "free_memory            : 998" in lines
    assert "qemu_version           : 10.0.2" in lines
    assert lines[-1] == "xend_config_format     : 4"
    assert run("info", "free_memory").out == "998\n"


def test_info_puts_the_drivers_facts_in_their_places(daemon: StandIn, run: Run) -> None:
    host = {**HOST, "facts": {"nr_cpus": "8", "xen_caps": "xen-3.0-x86_64"}}
    daemon.routes["GET /v1/host"]["host"] = host
    lines = run("info").out.splitlines()
    assert lines.index("nr_cpus                : 8") < lines.index("total_memory           : 2047")
    assert "xen_caps               : xen-3.0-x86_64" in lines


def test_vm_list(daemon: StandIn, run: Run) -> None:
    assert (
        run("vm-list").out
        == f"UUID                                  ID    name\n{BUSYBOX['uuid']}  3    {'busybox':<30}\n"
    )


def test_domid_and_domname(daemon: StandIn, run: Run) -> None:
    assert run("domid", "busybox").out == "3\n"
    assert run("domname", "3").out == "busybox\n"
    assert run("domname", "0").out == "Domain-0\n"
    told = run("domid", "wren", tool="xl")
    assert (told.code, told.err) == (1, "Can't get domid of domain name 'wren', maybe this domain does not exist.\n")


def test_top_prints_one_round_without_a_terminal(daemon: StandIn, run: Run) -> None:
    lines = run("top").out.splitlines()
    assert lines[0].endswith("test1: 2 CPUs, 2047 MiB, 998 MiB free, 1 domains")
    assert [line.split()[0] for line in lines[1:]] == ["NAME", "Domain-0", "busybox"]


def test_json_is_the_readings(daemon: StandIn, run: Run) -> None:
    import json

    assert json.loads(run("--json", "list").out)[1] == BUSYBOX
    assert json.loads(run("list", "--json", "busybox").out) == [BUSYBOX]
