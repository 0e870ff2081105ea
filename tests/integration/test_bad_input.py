"""What cannot be done: one line and a hint, the right exit status, nothing changed and nothing left.

Wrong words and wrong files first; then the surroundings: tgtd, etcd, ports, certificates, disks."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from node_parts import Node, Workshop, aside, until, write

from hint_words import commands, looks, unusable
from veery.cluster import join
from veery.cluster.keys import KINDS
from veery.host import tls
from veery.host.process import Process
from veery.host.run import Result
from veery.lab import faults
from veery.lab.services import Lab

VEERYD = Path(sys.executable).with_name("veeryd")
VEERY = VEERYD.with_name("veery")
DEADLINE = 30.0  # seconds in which every order must have come to its end


@pytest.fixture(scope="module")
def shop(lab: Lab, near: Node, workshop: Workshop) -> Iterator[Workshop]:
    """The workshop; there are a volume `spare` and a domain `idle`, which is paused and has neither disk nor net."""
    aside(workshop.clear("spare", "idle"))
    aside(near.veery("volume", "create", "spare", "8M"))
    aside(near.veery("create", "-p", workshop.file("idle", disk=None, root=None, vif=None, memory=64)))
    yield workshop
    aside(workshop.clear("spare", "idle"))


# ---- words and files

FILES: dict[str, tuple[dict[str, object], str]] = {
    "a kernel that is not there": ({"kernel": "/nowhere/vmlinuz"}, "kernel /nowhere/vmlinuz does not exist"),
    "a ramdisk that is not there": ({"ramdisk": "/nowhere/initramfs"}, "ramdisk /nowhere/initramfs does not exist"),
    "more memory than there is": ({"memory": 999999}, "not enough memory"),
    "memory that is no number": ({"memory": "lots"}, "memory must be a number"),
    "more processors than QEMU has": ({"vcpus": 300}, "at most 255 processors"),
    "a volume that is not there": ({"disk": ["volume=nothing,xvda,w"]}, "no volume nothing"),
    "a volume twice": ({"disk": ["volume=spare,xvda,w", "volume=spare,xvdb,w"]}, "volume spare twice"),
    "a disk twice": ({"disk": ["volume=spare,xvda,w", "volume=spare,xvda,r"]}, "xvda"),
    "a file that is not there": ({"disk": ["/nowhere/disk,raw,xvda,w"]}, "/nowhere/disk: No such file"),
    "a folder for a disk": ({"disk": ["/tmp,raw,xvda,w"]}, "neither a file nor a block device"),
    "a bridge that is not there": ({"vif": ["bridge=xenbr7"]}, "no bridge xenbr7"),
    "a MAC that is none": ({"vif": ["mac=00:16:3e:zz:00:01"]}, "00:16:3e:zz:00:01"),
    "a name that is taken": ({"name": "idle"}, "idle is already here"),
    "a number for a name": ({"name": "17"}, "17 reads like a domid"),
    "a name with a blank": ({"name": "a b"}, "not a valid domain name"),
    "an answer that is none": ({"on_crash": "explode"}, "not an action for on_crash"),
    "a UUID that is none": ({"uuid": "nonsense"}, "is not a UUID"),
    "an unknown key": ({"memroy": 128}, "unknown key 'memroy'"),
}


async def test_domain_files(shop: Workshop, near: Node) -> None:
    before = await near.traces()
    for what, (keys, message) in FILES.items():
        path = shop.file("wrong", volume="spare", **{"memory": 64, **keys})
        said = await near.refused("create", path)
        assert message in said, what
        await follow(near, said)
    text = shop.file("wrong", volume="spare", memory=64).read_text()
    line = text.count("\n") + 1
    for wrong in ("disk = ['volume=spare,xvda,w'", "vif = [", "memory = 1 +", "name = open('/etc/passwd').read()"):
        path.write_text(f"{text}{wrong}\n")
        said = await near.refused("create", path)
        assert f"{path}:{line}:" in said or f"{path}:{line + 1}:" in said
    assert await near.traces() == before
    assert (await near.json("volume", "show", "--json", "spare"))["used_by"] == []


async def test_what_is_another_domains(shop: Workshop, near: Node, far: Node) -> None:
    path = shop.file("wrong", volume="spare", memory=64)
    await far.veery("create", "-p", path)
    (taken,) = await far.json("list", "-l", "wrong")
    before, there = await near.traces(), await far.traces()
    uuid, mac = taken["config"]["c_info"]["uuid"], taken["config"]["nics"][0]["mac"]
    other = shop.file("other", disk=None, root=None, memory=64, uuid=uuid)
    assert f"UUID {uuid} belongs to domain wrong" in await near.refused("create", other)
    other = shop.file("other", disk=None, root=None, memory=64, vif=[f"mac={mac},bridge=xenbr0"])
    assert f"MAC {mac} is in use" in await near.refused("create", other)
    assert "the name idle is taken" in await far.refused("rename", "wrong", "idle")
    assert (await near.traces(), await far.traces()) == (before, there)
    await far.veery("destroy", "wrong")
    assert "the name wrong is taken" in await near.refused("rename", "idle", "wrong")  # its record has it still
    await far.veery("delete", "wrong")


async def test_starts_at_once(shop: Workshop, near: Node, far: Node) -> None:
    """The same domain on both nodes, then two domains with one volume: never do both run; who lost leaves nothing."""
    before, there = await near.traces(), await far.traces()
    one, other = (shop.file(name, volume="spare", memory=64) for name in ("one", "other"))
    for left, right in ((one, one), (one, other), (other, one)):
        results = await asyncio.gather(near.result("create", "-p", left), far.result("create", "-p", right))
        running = [*await near.domains(), *await far.domains()]
        running.remove("idle")
        assert len(running) <= 1
        assert [result.code for result in results].count(0) == len(running)
        for result in results:
            assert result.code == 0 or "on test" in result.err or "here" in result.err
        for node, result, path in zip((near, far), results, (left, right), strict=True):
            if result.code == 0:
                await node.veery("destroy", path.name)
        for path in {left, right}:
            await near.result("delete", path.name)
        assert (await near.traces(), await far.traces()) == (before, there)


async def follow(node: Node, said: str) -> list[list[str]]:
    """Give the commands that a hint names: those that only look must work, the others must be well formed."""
    found = list(commands(said.partition("  hint: ")[2]))
    for words in found:
        assert not unusable(words), said
        if looks(words):
            result = await node.result(*words)
            assert result.code == 0, (words, result.err)
    return found


async def test_orders(shop: Workshop, near: Node) -> None:
    before = await near.traces()
    orders = {
        "destroy nothing": (1, "no domain nothing on test1"),
        "pause 4711": (1, "no domain 4711 on test1"),
        "delete nothing": (1, "no domain nothing"),
        "delete idle": (1, "idle runs on test1"),
        "migrate idle nowhere": (1, "no node nowhere"),
        "migrate idle test1": (1, "runs on test1 already"),
        "migrate idle stor": (1, "stor runs no domains"),
        "migrate nothing test2": (1, "no domain nothing"),
        "--node nowhere list": (1, "nowhere"),
        "--node stor create wrong": (1, "wrong"),
        "volume create spare 1M": (1, "spare"),
        "volume create a/b 1M": (1, "a/b"),
        "volume create x lots": (1, "lots"),
        "volume create x 99999T": (1, "do not fit"),
        "volume create x 8M --on test1": (1, "is not a storage node"),
        "volume create x 8M --backing lvm": (1, "no lvm storage"),
        "volume resize spare 1M": (1, "cannot shrink"),
        "volume delete nothing": (1, "no volume nothing"),
        "image build busybox --volume spare": (1, "too small"),
        "image build windows --volume spare": (2, "windows"),
        "restore /etc/passwd": (1, "is not a save file"),
        "mem-set idle lots": (1, "lots"),
        "mem-set idle 999": (1, "may have 1 to 64 MiB"),
        "mem-max idle 128": (1, "cannot change how much memory"),
        "mem-max idle 1": (1, "idle has 64 MiB"),
        "vcpu-set idle 2": (1, "can have 1 to 1 processors"),
        "vcpu-pin idle all 0": (1, "does not pin processors"),
        "sched-credit -d idle -w 512": (1, "does not pin processors or set weights"),
        "vcpu-pin idle all 3-1": (1, "ends before it begins"),
        "debug-keys q": (1, "veery has no debug-keys"),
        "block-detach idle xvdb": (1, "no disk xvdb"),
        "block-detach idle 51728": (1, "no disk 51728"),
        "network-detach idle 0": (1, "no interface 0"),
        "cd-eject idle hdc": (1, "no CD-ROM drive hdc"),
        "block-attach idle volume=spare,vdev=xvda,script=x": (1, "script"),
        "network-attach idle bridge=xenbr7": (1, "no bridge xenbr7"),
        "shutdown": (2, "give a domain"),
        "console nothing": (1, "no domain nothing"),
        "save idle /nowhere/file": (1, "/nowhere"),
        "rename idle 17": (1, "17 reads like a domid"),
        "list -A -c": (1, "show one node only"),
        "vcpu-list 0": (1, "it has no virtual processors"),
        "destroy Domain-0": (1, "Domain-0 is this machine itself"),
        "migrate Domain-0 test2": (1, "cannot be moved"),
        "migrate idle test2.example.org": (1, "no node test2.example.org"),
        "frobnicate": (2, "frobnicate"),
        "list --nonsense": (2, "--nonsense"),
        "create": (2, "one domain file"),
    }
    followed: list[list[str]] = []
    for words, (code, message) in orders.items():
        said = await near.refused(*words.split(), code=code)
        assert message in said, words
        followed += await follow(near, said)
    assert followed
    assert await near.traces() == before
    assert [row["volume"]["name"] for row in await near.json("volume", "list", "--json")] == ["spare"]


# ---- the surroundings


async def timed(node: Node, *words: str | Path, beyond: str = "") -> tuple[Result, float]:
    """An order (to node `beyond`, where that is given), and the seconds that it took."""
    begun = time.monotonic()
    within = 4 * DEADLINE
    result = await (node.beyond(beyond, *words, within=within) if beyond else node.result(*words, within=within))
    return result, time.monotonic() - begun


def fails(result: Result, *messages: str) -> None:
    """It ended with exit status 1, one line that has one of `messages`, and a hint."""
    assert result.code == 1, (result.out, result.err)
    lines = result.err.splitlines()
    assert len(lines) == 2, result.err
    assert lines[1].startswith("  hint: ")
    assert any(message in lines[0] for message in messages), result.err


async def test_tgtd_hangs(shop: Workshop, near: Node, lab: Lab) -> None:
    before = await near.traces()
    path = shop.file("wrong", volume="spare", memory=64)
    (tgtd,) = faults.find(lab, "stor", "tgtd")
    tgtd.process.send(signal.SIGSTOP)
    try:
        done = await asyncio.gather(
            timed(near, "create", path),
            timed(near, "volume", "create", "more", "8M"),
            timed(near, "volume", "delete", "spare"),
            timed(near, "target", "list"),
        )
        for result, took in done:
            fails(result, "tgtd", "portal", "172.16.31.3")
            assert took < 2 * DEADLINE
        assert (await near.result("list")).code == 0
        assert "spare" in (await near.result("volume", "list")).out
    finally:
        tgtd.process.send(signal.SIGCONT)
    assert await near.traces() == before
    (row,) = await near.json("volume", "list", "--json")
    assert (row["volume"]["size"], row["volume"]["ready"]) == (8 << 20, True)


async def test_tgtd_is_gone_and_its_keeper_frozen(shop: Workshop, near: Node, lab: Lab) -> None:
    before = await near.traces()
    path = shop.file("wrong", volume="spare", memory=64)
    (keeper,) = faults.find(lab, "stor", "veeryd")
    keeper.process.send(signal.SIGSTOP)
    try:
        await faults.kill(lab, "stor", "tgtd")
        done = await asyncio.gather(
            timed(near, "create", path),
            timed(near, "volume", "create", "more", "8M"),
            timed(near, "volume", "delete", "spare"),
            timed(near, "list", beyond="stor"),
        )
        for result, took in done:
            fails(result, "172.16.31.3:3260", "stor did not answer", "no connection to stor")
            assert took < DEADLINE
        assert "idle" in await near.veery("list")
    finally:
        keeper.process.send(signal.SIGCONT)
    assert await near.traces() == before

    async def served() -> bool:
        return (await near.result("target", "list")).code == 0 and bool(await near.targets())

    await until(served, "tgtd is back with its target")


async def test_etcd_without_a_quorum(shop: Workshop, near: Node, lab: Lab) -> None:
    """Reading goes on, orders end in time with a clear line, nothing has changed when the quorum is back."""
    before = await near.traces()
    path = shop.file("wrong", volume="spare", memory=64)
    frozen = [faults.find(lab, node, "etcd")[0] for node in ("stor", "test2")]
    for member in frozen:
        member.process.send(signal.SIGSTOP)
    try:
        orders: tuple[tuple[str | Path, ...], ...] = (
            ("create", path),
            ("rename", "idle", "busy"),
            ("unpause", "idle"),
            ("volume", "create", "more", "8M"),
            ("volume", "delete", "spare"),
            ("node", "list"),
            ("migrate", "idle", "test2"),
            ("delete", "nothing"),
        )
        for result, took in await asyncio.gather(*(timed(near, *words) for words in orders)):
            fails(result, "etcd", "store")
            assert took < DEADLINE
        for words in (("list",), ("list", "-l"), ("info",), ("vcpu-list",), ("network", "list")):
            result, took = await timed(near, *words)
            assert (result.code, result.err) == (0, "")
            assert took < DEADLINE
    finally:
        for member in frozen:
            member.process.send(signal.SIGCONT)
    await lab.healthy()
    assert await near.traces() == before
    assert [row["volume"]["name"] for row in await near.json("volume", "list", "--json")] == ["spare"]
    await near.veery("rename", "idle", "busy")
    await near.veery("rename", "busy", "idle")


async def test_etcd_comes_back_after_a_destroy(shop: Workshop, near: Node, lab: Lab) -> None:
    """Ending a domain needs no permission: it ends at once, and its name is given back when the store is back."""
    await near.veery("create", "-p", shop.file("wrong", volume="spare", memory=64))
    frozen = [faults.find(lab, node, "etcd")[0] for node in ("stor", "test2")]
    for member in frozen:
        member.process.send(signal.SIGSTOP)
    try:
        result, took = await timed(near, "destroy", "wrong")
        assert (result.code, result.err) == (0, "")
        assert took < DEADLINE
        assert "wrong" not in await near.veery("list")
        assert len(near.qemus()) == 1
    finally:
        for member in frozen:
            member.process.send(signal.SIGCONT)
    await lab.healthy()

    async def given_back() -> bool:
        return (await near.store())[0] == {"idle": "test1"}

    await until(given_back, "its name given back")
    assert await near.taps() == set()
    await near.veery("delete", "wrong")


async def test_a_second_daemon(shop: Workshop, near: Node, lab: Lab, tmp_path: Path) -> None:
    """It finds the run folder locked, or the ports taken, and touches nothing of the first one's."""
    await near.veery("create", "-p", shop.file("wrong", volume="spare", memory=64))
    before = await near.traces()
    home = lab.plan.home("test1")
    second = tmp_path / "second.toml"
    text = lab.plan.settings("test1").read_text()
    cases = {
        text: "another veeryd uses",
        text.replace(f'run = "{home}/run"', f'run = "{tmp_path}/run"'): "8002: ",
        text.replace(f'run = "{home}/run"', f'run = "{tmp_path}/run"').replace("8002", "8012"): "8001: ",
        text.replace(f'run = "{home}/run"', 'run = "/proc/nowhere"'): "/proc/nowhere",
        text.replace("port = 8002", 'port = "8002"'): "port",
        text + "\nhosts_alow = ''\n": f"{second}:",
        text.replace(f'state = "{home}/lib"', f'state = "{tmp_path}"'): "belongs to no cluster",
    }
    for settings, message in cases.items():
        second.write_text(settings)
        result = await lab.run("test1", [VEERYD, "--settings", second], check=False, deadline=DEADLINE)
        lines = [line for line in result.err.splitlines() if not line.startswith("20")]  # the log's lines have a date
        assert result.code == 1, result.err
        assert len(lines) == 2, result.err
        assert lines[0].startswith("veeryd: ")
        assert message in lines[0]
        assert lines[1].startswith("  hint: ")
        assert await near.traces() == before
    await near.veery("destroy", "wrong")
    await near.veery("delete", "wrong")


