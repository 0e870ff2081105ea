"""What each verb asks of the daemon, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_standin import BUSYBOX, HOST, NODE, VOLUME, ZERO, Lines, Run, StandIn, refused

SEED = """\
kernel ="/boot/vmlinuz-2.6.32-504.el6.x86_64"
name = "busybox"
memory = "512"
vcpus = 1
disk =['file:/scsistore/busybox.img,xvda,w',]
root = "/dev/xvda ro"
vif = ['bridge=xenbr0',]
"""


@pytest.mark.parametrize(
    ("words", "order"),
    [
        (["destroy", "busybox"], ("POST", "/v1/domains/busybox/destroy", {})),
        (["delete", "busybox"], ("DELETE", "/v1/domains/busybox", b"")),
        (["pause", "3"], ("POST", "/v1/domains/3/pause", {})),
        (["unpause", "a b"], ("POST", "/v1/domains/a%20b/unpause", {})),
        (["rename", "busybox", "shrike"], ("POST", "/v1/domains/busybox/rename", {"name": "shrike"})),
        (["mem-set", "busybox", "256"], ("POST", "/v1/domains/busybox/memory", {"mebibytes": 256})),
        (["mem-set", "busybox", "1g"], ("POST", "/v1/domains/busybox/memory", {"mebibytes": 1024})),
        (
            ["save", "-c", "busybox", "/var/tmp/b"],
            ("POST", "/v1/domains/busybox/save", {"path": "/var/tmp/b", "leave": "running"}),
        ),
        (
            ["block-attach", "busybox", "volume=data,vdev=xvdb"],
            ("POST", "/v1/domains/busybox/disks", {"vdev": "xvdb", "volume": "data"}),
        ),
        (
            ["block-attach", "busybox", "vdev=xvdb", "volume=data"],
            ("POST", "/v1/domains/busybox/disks", {"vdev": "xvdb", "volume": "data"}),
        ),
        (["block-detach", "busybox", "xvdb"], ("DELETE", "/v1/domains/busybox/disks/xvdb", b"")),
        (
            ["network-attach", "busybox", "bridge=xenbr0", "mac=00:16:3e:00:00:01"],
            ("POST", "/v1/domains/busybox/vifs", {"bridge": "xenbr0", "mac": "00:16:3e:00:00:01"}),
        ),
        (["sysrq", "busybox", "s"], ("POST", "/v1/domains/busybox/sysrq", {"letter": "s"})),
        (["trigger", "busybox", "nmi"], ("POST", "/v1/domains/busybox/trigger", {"what": "nmi"})),
        (["dump-core", "busybox", "/tmp/c"], ("POST", "/v1/domains/busybox/dump", {"path": "/tmp/c"})),
        (
            ["cd-insert", "busybox", "hdc", "/i/a,b.iso"],
            ("POST", "/v1/domains/busybox/cd", {"vdev": "hdc", "target": "/i/a,b.iso", "cdrom": True}),
        ),
        (
            ["cd-insert", "busybox", "hdc", "volume=iso"],
            ("POST", "/v1/domains/busybox/cd", {"vdev": "hdc", "volume": "iso", "cdrom": True}),
        ),
        (["cd-eject", "busybox", "hdc"], ("POST", "/v1/domains/busybox/cd", {"vdev": "hdc", "disk": None})),
        (["network-attach", "busybox", "--no-filter"], ("POST", "/v1/domains/busybox/vifs", {"filtered": False})),
        (["network-detach", "busybox", "0"], ("DELETE", "/v1/domains/busybox/vifs/0", b"")),
        (
            ["volume", "create", "root", "1G"],
            ("POST", "/v1/volumes", {"name": "root", "size": 1 << 30, "backing": "", "node": ""}),
        ),
        (["volume", "resize", "root", "2G"], ("POST", "/v1/volumes/root/resize", {"size": 2 << 30})),
        (["volume", "delete", "root"], ("DELETE", "/v1/volumes/root", b"")),
        (["move", "cancel", "m1"], ("POST", "/v1/moves/m1/cancel", {})),
        (["node", "restart", "etcd"], ("POST", "/v1/etcd/restart", {"force": False})),
    ],
)
def test_order(daemon: StandIn, run: Run, words: list[str], order: tuple[str, str, object]) -> None:
    method, path, wanted = order
    from urllib.parse import unquote

    daemon.routes[f"{method} {unquote(path)}"] = {}
    told = run(*words)
    assert (told.code, told.err) == (0, "")
    [(seen_method, seen_path, body)] = daemon.orders()
    assert (seen_method, seen_path) == (method, path)
    if isinstance(wanted, dict) and isinstance(body, dict):
        inner = body.get("disk") or body.get("vif") or body
        assert {key: inner[key] for key in wanted} == wanted
    else:
        assert body == wanted


def test_defrag_tells_each_voters_file(daemon: StandIn, run: Run) -> None:
    daemon.routes["POST /v1/store/defragment"] = [{"name": "stor", "before": 4 << 20, "after": 1 << 20}]
    told = run("cluster", "defrag")
    assert [line.split() for line in told.out.splitlines()] == [
        ["Voter", "Before", "After"],
        ["stor", "4.0", "MiB", "1.0", "MiB"],
    ]


def test_create_sends_the_files_spec(daemon: StandIn, run: Run, folder: Path) -> None:
    (folder / "busybox").write_text(SEED)
    daemon.routes["POST /v1/domains"] = {"reading": {**BUSYBOX, "domid": 13}, "spec": {}}
    told = run("create", "-p", "busybox", "memory=256")
    assert (told.code, told.out) == (0, "Started domain busybox (id=13)\n")
    [(_, _, body)] = daemon.orders()
    assert (body["paused"], body["force"]) == (True, False)
    assert body["spec"]["memory"] == 256
    assert body["spec"]["disks"][0]["vdev"] == "xvda"


def test_create_in_xms_words(daemon: StandIn, run: Run, folder: Path) -> None:
    (folder / "busybox").write_text(SEED)
    daemon.routes["POST /v1/domains"] = {"reading": {**BUSYBOX, "domid": 13}, "spec": {}}
    told = run("create", "busybox", tool="xm")
    assert told.out == 'Using config file "./busybox".\nStarted domain busybox (id=13)\n'
    told = run("create", str(folder / "busybox"), tool="xl")
    assert (told.out, told.err.splitlines()[0]) == ("", f"Parsing config from {folder}/busybox")


def test_create_dry_asks_no_daemon(run: Run, folder: Path) -> None:
    (folder / "busybox").write_text(SEED)
    words = ("busybox", "uuid='6a0f4c1e-5f0e-4a58-9a44-3d1d2c3b4a59'")  # else one is made up each time
    one, two = run("create", "-n", *words), run("-N", "create", *words)
    assert json.loads(one.out)["c_info"]["name"] == "busybox"
    assert (two.code, two.out) == (0, one.out)
    assert len(json.loads(run("create", "-n", "busybox").out)["c_info"]["uuid"]) == 36


def test_create_refuses_a_bad_file_with_its_place(run: Run, folder: Path) -> None:
    (folder / "busybox").write_text('name = "busybox"\nkernal = "x"\n')
    told = run("create", "busybox")
    assert told.code == 1
    assert told.err.startswith("veery: busybox:2:1: ")
    assert "hint:" in told.err


def test_create_wants_one_file(run: Run) -> None:
    assert run("create").code == 2
    assert run("create", "one", "two").code == 2
    told = run("create", "none-such")
    assert (told.code, "none-such" in told.err) == (1, True)


def test_dry_runs_print_what_xl_prints(run: Run) -> None:
    told = run("-N", "block-attach", "0", "/dev/vg/guest-volume,,hda")
    assert told.code == 0
    assert told.out == (
        'disk: {\n    "pdev_path": "/dev/vg/guest-volume",\n    "vdev": "hda",\n    "format": "raw",\n'
        '    "readwrite": 1\n}\n\n'
    )
    assert run("-N", "block-attach", "0", "foo").code == 1
    assert run("-N", "block-attach", "0").code == 2
    assert run("-N", "network-attach", "0", "bridge=xenbr0").out.startswith("vif: {\n")
    told = run("-N", "destroy", "0")
    assert (told.code, "does not implement -N" in told.err) == (2, True)


def test_list_names_the_moves_that_cannot_be_settled(daemon: StandIn, run: Run) -> None:
    said = "move m1 of busybox is not settled: the store does not tell who owns busybox"
    daemon.routes["GET /v1/domains"] = {"node": "test1", "domains": [ZERO, BUSYBOX], "unsettled": [said]}
    told = run("list")
    assert (told.code, told.err) == (0, f"veery: {said}; next: veery doctor\n")
    daemon.routes["GET /v1/domains?cluster=1"] = {"nodes": {"test1": [ZERO]}, "silent": [], "unsettled": [said]}
    assert run("list", "-A").err == f"veery: {said}; next: veery doctor\n"


def test_shutdown_waits_until_it_is_gone(daemon: StandIn, run: Run) -> None:
    rounds = iter([[ZERO, BUSYBOX], [ZERO, BUSYBOX], [ZERO]])
    daemon.routes["GET /v1/domains"] = lambda _: {"node": "test1", "domains": next(rounds)}
    daemon.routes[f"POST /v1/domains/{BUSYBOX['uuid']}/shutdown"] = {}
    told = run("shutdown", "-w", "-a")
    assert (told.code, told.err) == (0, "Shutting down domain busybox\n")
    assert next(rounds, None) is None


def test_shutdown_of_all_asks_every_domain_and_tells_who_refused(daemon: StandIn, run: Run) -> None:
    other = {**BUSYBOX, "name": "wren", "uuid": "8e0eb2c5-6d5c-4a0b-9a0a-333333333333", "domid": 5}
    daemon.routes["GET /v1/domains"] = {"node": "test1", "domains": [ZERO, BUSYBOX, other]}
    daemon.routes[f"POST /v1/domains/{other['uuid']}/shutdown"] = {}
    told = run("shutdown", "-a")  # the first has no such route: it refuses
    assert told.code == 1
    assert "Shutting down domain wren\n" in told.err
    assert "Shutting down domain busybox" not in told.err
    assert "shutdown was refused for busybox; all other domains were asked" in told.err


def test_shutdown_gives_up_waiting(daemon: StandIn, run: Run) -> None:
    daemon.routes[f"POST /v1/domains/{BUSYBOX['uuid']}/shutdown"] = {}
    told = run("shutdown", "-w", "--timeout", "0.1", "busybox")
    assert (told.code, "busybox still runs after 0.1 s" in told.err) == (1, True)
    assert run("shutdown").code == 2


def test_reboot_waits_for_another_run(daemon: StandIn, run: Run) -> None:
    rounds = iter([[ZERO, BUSYBOX], [ZERO, {**BUSYBOX, "started": BUSYBOX["started"] + 60}]])
    daemon.routes["GET /v1/domains"] = lambda _: {"node": "test1", "domains": next(rounds)}
    daemon.routes[f"POST /v1/domains/{BUSYBOX['uuid']}/reboot"] = {}
    assert run("reboot", "-w", "busybox").code == 0
    assert next(rounds, None) is None


def test_restore_and_what_is_refused(daemon: StandIn, run: Run) -> None:
    daemon.routes["POST /v1/restore"] = {"reading": BUSYBOX}
    told = run("restore", "/var/tmp/b")
    assert (told.code, told.out) == (0, "Restored domain busybox (id=3)\n")
    assert daemon.orders()[0][2] == {"path": "/var/tmp/b", "paused": False, "force": False}
    for words in (
        ["restore", "config", "/var/tmp/b"],
        ["save", "-D", "busybox", "/b"],
        ["migrate", "-s", "ssh", "busybox", "test2"],
        ["migrate", "-p", "busybox", "test2"],
        ["destroy", "-f", "0"],
        ["list", "-A", "-c"],
        ["dmesg", "-c"],
        ["create", "-V", "x"],
        ["console", "-t", "vuart", "busybox"],
    ):
        told = run(*words)
        assert told.code == 1, words
        assert told.err.startswith("veery: "), words
        assert "\n  hint: " in told.err, words
    assert len(daemon.orders()) == 1


def test_detach_by_number(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/domains/busybox/disks"] = daemon.routes["GET /v1/domains/3/disks"]
    daemon.routes["DELETE /v1/domains/busybox/disks/xvda"] = {}
    assert run("block-detach", "busybox", "51712").code == 0
    assert run("block-detach", "busybox", "51728").code == 1


def test_volumes(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/volumes"] = [{"volume": VOLUME, "used_by": ["busybox on test1"]}]
    assert run("volume", "list").out == (
        "Name  Size     Node  Backing  Ready  Used by\nroot  1.0 GiB  stor  file     yes    busybox on test1\n"
    )
    daemon.routes["GET /v1/volumes/root"] = daemon.routes["GET /v1/volumes"][0]
    assert "target  : iqn.2026-01.example:root (tid 1, LUN 1)\n" in run("volume", "show", "root").out
    told = run("volume", "create", "x", "1Q")
    assert (told.code, told.err.splitlines()[0]) == (1, "veery: not a size: '1Q'")


def test_nodes(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/nodes"] = [{"node": NODE, "alive": True}]
    assert run("node", "list").out.splitlines()[1].split() == [
        "test1", "172.16.31.1", "hypervisor,voter", "qemu", "yes", "0.1.0", "-", "present", "-",
    ]  # fmt: skip
    assert "relocation: 172.16.31.1:8002\n" in run("node", "show").out
    told = run("node", "show", "test9")
    assert (told.code, told.err.splitlines()[0]) == (1, "veery: no node test9")
    daemon.routes["POST /v1/tokens"] = {"token": "t0ken"}
    assert run("node", "token").out == "t0ken@172.16.31.1\n"


def test_networks_and_targets(daemon: StandIn, run: Run) -> None:
    bridge = {"name": "xenbr0", "mac": "02:00:00:00:00:01", "mtu": 1500, "up": True, "addresses": ["172.16.31.1/16"]}
    port = {"name": "vif3.0", "mac": "fe:ff:ff:ff:ff:ff", "up": True, "mtu": 1500}
    daemon.routes["GET /v1/networks"] = {"node": "test1", "bridges": [{**bridge, "ports": [port]}]}
    assert run("network", "list").out.splitlines()[1].split() == [
        "xenbr0", "02:00:00:00:00:01", "1500", "up", "172.16.31.1/16", "vif3.0",
    ]  # fmt: skip
    lun = {"lun": 1, "path": "/pool/root", "size_mb": 1074}
    target = {
        "tid": 1,
        "iqn": "iqn.2026-01.example:root",
        "state": "ready",
        "luns": [{"lun": 0, "path": "", "size_mb": 0}, lun],
        "sessions": [{"initiator": "iqn.2026-01.example:test1"}],
        "accounts": ["test1"],
        "acl": ["iqn.2026-01.example:test1"],
    }
    daemon.routes["GET /v1/targets"] = {"stor": [target]}
    cells = [cell.strip() for cell in run("target", "list").out.splitlines()[1].split("  ") if cell]
    assert cells == [
        "stor", "1", "iqn.2026-01.example:root", "ready", "1: /pool/root 1074 MB", "test1", "test1", "test1",
    ]  # fmt: skip


def test_image_build_makes_the_volume(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/volumes"] = []
    daemon.routes["POST /v1/volumes"] = VOLUME
    daemon.routes["POST /v1/volumes/root/image"] = Lines(
        [
            {"event": "progress", "step": "making the filesystem", "fraction": 0.4},
            {"event": "progress", "step": "writing", "fraction": 0.8},
            {"event": "done", "result": VOLUME},
        ]
    )
    told = run("image", "build", "busybox", "--volume", "root")
    assert (told.code, told.out) == (0, "Built busybox into volume root\n")
    assert "image busybox  making the filesystem   40 %" in told.err
    assert [order[1] for order in daemon.orders()] == ["/v1/volumes", "/v1/volumes/root/image"]


def test_image_build_that_fails(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/volumes"] = [{"volume": VOLUME, "used_by": []}]
    error = {"kind": "failed", "message": "no space on stor", "hint": "make room"}
    daemon.routes["POST /v1/volumes/root/image"] = Lines([{"event": "error", "error": error}])
    told = run("image", "build", "busybox", "--volume", "root", "-q")
    assert (told.code, told.err) == (1, "veery: no space on stor\n  hint: make room\n")


def test_version(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/nodes"] = [{"node": NODE, "alive": True}]
    assert run("version", "-a").out.splitlines()[1] == "veeryd 0.1.0 on test1"
    assert run("--version").out.startswith("veery 0.")


def test_dmesg(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/log"] = {"text": f"{HOST['host']} says"}
    assert run("dmesg").out == "test1 says\n"


def test_a_refusal_is_told_in_two_lines(daemon: StandIn, run: Run) -> None:
    daemon.routes["POST /v1/domains/wren/destroy"] = refused(
        "no domain wren on test1", "veery list shows the domains of this node"
    )
    told = run("destroy", "wren")
    assert (told.code, told.err) == (
        1,
        "veery: no domain wren on test1\n  hint: veery list shows the domains of this node\n",
    )


def test_list_says_where_a_domain_is_if_the_daemon_knows(daemon: StandIn, run: Run) -> None:
    daemon.routes["GET /v1/domains/wren"] = refused("no domain wren on test1", "it runs on test2")
    told = run("list", "wren")
    assert (told.code, told.err) == (1, "veery: no domain wren on test1\n  hint: it runs on test2\n")


def test_force_is_sent_with_a_start(daemon: StandIn, run: Run, folder: Path) -> None:
    (folder / "busybox").write_text(SEED)
    daemon.routes["POST /v1/domains"] = {"reading": {**BUSYBOX, "domid": 13}, "spec": {}}
    assert run("create", "--force", "busybox").code == 0
    assert daemon.orders()[0][2]["force"] is True
