"""Volumes that move between two storage nodes, under a domain that writes numbered records to one, and under none.

What is read afterwards is the LUN that the volume's record names: every record that the guest saw written must be
there."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from node_parts import Node, Workshop, aside, until

from veery.host.run import Result
from veery.lab import faults
from veery.lab.guest import Guest
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.storage.image import build_initramfs

DOMAIN, DATA = "writer", "data"
SIZE = 64 << 20
# One record a block: its own number, then the number of the run that wrote it. `acked` is what was answered.
WRITER = (
    "(i=$(cat /root/acked 2>/dev/null || echo 0); while :; do i=$((i+1)); printf '%-511d\\n' $i | "
    "dd of=/dev/vdb bs=512 seek=$i conv=notrunc,fsync 2>/dev/null || break; echo $i >/tmp/new; mv /tmp/new /tmp/acked; "
    "done) & echo $! >/tmp/writer.pid"
)


@pytest.fixture(scope="module")
def two() -> Iterator[Lab]:
    """A lab with two storage nodes, one hypervisor to write, one to come and look."""
    made: Lab = aside(Lab.up(f"v{os.getpid()}", storages=2))
    try:
        yield made
    finally:
        aside(made.down())


@pytest.fixture(scope="module")
def shop(two: Lab, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where domain files and volumes are made."""
    folder = tmp_path_factory.mktemp("volume-moves")
    ramdisk = folder / "initramfs"
    aside(build_initramfs(ramdisk, kernel=guest.kernel, modules=guest.modules))
    made = Workshop(two, guest, ramdisk, folder)
    aside(made.volume(DOMAIN))
    return made


@pytest.fixture(scope="module")
def node(two: Lab) -> Node:
    """Where the domain runs."""
    return Node(two, "test1")


@pytest.fixture
def writer(two: Lab, shop: Workshop, node: Node) -> Path:
    """A domain on test1 that writes its records to a volume on stor, that of the test before where it can be; its
    file."""
    return aside(_writer(two, shop, node))


async def _writer(two: Lab, shop: Workshop, node: Node) -> Path:
    file = shop.file(DOMAIN, disk=[f"volume={DOMAIN},xvda,w", f"volume={DATA},xvdb,w"], vif=[])
    volumes = {row["volume"]["name"]: row["volume"]["node"] for row in await node.json("volume", "list", "--json")}
    if DOMAIN in await node.domains() and volumes.get(DATA) == "stor":
        await goes_on(two)
        return file
    await _clear(two, node)
    await node.veery("volume", "create", DATA, str(SIZE), "--on", "stor")
    await node.veery("create", file)
    async with Shell(two.client("test1").address, DOMAIN) as shell:
        await shell.ready()
        await shell.run(WRITER)

    async def some() -> bool:
        return await acked(two) > 5

    await until(some, "records are written")
    return file


async def _clear(two: Lab, node: Node) -> None:
    for name in ("test1", "test2"):
        await two.veery(name, "destroy", DOMAIN, check=False)
    await two.veery("test1", "volume", "delete", DATA, check=False)
    for storage in ("stor", "stor2"):
        for path in pool(two, storage).glob(f"{DATA}.img*"):
            path.unlink()


async def back(node: Node) -> None:
    """Where the next test wants the volume."""
    await node.veery("volume", "move", DATA, "stor", "-q", "--remove-source", within=180)


def pool(lab: Lab, storage: str) -> Path:
    return lab.plan.home(storage) / "lib" / "volumes"


async def acked(lab: Lab, where: str = "test1") -> int:
    async with Shell(lab.client(where).address, DOMAIN) as shell:
        said = (await shell.run("cat /tmp/acked")).split()
        return int(said[-1]) if said and said[-1].isdigit() else 0


async def goes_on(lab: Lab, where: str = "test1") -> None:
    before = await acked(lab, where)

    async def further() -> bool:
        return await acked(lab, where) > before

    await until(further, "records go on")


async def over(node: Node) -> None:
    """The domain whose QEMU died is gone, and its name given back."""
    await node.gone(DOMAIN)

    async def free() -> bool:
        return DOMAIN not in (await node.store())[0]

    await until(free, "its name is free")


async def volume(node: Node, name: str = DATA) -> dict[str, Any]:
    found: dict[str, Any] = (await node.json("volume", "show", name, "--json"))["volume"]
    return found