@asynccontextmanager
async def another_daemon(lab: Lab, node: str, settings: Path) -> AsyncIterator[None]:
    """veeryd of `node` replaced for the while by one with other settings."""
    await faults.kill(lab, node, "veeryd")
    argv = lab.enter(node, [VEERYD, "--settings", settings])
    process = Process.spawn(argv, log_file=lab.log(node, "other"), env=lab.environ(node))
    try:
        yield
    finally:
        await process.stop(grace=0)
        await lab.start(node)
        await lab.healthy()


async def listens(lab: Lab, node: str) -> None:
    """Wait until something listens at the API port of `node`."""

    async def port() -> bool:
        return ":8001" in (await lab.run(node, ["ss", "-Htln"])).out

    await until(port, "a listener at 8001")


async def test_an_address_that_is_not_in_hosts_allow(
    shop: Workshop, near: Node, far: Node, lab: Lab, tmp_path: Path
) -> None:
    before, there = await near.traces(), await far.traces()
    settings = tmp_path / "veery.toml"
    text = lab.plan.settings("test2").read_text()
    settings.write_text(text.replace('hosts_allow = ""', r"hosts_allow = '10\..* ^localhost$'"))
    assert settings.read_text() != text
    async with another_daemon(lab, "test2", settings):
        await listens(lab, "test2")
        result, took = await timed(near, "migrate", "--live", "idle", "test2")
        assert result.code == 1
        last = result.err.splitlines()[-2:]
        assert "172.16.31.1 is not in relocation.hosts_allow of test2" in last[0]
        assert "idle runs on test1" in last[0]
        assert last[1].startswith("  hint: ")
        assert took < DEADLINE
    assert (await near.traces(), await far.traces()) == (before, there)


