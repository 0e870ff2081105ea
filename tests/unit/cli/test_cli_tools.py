"""xm and xl by a symbolic link: their words, flags and exit statuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_standin import BUSYBOX, REPORT, Lines, Run, StandIn, refused


def test_no_such_domain_in_each_tools_words(daemon: StandIn, run: Run) -> None:
    for words in (["list", "wren"], ["destroy", "wren"], ["pause", "wren"], ["migrate", "wren", "test2"]):
        told = run(*words, tool="xm")
        assert (told.code, told.err) == (3, "Error: Domain 'wren' does not exist.\n"), words
        told = run(*words, tool="xl")
        assert (told.code, told.err) == (1, "wren is an invalid domain identifier (rc=-6)\n"), words
    assert run("domname", "9", tool="xl").err.startswith("Can't get domain name of domain id '9'")


def test_usage(run: Run) -> None:
    told = run("destroy", tool="xl")
    assert (told.code, told.err.startswith("'xl destroy'")) == (2, True)
    told = run("destroy", tool="xm")
    assert (told.code, told.err.startswith("Error: ")) == (1, True)
    assert (run("vcpupin", tool="xl").code, run("vcpupin", tool="xl").err) == (1, "command not implemented\n")
    assert run("vcpupin", tool="xm").err.startswith("Error: Subcommand vcpupin not found!\n")
    assert run("-Z", "list", tool="xl").code == 1


def test_help(run: Run) -> None:
    told = run("help", tool="xl")
    assert (told.code, told.out.splitlines()[0]) == (0, "Usage xl [-vfNtT] <subcommand> [args]")
    assert run("help", "list", tool="xl").out.startswith("usage: xl list")
    assert (run(tool="xm").code, run(tool="xl").code) == (1, 1)


def test_unique_beginnings(daemon: StandIn, run: Run) -> None:
    assert run("li", tool="xl").out == run("list", tool="xl").out
    assert run("re", tool="xl").err == "command not implemented\n"  # reboot, restore, rename


def test_veerys_own_verbs_are_not_theirs(daemon: StandIn, run: Run) -> None:
    assert run("volume", "list", tool="xl").code == 1
    assert run("moves", tool="xm").code == 1


def test_dry_run(run: Run) -> None:
    told = run("-N", "block-attach", "0", "raw:/dev/vg/guest-volume,hda,w", tool="xl")
    assert (told.code, '"vdev": "hda"' in told.out) == (0, True)


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (["block-attach", "busybox", "phy:/dev/sdb", "xvdb", "w"], "/v1/domains/3/disks", {"target": "/dev/sdb"}),
        (["block-attach", "busybox", "/dev/sdb", "xvdb", "r"], "/v1/domains/3/disks", {"readwrite": False}),
        (["network-attach", "busybox", "bridge=xenbr0"], "/v1/domains/3/vifs", {"bridge": "xenbr0"}),
        (["shutdown", "-R", "busybox"], f"/v1/domains/{BUSYBOX['uuid']}/reboot", {}),
        (["shutdown", "-H", "busybox"], f"/v1/domains/{BUSYBOX['uuid']}/shutdown", {}),
        (["save", "-c", "busybox", "/b"], "/v1/domains/3/save", {"leave": "running"}),
        (["mem-set", "busybox", "64"], "/v1/domains/3/memory", {"mebibytes": 64}),
    ],
)
def test_xms_arguments(daemon: StandIn, run: Run, words: list[str], path: str, body: dict[str, object]) -> None:
    daemon.routes[f"POST {path}"] = {}
    told = run(*words, tool="xm")
    assert (told.code, told.out, told.err) == (0, "", "")
    [(_, seen, sent)] = daemon.orders()
    assert seen == path
    sent = sent.get("disk", sent.get("vif", sent))
    assert {key: sent[key] for key in body} == body


def test_migrate(daemon: StandIn, run: Run) -> None:
    path = "POST /v1/domains/3/migrate"
    daemon.routes[path] = Lines([{"event": "begin", "move": "m1"}, {"event": "done", "result": REPORT}])
    told = run("migrate", "-l", "busybox", "172.16.31.2", tool="xm")
    assert (told.code, told.out, told.err) == (0, "", "")
    told = run("migrate", "busybox", "172.16.31.2", tool="xl")
    assert (told.code, told.err.splitlines()[-1]) == (0, "Migration successful.")
    assert run("migrate", "busybox", "172.16.31.2", tool="xm").code == 0
    assert run("migrate", "-l", "-p", "8002", "-s", "busybox", "172.16.31.2", tool="xm").code == 0
    assert [order[2]["settings"]["live"] for order in daemon.orders()] == [True, True, False, True]
    told = run("migrate", "-p", "9000", "busybox", "172.16.31.2", tool="xm")
    assert (told.code, "relocation port" in told.err) == (1, True)


def test_a_failed_migration_in_xls_words(daemon: StandIn, run: Run) -> None:
    daemon.routes["POST /v1/domains/3/migrate"] = refused("test2 has no bridge xenbr0", "make it there")
    told = run("migrate", "busybox", "test2", tool="xl")
    assert told.code == 1
    assert told.err.splitlines()[-1] == "Migration failed, resuming at sender."
    assert "xl: test2 has no bridge xenbr0" in told.err


def test_xm_list_v_is_vcpu_list(daemon: StandIn, run: Run) -> None:
    assert run("list", "-v", tool="xm").out == run("vcpu-list", tool="xm").out


def test_xm_shutdown_waits_in_xms_words(daemon: StandIn, run: Run) -> None:
    listed = daemon.routes["GET /v1/domains"]
    rounds = iter([listed, {**listed, "domains": []}])
    daemon.routes["GET /v1/domains"] = lambda _: next(rounds)
    daemon.routes[f"POST /v1/domains/{BUSYBOX['uuid']}/shutdown"] = {}
    assert run("shutdown", "-w", "busybox", tool="xm").out == "Domain busybox terminated\nAll domains terminated\n"


def test_what_the_driver_leaves_out_is_said_once(daemon: StandIn, run: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("name='a'\nmemory=64\nkernel='/k'\ncpu_weight=512\nvnc=1\n")
    daemon.routes["POST /v1/domains"] = {"reading": BUSYBOX, "spec": {}, "warnings": ["the qemu driver does not"]}
    for tool in ("veery", "xl", "xm"):
        lines = run("create", "-f", "./f", tool=tool).err.splitlines()
        assert [line for line in lines if "Parsing" not in line] == [f"{tool}: the qemu driver does not"]
    daemon.routes["POST /v1/domains"] = {"reading": BUSYBOX, "spec": {}, "warnings": []}
    assert run("create", "./f").err == ""  # a Xen node: xl takes them all
    daemon.routes["POST /v1/domains/3/vifs"] = {"spec": {}, "device": "vif3.1", "warnings": ["rate"]}
    assert run("network-attach", "busybox", "rate=1Mb/s", tool="xl").err == "xl: rate\n"


def test_a_file_that_is_not_there_has_xls_status(run: Run) -> None:
    assert [run("create", "/nosuch", tool=tool).code for tool in ("xl", "xm", "veery")] == [3, 1, 1]


def test_a_start_that_fails_has_xls_status(daemon: StandIn, run: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("name='a'\nmemory=64\nkernel='/k'\n")
    daemon.routes["POST /v1/domains"] = refused("a is already here", "look")
    assert [run("create", "./f", tool=tool).code for tool in ("xl", "xm", "veery")] == [3, 1, 1]


def test_xms_lists_have_no_header_without_a_row(daemon: StandIn, run: Run) -> None:
    daemon.routes |= {"GET /v1/domains/3/disks": [], "GET /v1/domains/3/vifs": []}
    for verb in ("block-list", "network-list"):
        assert run(verb, "busybox", tool="xm").out == ""
        assert len(run(verb, "busybox", tool="xl").out.splitlines()) == 1


def test_xms_processor_speed_is_whole(daemon: StandIn, run: Run) -> None:
    assert "cpu_mhz                : 2272\n" in run("info", tool="xm").out
    assert "cpu_mhz                : 2272.000\n" in run("info", tool="xl").out


def test_a_dry_run_names_what_it_does_not_show(run: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(
        "name='a'\ntype='hvm'\nmemory=64\nuuid='6a0f4c1e-5f0e-4a58-9a44-3d1d2c3b4a59'\nvnc=1\nboot='dc'\ncpu_weight=512\n"
        "cpuid='host,tm=0'\nchannel=['connection=pty,name=x']\n"
    )
    told = run("create", "-n", "./f")
    assert told.code == 0
    for text in ('"weight": 512', '"boot": "dc"', '"enable": "True"'):
        assert text in told.out
    assert told.err.endswith("not shown here: cpuid, channel\n")