async def whole(node: Node, upto: int, storage: str) -> None:
    """The LUN that the record names is on `storage` and has the records 1 to `upto`."""
    told = await volume(node)
    assert told["node"] == storage
    assert upto
    with Path(told["path"]).open("rb") as file:
        for number in range(1, upto + 1):
            file.seek(512 * number)
            assert file.read(512) == b"%-511d\n" % number, f"record {number} of {upto}"


async def settled(lab: Lab) -> None:
    """No journal, key, mirror or half copy anywhere; exactly one target serves the volume."""

    async def still() -> bool:
        return not await left(lab)

    await until(still, f"nothing left: {await left(lab)}", within=90)


async def left(lab: Lab) -> str:
    for home in (lab.plan.home(one.name) for one in lab.plan.nodes):
        if found := [*(home / "lib" / "volume-moves").glob("*.json")]:
            return str(found)
    told = await Node(lab, "test1").json("target", "list", "--json")
    serving = [storage for storage, targets in told.items() if any(one["iqn"].endswith(f":{DATA}") for one in targets)]
    images = [storage for storage in ("stor", "stor2") if (pool(lab, storage) / f"{DATA}.img").exists()]
    return "" if len(serving) == 1 and serving == images else f"served by {serving}, bytes on {images}"


async def moving(lab: Lab, *words: str, via: str = "test1") -> asyncio.Task[Result]:
    """A slow move under way: bytes flow."""
    order = lab.veery(via, "volume", "move", DATA, "stor2", "--rate", "4M", *words, deadline=180, check=False)
    task = asyncio.create_task(order)
    copy = pool(lab, "stor2") / f"{DATA}.img"

    async def flows() -> bool:
        if task.done():
            raise AssertionError(task.result().err)
        return copy.exists() and copy.stat().st_blocks * 512 > 2 << 20

    await until(flows, "bytes flow")
    return task


async def move(node: Node, storage: str, *words: str) -> str:
    return await node.veery("volume", "move", DATA, storage, *words, within=180)