async def test_a_certificate_of_another_ca(shop: Workshop, near: Node, far: Node, lab: Lab, tmp_path: Path) -> None:
    """A node that has test2's name and place, but not its certificate."""
    before, there = await near.traces(), await far.traces()
    home = lab.plan.home("test2")
    state = tmp_path / "lib"
    shutil.copytree(home / "lib", state, ignore=shutil.ignore_patterns("etcd"))
    identity = json.loads((state / "identity.json").read_text())
    identity["etcd"] = None
    (state / "identity.json").write_text(json.dumps(identity))
    authority = tls.make_ca("stranger", epoch=time.time())
    request = tls.make_request("test2")
    cert = tls.sign(authority, request.cert, name="test2", addresses=["172.16.31.2"], epoch=time.time())
    tls.write_folder(state / "tls", ca=authority.cert, node=tls.KeyPair(cert, request.key))
    settings = tmp_path / "veery.toml"
    settings.write_text(lab.plan.settings("test2").read_text().replace(f'"{home}/lib"', f'"{state}"'))
    async with another_daemon(lab, "test2", settings):
        await listens(lab, "test2")
        result, took = await timed(near, "list", beyond="test2")
        fails(result, "wrong certificate")
        assert took < DEADLINE
        result, took = await timed(near, "migrate", "--live", "idle", "test2")
        assert result.code == 1
        assert "certificate" in result.err
        assert "idle runs on test1" in result.err
        assert took < DEADLINE
        # nor does the cluster believe the stranger
        result = await lab.veery("test2", "node", "list", check=False, deadline=DEADLINE)
        fails(result, "etcd", "store", "certificate")
    assert (await near.traces(), await far.traces()) == (before, there)


