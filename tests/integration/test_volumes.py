"""Volumes on a real tgtd, reached by QEMU's own iSCSI initiator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from storage_parts import TEST1, TEST2, Storage, login, qemu_io, storage

from veery.errors import Failed, Refused
from veery.host.run import run
from veery.model.node import Node
from veery.model.units import MIB
from veery.model.volume import Backing, Initiator, Volume
from veery.storage import plan
from veery.storage.served import Served
from veery.storage.sessions import homes, strangers
from veery.storage.tgtoutput import Target, is_filler, shown_size


@pytest.fixture
async def node() -> AsyncIterator[Storage]:
    async with storage(TEST1, TEST2) as made:
        yield made


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@asynccontextmanager
async def talking(
    volume: Volume, initiator: Initiator, out: int = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """One qemu-io that has the volume open and takes commands."""
    process = await asyncio.create_subprocess_exec(
        "qemu-io",
        *login(volume, initiator),
        stdin=asyncio.subprocess.PIPE,
        stdout=out,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def writing(volume: Volume, initiator: Initiator) -> AsyncIterator[None]:
    """One qemu-io that writes, and goes on writing or trying to."""
    async with talking(volume, initiator, asyncio.subprocess.DEVNULL) as process:
        assert process.stdin
        process.stdin.write(b"".join(b"write -q -P %d 0 4k\n" % (number % 256) for number in range(1_000_000)))
        yield


async def only(node: Storage) -> Target:
    (target,) = await node.volumes.targets()
    return target


async def test_created_volume_is_served_to_every_node_and_to_nobody_else(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 8 * MIB)

    assert volume.iqn == "iqn.2026-11.lab.veery:busybox"
    target = await only(node)
    lun = target.lun(1)
    assert lun is not None
    assert (lun.path, lun.flags, lun.size_mb) == (volume.path, "sync", shown_size(8 * MIB))
    assert set(target.acl) == {TEST1.iqn, TEST2.iqn}
    assert set(target.accounts) == {"test1", "test2"}

    written = await qemu_io(volume, TEST1, "write -P 0x5a 1M 64k", "flush")
    assert written.code == 0, written
    read = await qemu_io(volume, TEST2, "read -P 0x5a 1M 64k", "read -P 0 2M 64k")
    assert read.code == 0, read
    assert "verification failed" not in read.out

    wrong = await qemu_io(volume, TEST1, "read 0 512", password="not-the-secret")
    assert wrong.code == 1
    assert "Authentication failure" in wrong.err
    stranger = await qemu_io(volume, TEST1, "read 0 512", name="iqn.2026-11.lab.veery:node:test9")
    assert stranger.code == 1
    assert "Target not found" in stranger.err


async def test_killed_tgtd_comes_back_the_same_passwords_included(node: Storage) -> None:
    volumes = [await node.volumes.create(f"disk{number}", 4 * MIB) for number in range(3)]
    before = await node.volumes.targets(), await node.server.accounts()

    await node.again()

    assert node.starts == 2
    assert (await node.volumes.targets(), await node.server.accounts()) == before
    assert (await qemu_io(volumes[2], TEST2, "write 0 4k")).code == 0
    assert (await qemu_io(volumes[2], TEST2, "read 0 4k", password="not-the-secret")).code == 1
    assert await node.volumes.reconcile() == ()


async def test_killed_tgtd_serves_again_while_the_records_cannot_be_read(node: Storage) -> None:
    """What it served, and never to whom a fence has denied since: not after a restart of the daemon either."""
    volume = await node.volumes.create("busybox", 4 * MIB)
    gone = await node.volumes.create("gone", 4 * MIB)
    before = await node.volumes.targets()
    node.records.lost = True

    await node.again()

    assert await node.volumes.targets() == before
    assert (await qemu_io(volume, TEST1, "write -P 5 0 4k")).code == 0
    node.records.lost = False
    node.records.fenced.add((volume.name, TEST2.iqn))
    await node.volumes.cut(volume.name, TEST2.iqn)
    await node.volumes.delete(gone.name)
    node.records.lost = True
    for memory in (None, Served(node.folder / "served.json")):
        if memory is not None:
            node.volumes = node.with_memory(memory)
        await node.again()
        target = await only(node)
        assert (target.iqn, target.acl) == (volume.iqn, (TEST1.iqn,))
        assert (await qemu_io(volume, TEST1, "read -P 5 0 4k")).code == 0
        assert (await qemu_io(volume, TEST2, "read 0 4k")).code == 1
        assert await node.volumes.shuts_out(TEST2.iqn) is True
        assert await node.volumes.shuts_out(TEST1.iqn) is False


async def test_a_cut_that_cannot_be_remembered_is_not_proven(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    file = node.folder / "served.json"
    file.unlink()
    (file / "in the way").mkdir(parents=True)

    with pytest.raises(Failed, match=r"can be neither written nor removed"):
        await node.volumes.cut_all(TEST1.iqn)

    (file / "in the way").rmdir()
    file.rmdir()
    node.records.fenced.add((volume.name, TEST1.iqn))
    assert await node.volumes.cut_all(TEST1.iqn) == 0
    assert not Served(file).admits(volume.iqn, TEST1.iqn)


async def test_whoever_asks_for_the_targets_waits_while_an_account_leaves(node: Storage) -> None:
    """tgtd dies at a listing of a target whose table of accounts has a hole; during a fence many ask for it."""
    volume = await node.volumes.create("busybox", 4 * MIB)
    await node.server.new_account("#7", "")
    process = node.service.process
    assert process is not None
    over = asyncio.Event()

    async def ask() -> int:
        asked = 0
        while not over.is_set():
            assert len(await node.volumes.targets()) == 1
            asked += 1
        return asked

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    for _ in range(15):
        await node.server.unbind_account(volume.tid, "test1", "#7")
        await node.server.bind_account(volume.tid, "test1", instead="#7")
    over.set()
    assert min(await asyncio.gather(*asking)) > 0
    assert process.alive()


async def test_doors_that_are_only_on_their_way_shut_nobody_out(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    await node.server.deny(volume.tid, TEST1.iqn)
    assert await node.volumes.shuts_out(TEST1.iqn) is False, "as in the midst of tgtd's start"
    assert await node.volumes.shuts_out("iqn.2026-11.lab.veery:node:test9") is True


async def test_reconcile_repairs_what_was_changed_behind_its_back(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    good = await only(node), await node.server.accounts()
    server = node.server

    await server.new_target(77, "iqn.2026-11.lab.veery:stranger")
    await server.allow(77, "ALL")
    await server.deny(volume.tid, TEST1.iqn)
    await server.new_account("#5", "")
    await server.unbind_account(volume.tid, "test2", "#5")
    await server.allow(volume.tid, "iqn.2026-11.lab.veery:intruder")
    await server.new_account("intruder", "intruder-secret")
    await server.bind_account(volume.tid, "intruder")
    await server.name_lun(volume.tid, 1, scsi_id="other", serial="other")

    assert await node.volumes.reconcile() != ()
    target = await only(node)
    assert set(target.acl) == set(good[0].acl)
    assert replace(target, acl=(), accounts=()) == replace(good[0], acl=(), accounts=())
    assert sorted(user for user in target.accounts if not is_filler(user)) == sorted(good[0].accounts)
    assert {user for user in await server.accounts() if not is_filler(user)} == good[1]
    assert await node.volumes.reconcile() == ()


async def test_a_new_password_replaces_the_old_one(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    renewed = replace(TEST1, password="a-newer-secret")
    node.records.known = [renewed, TEST2]

    await node.volumes.reconcile()

    assert (await qemu_io(volume, renewed, "read 0 512")).code == 0
    assert (await qemu_io(volume, TEST1, "read 0 512")).code == 1
    assert (await qemu_io(volume, TEST2, "read 0 512")).code == 0
    node.records.known = [TEST2]
    await node.volumes.reconcile()
    assert (await qemu_io(volume, renewed, "read 0 512")).code == 1
    assert not [user for user in await node.server.accounts() if user.startswith("test1")]


async def test_quiet_resize_keeps_the_session_and_nothing_shrinks(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    async with talking(volume, TEST1) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"write -P 7 0 4k\n")
        async with asyncio.timeout(20):
            while b"wrote 4096" not in (await process.stdout.readline()):
                pass
        (before,) = (await only(node)).sessions

        grown = await node.volumes.resize("busybox", 5 * MIB + 1, quiet=True)

        assert grown.size == 6 * MIB
        assert (await only(node)).sessions == (before,)
        out, _ = await asyncio.wait_for(process.communicate(b"read -P 7 0 4k\nquit\n"), 20)
        assert b"read 4096/4096" in out
        assert b"failed" not in out
    assert (await qemu_io(volume, TEST2, "write 5M 4k")).code == 0
    info = await run(["qemu-img", "info", *login(volume, TEST2)], deadline=20)
    assert f"({6 * MIB} bytes)" in info.out
    with pytest.raises(Refused, match="cannot shrink"):
        await node.volumes.resize("busybox", 5 * MIB)
    assert (await node.volumes.get("busybox")).size == 6 * MIB


async def test_resize_under_load_costs_a_pause_and_no_error(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    path = node.pool / "busybox.img"
    commands = b"".join(b"aio_write -q -P 3 %d 4k\n" % (4096 * (number % 1000)) for number in range(5000))
    async with talking(volume, TEST1) as process:
        assert process.stdin
        before = path.stat().st_mtime_ns
        process.stdin.write(commands)
        async with asyncio.timeout(20):
            while path.stat().st_mtime_ns == before:
                await asyncio.sleep(0.005)
        await node.volumes.resize("busybox", 6 * MIB)
        lun = (await only(node)).lun(1)
        assert lun is not None
        assert lun.size_mb == shown_size(6 * MIB)
        out, _ = await asyncio.wait_for(process.communicate(b"aio_flush\nread -P 3 0 4000k\nquit\n"), 60)
        assert b"read 4096000/4096000" in out
        assert b"failed" not in out
        assert b"error" not in out


async def test_import_is_sparse_zeroes_the_rest_and_refuses_too_much(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 32 * MIB)
    await qemu_io(volume, TEST1, "write -P 9 30M 1M")
    data = b"head" + bytes(9 * MIB) + b"tail"

    done = await node.volumes.write("busybox", chunks(data[:3], data[3:5_000_001], data[5_000_001:]), length=len(data))

    assert done.ready
    path = node.pool / "busybox.img"
    content = path.read_bytes()
    assert content[: len(data)] == data
    assert len(content) == 32 * MIB
    assert not any(content[len(data) :])
    assert path.stat().st_blocks * 512 < MIB
    assert (await qemu_io(volume, TEST1, "read 0 4k")).code == 0

    with pytest.raises(Refused, match="do not fit"):
        await node.volumes.write("busybox", chunks(b"x"), length=33 * MIB)
    assert (await node.volumes.get("busybox")).ready
    with pytest.raises(Failed, match="do not fit"):
        await node.volumes.write("busybox", chunks(*[b"x" * MIB] * 33))
    assert not (await node.volumes.get("busybox")).ready
    assert await node.volumes.targets() == ()
    with pytest.raises(Refused, match="not ready"):
        await node.volumes.resize("busybox", 64 * MIB)
    await node.volumes.write("busybox", chunks(b"whole again"))
    assert (await qemu_io(volume, TEST1, "read 0 4k")).code == 0


async def test_delete_is_refused_while_used_and_then_leaves_nothing(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    node.records.used["busybox"] = ["busybox on test1"]
    with pytest.raises(Refused, match="used by busybox on test1"):
        await node.volumes.delete("busybox")
    with pytest.raises(Refused, match="used by busybox on test1"):
        await node.volumes.write("busybox", chunks(b"x"))
    assert (await qemu_io(volume, TEST1, "read 0 512")).code == 0

    node.records.used.clear()
    await node.volumes.delete("busybox")
    assert await node.volumes.targets() == ()
    assert list(node.pool.iterdir()) == []
    assert node.records.kept == {}
    with pytest.raises(Refused, match="no volume busybox"):
        await node.volumes.delete("busybox")


async def test_refusals_change_nothing(node: Storage) -> None:
    await node.volumes.create("busybox", 4 * MIB)
    before = await node.volumes.targets()
    for name, size, words in [
        ("busybox", MIB, "already"),
        ("Upper", MIB, "cannot be a volume's name"),
        ("none", 0, "cannot have 0 bytes"),
        ("huge", 1 << 60, "do not fit"),
    ]:
        with pytest.raises(Refused, match=words):
            await node.volumes.create(name, size)
    with pytest.raises(Refused, match="no lvm storage"):
        await node.volumes.create("other", MIB, Backing.LVM)
    (node.pool / "orphan.img").write_bytes(b"precious")
    with pytest.raises(Refused, match="exists already"):
        await node.volumes.create("orphan", MIB)
    assert (node.pool / "orphan.img").read_bytes() == b"precious"
    assert list(node.records.kept) == ["busybox"]
    assert await node.volumes.targets() == before


async def test_lost_backing_file_is_named_and_the_others_are_served(node: Storage) -> None:
    await node.volumes.create("gone", 4 * MIB)
    good = await node.volumes.create("good", 4 * MIB)
    (node.pool / "gone.img").unlink()
    first = node.service.process
    assert first is not None
    await first.stop(grace=0)
    async with asyncio.timeout(30):
        while node.service.process in {None, first}:
            await asyncio.sleep(0.05)
        await node.server.ready()
        with pytest.raises(Failed, match=r"gone\.img is missing"):
            await node.volumes.reconcile()
    assert (await qemu_io(good, TEST1, "read 0 512")).code == 0
    assert (await qemu_io(await node.volumes.get("gone"), TEST1, "read 0 512")).code == 1
    other = await node.volumes.create("third", 4 * MIB)
    assert (await qemu_io(other, TEST1, "read 0 512")).code == 0
    await node.volumes.delete("gone")
    assert await node.volumes.reconcile() == ()


async def test_nothing_changes_while_tgtd_does_not_answer(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    assert node.service.process is not None
    node.server.env["TGT_IPC_SOCKET"] += ".nobody"
    for attempt in (
        node.volumes.create("other", MIB),
        node.volumes.resize("busybox", 8 * MIB),
        node.volumes.delete("busybox"),
        node.volumes.write("busybox", chunks(b"x")),
    ):
        with pytest.raises(Refused, match="tgtd does not answer"):
            await attempt
    assert node.records.kept == {"busybox": volume}
    assert (node.pool / "busybox.img").stat().st_size == 4 * MIB


async def test_a_cut_ends_what_the_node_writes_under_another_name(node: Storage) -> None:
    """tgtd takes TEST1's account under TEST2's name. A fence of test1 closes that too, by the address."""
    volume = await node.volumes.create("busybox", 4 * MIB)
    path = node.pool / "busybox.img"
    async with writing(volume, replace(TEST1, iqn=TEST2.iqn)):
        before = path.stat().st_mtime_ns
        async with asyncio.timeout(30):
            while path.stat().st_mtime_ns == before:
                await asyncio.sleep(0.02)
        node.records.fenced.add((volume.name, TEST1.iqn))
        assert "under the name" in await node.volumes.way_in(TEST1.iqn, {"127.0.0.1"})

        assert await node.volumes.cut_all(TEST1.iqn, {"127.0.0.1"}) >= 1

        assert not (await only(node)).sessions
        assert await node.volumes.way_in(TEST1.iqn, {"127.0.0.1"}) == ""
        before = path.stat().st_mtime_ns
        await asyncio.sleep(0.5)  # the writer retries all the while
        assert path.stat().st_mtime_ns == before


async def test_a_stranger_is_closed_and_the_others_stay(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    async with talking(volume, TEST2) as stays:
        assert stays.stdin
        assert stays.stdout
        stays.stdin.write(b"read 0 4k\n")
        async with asyncio.timeout(30):
            while b"4096/4096" not in await stays.stdout.readline():
                pass
        (own,) = (await only(node)).sessions
        async with writing(volume, TEST1):
            async with asyncio.timeout(30):
                while len(shown := await node.volumes.targets()) != 1 or len(shown[0].sessions) < 2:
                    await asyncio.sleep(0.02)
            known = homes(
                [
                    Node(name="test1", address="192.0.2.1", roles=(), initiator=TEST1.iqn),
                    Node(name="test2", address="127.0.0.1", roles=(), initiator=TEST2.iqn),
                ]
            )
            found = strangers(shown, known)
            assert {(each.claims, each.node) for each in found} == {("test1", "test2")}
            await node.volumes.expel(found)
            async with asyncio.timeout(30):  # it logs in again, as another session
                while {each.sid for each in found} & {one.sid for one in (await only(node)).sessions}:
                    await asyncio.sleep(0.02)
        assert own.sid in {one.sid for one in (await only(node)).sessions}


async def test_cut_ends_sessions_and_holds_over_reconcile_and_restart(node: Storage) -> None:
    volume = await node.volumes.create("busybox", 4 * MIB)
    path = node.pool / "busybox.img"
    async with writing(volume, TEST1):
        before = path.stat().st_mtime_ns
        async with asyncio.timeout(30):
            while path.stat().st_mtime_ns == before:
                await asyncio.sleep(0.02)
        node.records.fenced.add(("busybox", TEST1.iqn))

        assert await node.volumes.cut("busybox", TEST1.iqn) >= 1

        target = await only(node)
        assert target.acl == (TEST2.iqn,)
        assert target.accounts == ("#0", "test2")
        assert target.sessions == ()
        before = path.stat().st_mtime_ns
        await asyncio.sleep(0.5)  # the writer retries all the while
        assert path.stat().st_mtime_ns == before
        assert await node.volumes.reconcile() == ()
        await node.again()
        await asyncio.sleep(0.3)
        assert path.stat().st_mtime_ns == before
        assert not (await only(node)).sessions
        assert (await qemu_io(volume, TEST2, "write 0 4k")).code == 0
        # the fenced node's secret under the other's name does not help it either
        assert (await qemu_io(volume, TEST1, "read 0 4k", name=TEST2.iqn)).code == 1
    node.records.fenced.clear()
    steps = await node.volumes.reconcile()
    assert [type(step) for step in steps] == [plan.Bind, plan.Allow]
    assert (await qemu_io(volume, TEST1, "read 0 4k")).code == 0
