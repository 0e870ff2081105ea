"""QEMU as a user of its own on real parts: what it may do, and that what only root can open still works."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from qemu.qmp import QMPClient
from test_qemu_driver import (
    Node,
    move,
    test_a_lun_goes_along,  # noqa: F401 (asked once more, here)
)
from test_qemu_driver import (
    test_moves_with_tls_know_their_peer as moves_with_tls_know_their_peer,
)

import qemu_parts as parts
from veery.errors import Failed
from veery.host.owner import Owner
from veery.hypervisor.qemu import postcopy
from veery.lab.guest import Guest
from veery.model.domain import DiskFormat, DiskSpec, DomainReading, DomainSpec
from veery.model.volume import AttachedDisk, Attachments, LocalDisk

USERS = "200000-200099"


@pytest.fixture(scope="module")
def snapshot(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> parts.Snapshot:
    return parts.snapshot(guest, tmp_path_factory.mktemp("snapshot"))


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Both start QEMU as a user of its own."""
    made = Node(tmp_path, "test1", USERS), Node(tmp_path, "test2", USERS)
    for node in made:
        await node.driver.open()
    try:
        yield made
    finally:
        for node in made:
            for reading in await node.driver.list():
                await node.driver.destroy(reading.uuid)
            await node.driver.close()