async def test_strangers_at_the_api(lab: Lab) -> None:
    """Without a certificate of the cluster only two doors are open, and behind them a token is asked for."""
    script = """
import json, ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
doors = ("GET", "/v1/domains"), ("POST", "/v1/domains/idle/destroy"), ("GET", "/v1/ca"), ("POST", "/v1/join")
for method, path in doors:
    data = b'{}' if method == "POST" else None
    request = urllib.request.Request(f"https://172.16.31.1:8001{path}", method=method, data=data)
    try:
        print(urllib.request.urlopen(request, context=context, timeout=20).status, path)
    except urllib.error.HTTPError as error:
        print(error.code, path, json.loads(error.read())["error"]["message"])
"""
    result = await lab.run("client", [sys.executable, "-c", script], deadline=DEADLINE)
    rows = result.out.splitlines()
    assert rows[0] == "403 /v1/domains this node does not know you"
    assert rows[1] == "403 /v1/domains/idle/destroy this node does not know you"
    assert rows[2] == "200 /v1/ca"
    assert rows[3].startswith("400 /v1/join")


@pytest.fixture
def small_pool(shop: Workshop, lab: Lab) -> Iterator[Path]:
    """The pool of the storage node is a disk with 32 MiB."""
    pool = lab.plan.home("stor") / "lib/volumes"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", pool], check=True)
    try:
        yield pool
    finally:
        subprocess.run(["umount", "--lazy", pool], check=True)