async def test_there_and_back_under_a_writer(writer: Path, two: Lab, node: Node) -> None:
    said = await move(node, "stor2")
    assert "its domain was paused for" in said
    assert "data.img.moved-to-stor2" in said
    await goes_on(two)
    await settled(two)
    assert (pool(two, "stor") / "data.img.moved-to-stor2").exists()

    # A second time, from the node where it is; nothing is kept.
    assert "kept" not in await move(node, "stor", "--remove-source")
    await goes_on(two)
    assert list(pool(two, "stor2").glob("data*")) == []

    # What the disk's device has now is like any other: it grows, and goes along when the domain moves.
    await node.veery("volume", "resize", DATA, str(SIZE + (16 << 20)))
    async with Shell(two.client("test1").address, DOMAIN) as shell:
        assert str((SIZE + (16 << 20)) // 512) in await shell.run("cat /sys/block/vdb/size")
    await node.veery("migrate", DOMAIN, "test2", within=180)
    await goes_on(two, "test2")
    await whole(node, await acked(two, "test2"), "stor")
    await settled(two)
    await two.veery("test2", "migrate", DOMAIN, "test1", deadline=180)


async def test_what_does_not_go_with_a_move_is_refused(writer: Path, two: Lab, node: Node) -> None:
    assert "is not a storage node" in await node.refused("volume", "move", DATA, "test2")
    assert "the volume is on stor already" in await node.refused("volume", "move", DATA, "stor")
    under_way = await moving(two)
    refused = "volume data is being moved from stor to stor2"
    told = await node.result("migrate", DOMAIN, "test2")
    assert told.code == 1
    assert refused in told.err
    assert "is being moved" in await node.refused("volume", "move", DATA, "stor2")
    assert "is being moved" in await node.refused("volume", "delete", DATA)
    assert "is having a disk moved" in await node.refused("block-detach", DOMAIN, "xvdb")
    other = writer.with_name("other")
    other.write_text(writer.read_text().replace(f'"{DOMAIN}"', '"other"').replace("xvdb,w", "xvdb,r"))
    assert refused in await node.refused("create", other)

    # Cancelled: everything is as it was, and a retry goes through.
    await node.veery("volume", "move", "--cancel", DATA)
    told = await under_way
    assert told.code == 1
    assert "cancelled: volume data is on stor as before" in told.err
    await settled(two)
    await goes_on(two)
    await whole(node, await acked(two), "stor")
    await move(node, "stor2", "-q")
    await goes_on(two)
    await whole(node, await acked(two), "stor2")
    await back(node)


@pytest.mark.slow
async def test_nothing_moves_a_volume_whose_domain_moves(writer: Path, two: Lab, node: Node) -> None:
    brake = two.plan.home("test1") / "run" / "hold" / "COPY"
    brake.parent.mkdir(exist_ok=True)
    brake.touch()
    try:
        under_way = asyncio.create_task(two.veery("test1", "migrate", DOMAIN, "test2", deadline=120))

        async def copying() -> bool:
            return any(
                row["phase"] == "COPY" for row in await node.json("moves", "--json") if row["state"] == "running"
            )

        await until(copying, "the domain moves")
        assert "which uses volume data, is being moved to test2" in await node.refused("volume", "move", DATA, "stor2")
    finally:
        brake.unlink()
    await under_way
    await settled(two)
    await move(node, "stor2", "-q")
    await goes_on(two, "test2")
    await whole(node, await acked(two, "test2"), "stor2")
    await two.veery("test2", "migrate", DOMAIN, "test1", deadline=180)
    await back(node)


@pytest.mark.slow
async def test_qemu_killed_while_bytes_flow(writer: Path, two: Lab, node: Node) -> None:
    under_way, upto = await moving(two), await acked(two)
    await faults.kill(two, "test1", "qemu-system")
    told = await under_way
    assert told.code == 1
    assert "volume data stays on stor" in told.err
    await over(node)
    await whole(node, upto, "stor")
    await settled(two)
    await node.veery("create", writer)
    await move(node, "stor2", "-q")
    await whole(node, upto, "stor2")


@pytest.mark.parametrize(
    "victim", ["stor", *(pytest.param(each, marks=pytest.mark.slow) for each in ("test1", "stor2"))]
)
async def test_a_daemon_killed_while_bytes_flow(writer: Path, two: Lab, node: Node, victim: str) -> None:
    """The storage nodes' tgtd and the domain live on. The target's daemon is not needed while a domain is copied."""
    under_way = await moving(two, via="test2")
    await faults.kill(two, victim, "veeryd")
    await two.start(victim)
    told = await under_way
    assert (told.code == 0) == (victim == "stor2"), told.err
    await settled(two)
    await goes_on(two)
    await whole(node, await acked(two), "stor2" if victim == "stor2" else "stor")
    if victim != "stor2":
        await move(node, "stor2", "-q")
        await goes_on(two)
        await whole(node, await acked(two), "stor2")
    await back(node)


@asynccontextmanager
async def held(lab: Lab, phase: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """The domain stands still before COMMIT or before FINISH of its volume's move."""
    brake = lab.plan.home("test1") / "run" / "hold" / phase
    brake.parent.mkdir(exist_ok=True)
    brake.touch()

    async def there() -> None:
        log = lab.log("test1")
        already = log.read_text().count(f"held in {phase} ")

        async def seen() -> bool:
            return log.read_text().count(f"held in {phase} ") > already

        await until(seen, f"held in {phase}")

    try:
        yield there
    finally:
        brake.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("phase", "victim"),
    [
        ("COMMIT", "veeryd"),
        pytest.param("FINISH", "veeryd", marks=pytest.mark.slow),
        pytest.param("COMMIT", "qemu-system", marks=pytest.mark.slow),
        pytest.param("FINISH", "qemu-system", marks=pytest.mark.slow),
    ],
)
async def test_killed_while_the_domain_stands(writer: Path, two: Lab, node: Node, phase: str, victim: str) -> None:
    """Both LUNs are the same then. It goes on, or starts anew, from the one that the record names: after COMMIT the
    target, before it the source where the daemon died (a dead QEMU does not keep its daemon from the COMMIT)."""
    upto = await acked(two)
    async with held(two, phase) as there:
        waiting = asyncio.create_task(there())
        await asyncio.sleep(0)
        order = two.veery("test2", "volume", "move", DATA, "stor2", deadline=180, check=False)
        under_way = asyncio.create_task(order)
        await waiting
        await faults.kill(two, "test1", victim)
    if victim == "veeryd":
        await two.start("test1")
    told = await under_way
    await settled(two)
    storage = (await volume(node))["node"]
    assert (told.code == 0) == (storage == "stor2"), told.err
    if victim == "veeryd" or phase == "FINISH":
        assert storage == ("stor" if phase == "COMMIT" else "stor2")
    if victim == "veeryd":
        await goes_on(two)
        upto = await acked(two)
    else:
        await over(node)
        await node.veery("create", writer)
    await whole(node, upto, storage)
    other = "stor2" if storage == "stor" else "stor"
    await move(node, other, "-q")
    await whole(node, upto, other)


@pytest.mark.slow
async def test_a_target_that_hangs_does_not_hold_the_domain_for_ever(writer: Path, two: Lab, node: Node) -> None:
    under_way = await moving(two)
    stopped = faults.find(two, "stor2", "tgtd")
    await faults.halt(stopped)
    try:
        for _ in range(3):
            await goes_on(two)
            await asyncio.sleep(3)
        told = await under_way
        assert told.code == 1
        assert "volume data stays on stor" in told.err
        await goes_on(two)
    finally:
        faults.go_on(stopped)
    await settled(two)
    await whole(node, await acked(two), "stor")
    await move(node, "stor2", "-q")
    await whole(node, await acked(two), "stor2")


async def test_an_idle_volume(two: Lab, node: Node, shop: Workshop) -> None:
    await _clear(two, node)
    await node.veery("volume", "create", DATA, str(SIZE), "--on", "stor")
    await move(node, "stor2", "-q")
    await settled(two)
    content = os.urandom(6 << 20)
    path = pool(two, "stor2") / f"{DATA}.img"
    with path.open("rb+") as file:
        for offset in (0, 20 << 20, SIZE - len(content)):
            file.seek(offset)
            file.write(content)
    file = shop.file("late", disk=[f"volume={DATA},xvda,w"], vif=[])
    under_way = asyncio.create_task(
        two.veery("test1", "volume", "move", DATA, "stor", "--rate", "6M", deadline=120, check=False)
    )
    copy = pool(two, "stor") / f"{DATA}.img"

    async def flows() -> bool:
        if under_way.done():
            raise AssertionError(under_way.result().err)
        return copy.exists() and copy.stat().st_blocks > 0

    await until(flows, "bytes flow")
    assert "volume data is being moved from stor2 to stor" in await node.refused("create", file)
    told = await under_way
    assert told.code == 0, told.err
    assert "18.0 MiB" in told.out
    await settled(two)
    kept = pool(two, "stor2") / f"{DATA}.img.moved-to-stor"
    assert copy.read_bytes() == kept.read_bytes()
    assert copy.stat().st_blocks * 512 < 20 << 20
    reach = [sys.executable, "-m", "veery.lab.reach", two.plan.settings("test1"), DATA]
    assert int((await two.run("test1", reach)).out) == SIZE


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["stor", "stor2"])
async def test_an_idle_volume_whose_storage_node_dies(two: Lab, node: Node, victim: str) -> None:
    await _clear(two, node)
    await node.veery("volume", "create", DATA, str(SIZE), "--on", "stor")
    content = os.urandom(SIZE // 2)
    (pool(two, "stor") / f"{DATA}.img").write_bytes(content + bytes(SIZE - len(content)))
    under_way = await moving(two, via="test2")
    await faults.kill(two, victim, "veeryd")
    await two.start(victim)
    assert (await under_way).code == 1
    await settled(two)
    assert (await volume(node))["node"] == "stor"
    await move(node, "stor2", "-q")
    assert (pool(two, "stor2") / f"{DATA}.img").read_bytes()[: len(content)] == content


@pytest.mark.slow  # the gate itself: tests/unit/cluster/test_volume_gate.py
async def test_two_storage_nodes_give_no_number_twice(two: Lab, node: Node) -> None:
    names = [f"n{number}" for number in range(6)]
    await asyncio.gather(
        *(node.veery("volume", "create", name, "1M", "--on", "stor" if name < "n3" else "stor2") for name in names)
    )
    tids = [(await volume(node, name))["tid"] for name in names]
    for name in names:
        await node.veery("volume", "delete", name)
    assert len(set(tids)) == len(names)