def status(reading: DomainReading) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{reading.pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def may(reading: DomainReading, *words: str) -> bool:
    """Whether a program with the ids of a domain's QEMU, and nothing else, ends with 0."""
    uid, gid = (status(reading)[key].split()[0] for key in ("Uid", "Gid"))
    ids = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--inh-caps=-all"]
    process = await asyncio.create_subprocess_exec(*ids, *words, stderr=asyncio.subprocess.DEVNULL)
    return await process.wait() == 0


async def test_it_has_no_rights_and_sees_its_own_domain_alone(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot, tmp_path: Path
) -> None:
    near, _ = nodes
    one = await parts.awake(near.driver, snapshot, "one")
    other = await parts.awake(near.driver, snapshot, "other")
    disk = parts.disk(tmp_path / "root-only.img", "xvdb")
    (tmp_path / "root-only.img").chmod(0o600)
    await near.driver.attach_disk(one.uuid, disk)
    here = {reading.uuid: reading for reading in await near.driver.list()}
    seen = [status(here[spec.uuid]) for spec in (one, other)]
    assert len({each["Uid"] for each in seen}) == 2
    for each in seen:
        assert 200000 <= int(each["Uid"].split()[0]) < 200100
        assert len(set(each["Uid"].split())) == len(set(each["Gid"].split())) == 1
        assert each["Groups"] == ""
        assert {each[key] for key in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
        assert (each["NoNewPrivs"], each["Seccomp"]) == ("1", "2")
    homes = near.run / "domains"
    mine = here[one.uuid]
    assert await may(mine, "test", "-r", f"/proc/{mine.pid}/cwd")  # its working directory, without the way there
    for path in homes.glob("*/*"):
        assert not await may(mine, "test", "-e", str(path)), path
    assert not await may(mine, "test", "-r", f"/proc/{here[other.uuid].pid}/cwd/tmp")
    assert not await may(mine, "test", "-w", str(tmp_path / "root-only.img"))
    assert not list(homes.glob("*/own/kernel"))
    with pytest.raises(Failed, match="lock"):  # its locks are those of a QEMU that opens the file by itself
        await near.driver.attach_disk(other.uuid, disk)
    await near.driver.detach_disk(one.uuid, "xvdb")
    await near.driver.attach_disk(other.uuid, disk)  # and they end with its node


async def test_a_disk_and_an_interface_from_the_start(
    nodes: tuple[Node, Node], snapshot: parts.Snapshot, tmp_path: Path
) -> None:
    """On the command line of a target, on taps, with the disk's lock handed over by the move."""
    near, far = nodes
    spec = await parts.awake(near.driver, snapshot)
    mac, disk = "00:16:3e:00:00:07", parts.disk(tmp_path / "b.img", "xvdb")
    assert isinstance(disk.source, LocalDisk)
    disk = replace(disk, source=replace(disk.source, direct=True))  # past the host's cache
    with parts.tap(f"vqa{os.getpid() % 100000}") as here, parts.tap(f"vqb{os.getpid() % 100000}") as there:
        await near.driver.attach_disk(spec.uuid, disk)
        await near.driver.attach_vif(spec.uuid, parts.vif(here, mac))
        with pytest.raises(Failed):
            await near.driver.attach_vif(spec.uuid, parts.vif("no-such-tap/", "00:16:3e:00:00:08"))
        attachments = Attachments(disks=(disk,), vifs=(parts.vif(there, mac),))
        await move(near.driver, far.driver, spec.uuid, attachments)
        await far.again()
        await far.driver.resize_disk(spec.uuid, "xvdb", 16 << 20)
        look = "sleep 0.3; cat /sys/block/vda/size /sys/class/net/eth0/address"

        async def seen() -> str:
            return await parts.shell(far.driver, spec.uuid, look)

        await parts.becomes(seen, lambda text: str((16 << 20) // 512) in text and mac in text)
        dump = tmp_path / "core"
        await far.driver.dump_core(spec.uuid, dump)
        assert dump.read_bytes()[:4] == b"\x7fELF"
        assert dump.stat().st_uid == 0
        await far.driver.detach_vif(spec.uuid, mac)
        await far.driver.detach_disk(spec.uuid, "xvdb")


async def test_a_cd_is_changed(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    near, _ = nodes
    one, two = (parts.disk(tmp_path / f"{name}.iso").source for name in ("one", "two"))
    assert isinstance(one, LocalDisk)
    assert isinstance(two, LocalDisk)
    drive = DiskSpec(vdev="hdc", cdrom=True, readwrite=False, format=DiskFormat.RAW, target=one.path)
    spec = DomainSpec(name="cd", uuid="7c2f4b1e-0000-4000-8000-00000000000e", memory=64, disks=(drive,))
    await near.driver.start(spec, Attachments(disks=(AttachedDisk(spec=drive, source=one),)))

    async def change(source: LocalDisk | None) -> None:
        held = replace(
            drive, target=source.path if source else "", format=source.format if source else DiskFormat.EMPTY
        )
        await near.driver.change_medium(spec.uuid, AttachedDisk(spec=held, source=source))

    for source in (two, None, one):
        await change(source)
    with pytest.raises(Failed, match=r"none\.iso: No such file"):
        await change(LocalDisk(path=str(tmp_path / "none.iso"), format=DiskFormat.RAW, block=False))
    (held,) = (await near.driver.spec(spec.uuid))[0].disks
    assert held.target == one.path  # nothing was done
    pid = (await near.reading()).pid
    opened = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
    assert opened.count(one.path) == 1
    assert two.path not in opened


async def test_post_copy_is_refused_where_the_user_gets_no_userfaultfd(nodes: tuple[Node, Node]) -> None:
    near, _ = nodes
    told = (await near.driver.abilities()).post_copy
    assert told == postcopy.obstacle(Owner(200000, 200000))


async def test_certificates_are_forgotten_after_a_move(nodes: tuple[Node, Node], snapshot: parts.Snapshot) -> None:
    near, far = nodes
    await moves_with_tls_know_their_peer(nodes, snapshot)  # three that fail, one that does not
    (home,) = (far.run / "domains").glob("[0-9]*")
    assert sorted(each.name for each in (home / "own").iterdir()) == ["tmp"]
    assert "move-server" not in await objects(home)
    assert await near.driver.list() == ()


async def objects(home: Path) -> set[str]:
    """The names of the objects that a QEMU has, by its second monitor."""
    client = QMPClient("test")
    await client.connect(str(home / "qmp1"))
    try:
        rows = await client.execute("qom-list", {"path": "/objects"})
        assert isinstance(rows, list)
        return {str(row["name"]) for row in rows if isinstance(row, dict)}
    finally:
        await client.disconnect()