async def test_a_full_disk(small_pool: Path, near: Node, tmp_path: Path) -> None:
    assert "do not fit" in await near.refused("volume", "create", "large", "33M")
    assert "do not fit" in await near.refused("image", "build", "busybox", "--volume", "large", "--size", "64M", "-q")
    image = tmp_path / "image"
    image.write_bytes(bytes(range(1, 256)) * (24 << 12))  # 24 MiB without a hole
    for name in ("left", "right"):
        await near.veery("volume", "create", name, "24M")  # sparse: together they promise too much
    try:
        await near.veery("volume", "import", "-q", "left", image)
        said = await near.refused("volume", "import", "-q", "right", image)
        assert "No space left on device" in said
        assert "volume delete right" in said or "import it again" in said
        assert "ebuild" in said or "space" in said
        rows = {row["volume"]["name"]: row["volume"]["ready"] for row in await near.json("volume", "list", "--json")}
        assert rows == {"left": True, "right": False, "spare": True}
        assert "right is not ready" in await near.refused("volume", "resize", "right", "25M")
        assert (small_pool / "left.img").read_bytes()[: image.stat().st_size] == image.read_bytes()
        await near.veery("volume", "delete", "left")
        await near.veery("volume", "import", "-q", "right", image)  # now there is room
    finally:
        for name in ("left", "right"):
            await near.result("volume", "delete", name)
    assert list(small_pool.iterdir()) == []


# ---- the cluster


@pytest.mark.slow  # until tried more often
async def test_orders_about_the_cluster_that_cannot_be(shop: Workshop, near: Node) -> None:
    before = await near.traces()
    orders: dict[str, tuple[int, str]] = {
        "ha set nothing restart": (1, "no domain 'nothing'"),
        "ha set idle sometimes": (2, "sometimes"),
        "ha set idle restart --priority many": (2, "many"),
        "ha set idle restart --group a/b": (1, "a/b"),
        "ha show nothing": (1, "nothing"),
        "group set g": (2, "give --apart"),
        "group set g --nodes moon": (1, "no node 'moon'"),
        "group set g --nodes stor": (1, "stor runs no domains"),
        "group set a/b --strict": (1, "a/b"),
        "group set g --apart --together": (2, "--together"),
        "group delete g": (1, "no rule for group 'g'"),
        "why nothing": (1, "no node and no domain 'nothing'"),
        "node show nothing": (1, "nothing"),
        "node drain nothing": (1, "no node 'nothing'"),
        "node drain nothing --plan": (1, "no node 'nothing'"),
        "node resume nothing": (1, "no node 'nothing'"),
        "node resume test1": (1, "test1 is not drained"),
        "node leave nothing": (1, "no node 'nothing'"),
        "node leave test1": (1, "test1 runs idle"),
        "node forget test2": (1, "test2 is present"),
        "fence show test1": (1, "test1 is not fenced"),
        "fence confirm test1 --yes": (1, "test1 is alive"),
        "fence test nothing": (1, "nothing"),
        "doctor nothing": (1, "no node 'nothing'"),
        "arm": (1, "is armed"),
    }
    for words, (code, message) in orders.items():
        said = await near.refused(*words.split(), code=code)
        assert message in said, words
        await follow(near, said)
    assert await near.json("group", "list", "--json") == []
    assert await near.json("ha", "list", "--json") == []
    assert await near.traces() == before


@pytest.mark.slow  # until tried more often
async def test_a_drain_of_the_last_node(shop: Workshop, near: Node, lab: Lab) -> None:
    before = await near.traces()
    await lab.veery("test1", "node", "drain", "test2")
    try:
        said = await near.refused("node", "drain", "test1")
        assert "no other node may receive domains: test1 is the last" in said
        assert "test2 is drained" in await near.refused("--node", "test2", "create", shop.file("other", disk=None))
        rows = {row["name"]: row["intent"] for row in (await near.json("cluster", "status", "--json"))["nodes"]}
        assert rows == {"test1": "", "test2": "drain", "stor": ""}
    finally:
        await lab.veery("test1", "node", "resume", "test2")
    assert await near.traces() == before


@pytest.mark.slow  # until tried more often
async def test_who_may_not_join(shop: Workshop, near: Node, lab: Lab, tmp_path: Path) -> None:
    """A machine with somebody else's name or address, and tokens that are none; a wrong clock is in test_join_node."""
    settings = tmp_path / "veery.toml"
    settings.write_text(f'state = "{tmp_path}/lib"\nrun = "{tmp_path}/run"\n')
    token = (await near.veery("node", "token")).split()[-1].partition("@")[0]
    secret, mark = join.read_token(token)
    other = base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")
    unknown = token.replace(secret, "x" * len(secret))
    cases = {
        (token, "test2", "172.16.31.100"): "the name test2 is taken",
        (token, "test9", "172.16.31.2"): "172.16.31.2 is test2's address",
        (token, "a/b", "172.16.31.100"): "a/b",
        (unknown, "test9", "172.16.31.100"): "the token is unknown, used or too old",
        (f"veery.{secret}.{other}", "test9", "172.16.31.100"): "is not in the cluster that made the token",
        ("nonsense", "test9", "172.16.31.100"): "not a token",
    }
    before = await near.json("node", "list", "--json")
    for (word, name, address), message in cases.items():
        words = [VEERY, "--settings", settings, "join", f"{word}@172.16.31.3", "--name", name, "--address", address]
        result = await lab.run("client", [*words, "--roles", "hypervisor"], check=False, deadline=DEADLINE)
        fails(result, message)
    assert not (tmp_path / "lib/identity.json").exists()
    assert [row["node"] for row in await near.json("node", "list", "--json")] == [row["node"] for row in before]
    assert mark


@pytest.mark.slow  # until tried more often
async def test_records_that_cannot_be_read(shop: Workshop, near: Node, lab: Lab) -> None:
    """One under each kind of key: no daemon ends, the doctor names each, what they are not about goes on."""
    before = {node: faults.find(lab, node, "veeryd")[0].process.pid for node in ("test1", "test2", "stor")}
    odd = sorted(kind.key("odd") for kind in KINDS)
    path = shop.file("uses-spare", volume="spare", memory=64)
    try:
        for key in odd:
            await write(lab, key, b'{"written": "by a newer veery"')

        async def told() -> bool:
            rows = json.loads((await near.result("doctor", "--all", "--json")).out)
            found = {row["told"].partition(" ")[0] for row in rows if row["what"] == "records"}
            return found == set(odd)

        await until(told, "the doctor names every key")

        async def seen() -> bool:
            states = {row["name"]: row["state"] for row in (await near.json("cluster", "status", "--json"))["nodes"]}
            return states.pop("odd", "") == "unreadable" and set(states.values()) == {"present"}

        await until(seen, "the others are well")
        assert "owner/odd cannot be read" in await near.veery("why", "odd")
        assert "idle" in await near.veery("list")
        assert {row["node"]["name"] for row in await near.json("node", "list", "--json")} == set(before)
        assert "spare" in await near.veery("volume", "list")
        await near.veery("group", "list")
        await near.veery("ha", "list")
        assert "/odd cannot be read" in await near.refused("delete", "odd")
        # nobody can tell which volumes odd uses, since it may run: so no other is given one
        assert "domain/odd cannot be read" in await near.refused("create", path)
    finally:
        for key in odd:
            await write(lab, key, None)
    assert {node: faults.find(lab, node, "veeryd")[0].process.pid for node in before} == before
    await near.veery("volume", "create", "more", "8M")
    await near.veery("volume", "delete", "more")
