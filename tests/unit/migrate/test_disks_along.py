"""Moves with local disks between two nodes with fake drivers: where the bytes are, and which files are left."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from two_nodes import SPEC, UUID, Pair, dead_line, local_disk, make_certificates, two_nodes
from two_nodes import Side as End

from veery.cluster import owner as owners
from veery.cluster.keys import DOMAINS
from veery.errors import Failed, Refused
from veery.hypervisor.base import ALONE, DiskFull, Report
from veery.hypervisor.fake import FakeDriver
from veery.migrate import disks
from veery.migrate.journal import Line, Side
from veery.model.cluster import DomainRecord
from veery.model.domain import DiskFormat, DiskSpec
from veery.model.move import CopyOptions, CopyResult, MoveReport, MoveSettings, MoveState, Phase, Tuning
from veery.model.volume import AttachedDisk, CarriedDisk
from veery.storage import local

DATA = bytes(range(256)) * 512


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@dataclass
class Stage:
    """Both nodes, and a folder for the disks of each."""

    pair: Pair
    here: Path
    there: Path

    @property
    def along(self) -> MoveSettings:
        """The orders of a move that takes the disk to `there`."""
        return MoveSettings(with_disks=True, disk_dir=str(self.there), stall=5.0)

    async def home(self) -> tuple[str, str]:
        """Where the store says the disk is: node, path."""
        record = await DOMAINS.get(self.pair.a.store.view(), "busybox")
        assert record is not None
        return record.home, record.spec.disks[0].target

    def files(self) -> set[str]:
        return {f"{path.parent.name}/{path.name}" for folder in (self.here, self.there) for path in folder.iterdir()}

    async def undone(self) -> None:
        """It runs on `a`, from the disk that it had; nothing of the other is left."""
        await self.pair.check("a")
        assert self.files() == {"here/root.img"}
        assert (self.here / "root.img").read_bytes() == DATA
        assert (await self.home())[0] == ""


@contextlib.asynccontextmanager
async def stage(folder: Path, certificates: Path) -> AsyncIterator[Stage]:
    here, there = folder / "here", folder / "there"
    here.mkdir()
    there.mkdir()
    path = here / "root.img"
    path.write_bytes(DATA)
    async with two_nodes(folder, certificates) as pair:
        disk = DiskSpec(vdev="xvda", target=str(path))
        await pair.a.driver.attach_disk(UUID, AttachedDisk(spec=disk, source=local_disk(str(path))))
        record = DomainRecord(spec=replace(SPEC, disks=(disk,)))
        await pair.a.store.view().commit([], [DOMAINS.put("busybox", record)])
        yield Stage(pair, here, there)


async def test_there_and_back(tmp_path: Path, certificates: Path) -> None:
    async with stage(tmp_path, certificates) as made:
        report = await made.pair.a.move(made.pair.b, made.along)
        assert report.state is MoveState.DONE, report.reason
        await made.pair.check("b")
        assert made.files() == {"here/root.img.moved-to-b", "there/busybox-xvda.raw"}
        assert report.kept == (str(made.here / "root.img.moved-to-b"),)
        assert (made.there / "busybox-xvda.raw").read_bytes() == DATA
        assert await made.home() == ("b", str(made.there / "busybox-xvda.raw"))
        (disk,) = (await made.pair.b.driver.spec(UUID))[0].disks
        assert disk.target == str(made.there / "busybox-xvda.raw")

        back = MoveSettings(with_disks=True, disk_dir=str(made.here), remove_source=True)
        report = await made.pair.b.move(made.pair.a, back)
        assert report.state is MoveState.DONE, report.reason
        await made.pair.check("a")
        assert made.files() == {"here/root.img.moved-to-b", "here/busybox-xvda.raw"}
        assert report.kept == ()
        assert await made.home() == ("a", str(made.here / "busybox-xvda.raw"))


async def test_the_bar_goes_one_way(tmp_path: Path, certificates: Path) -> None:
    async with stage(tmp_path, certificates) as made:
        moves = made.pair.a.moves
        move = moves.start(await made.pair.a.reading(), made.pair.b.node, made.along)
        seen = [each async for each in moves.follow(move) if each.phase is Phase.COPY and each.total]
        assert {each.step for each in seen} == {"disks", "memory"}
        missing = [each.remaining + each.disk_remaining for each in seen]
        assert missing == sorted(missing, reverse=True)
        assert {each.disk_total for each in seen} == {len(DATA)}
        assert (await moves.outcome(move)).disk_bytes == len(DATA)


async def test_without_the_flag_it_is_named(tmp_path: Path, certificates: Path) -> None:
    async with stage(tmp_path, certificates) as made:
        report = await made.pair.a.move(made.pair.b)
        assert report.state is MoveState.FAILED
        assert "only a has xvda" in report.reason
        assert "--with-disks busybox b" in report.hint
        await made.undone()


@pytest.mark.parametrize(
    ("side", "step"),
    [("b", "prepare"), ("b", "export_disks"), ("a", "mirror_disks"), ("a", "send"), ("a", "copy"), ("b", "receive")],
)
async def test_a_failed_step_is_undone(tmp_path: Path, certificates: Path, side: str, step: str) -> None:
    async with stage(tmp_path, certificates) as made:
        getattr(made.pair, side).driver.fail(step, Failed("a fault", hint="mend it"))
        report = await made.pair.a.move(made.pair.b, made.along)
        assert report.state is MoveState.FAILED
        assert "a fault" in report.reason
        await made.undone()
        assert (await made.pair.a.move(made.pair.b, made.along)).state is MoveState.DONE
        await made.pair.check("b")


async def test_cancelled_while_disks_are_copied(tmp_path: Path, certificates: Path) -> None:
    async with stage(tmp_path, certificates) as made:
        release = made.pair.a.driver.hang("mirror_disks")
        moves = made.pair.a.moves
        move = moves.start(await made.pair.a.reading(), made.pair.b.node, made.along)
        async with asyncio.timeout(20):
            while not (made.there / "busybox-xvda.raw").exists():
                await asyncio.sleep(0.01)
        report = await moves.cancel(move)
        release()
        assert report.state is MoveState.CANCELLED
        await made.undone()


async def test_its_bandwidth_is_changed_while_disks_are_copied(tmp_path: Path, certificates: Path) -> None:
    """The disks get it at once; the memory begins with it, and with the limit of the downtime."""
    async with stage(tmp_path, certificates) as made:
        driver, moves = made.pair.a.driver, made.pair.a.moves
        release = driver.hang("mirror_disks")
        move = moves.start(await made.pair.a.reading(), made.pair.b.node, replace(made.along, bandwidth=64 << 20))
        notes: list[str] = []

        async def listen() -> None:
            notes.extend([each.note async for each in moves.follow(move) if each.note])

        listening = asyncio.create_task(listen())
        async with asyncio.timeout(20):
            while driver._domains[UUID].disk_rate is None:
                await asyncio.sleep(0.01)
        assert driver._domains[UUID].disk_rate == 64 << 20
        await moves.change(move, Tuning(bandwidth=32 << 20))
        assert driver._domains[UUID].disk_rate == 32 << 20
        await moves.change(move, Tuning(downtime=80))
        release()
        report = await moves.outcome(move)
        await asyncio.wait({listening}, timeout=20)
        assert report.state is MoveState.DONE, report.reason
        assert {sample.downtime for sample in report.samples} == {80}
        assert max(sample.rate for sample in report.samples) <= 32 << 20
        assert "bandwidth 32.0 MiB/s: set by the user" in notes
        assert "limit 80 ms: set by the user" in notes
        await made.pair.check("b")


async def test_where_nothing_is_copied_nothing_is_changed(tmp_path: Path, certificates: Path) -> None:
    async with stage(tmp_path, certificates) as made:
        moves = made.pair.a.moves
        made.pair.a.hold.mkdir(parents=True, exist_ok=True)
        (made.pair.a.hold / "PREPARE").touch()
        move = moves.start(await made.pair.a.reading(), made.pair.b.node, made.along)
        with pytest.raises(Refused, match="copies nothing now"):
            await moves.change(move, Tuning(bandwidth=1 << 20))
        with pytest.raises(Refused):
            await made.pair.a.driver.tune_disks(UUID, 1 << 20)
        (made.pair.a.hold / "PREPARE").unlink()
        assert (await moves.outcome(move)).state is MoveState.DONE


@pytest.mark.parametrize("done", [True, False])
async def test_commit_without_an_answer(tmp_path: Path, certificates: Path, done: bool) -> None:
    """Owner and home change together or not at all."""
    async with stage(tmp_path, certificates) as made:
        made.pair.a.hold.mkdir(parents=True)
        brake = made.pair.a.hold / "COMMIT"
        brake.touch()
        moving = asyncio.create_task(made.pair.a.move(made.pair.b, made.along))
        async with asyncio.timeout(20):
            while all(line.phase is not Phase.COMMIT for line in made.pair.a.context.journal.open()):
                await asyncio.sleep(0.01)
        made.pair.a.store.lose_next_answer(done=done)
        brake.unlink()
        assert (await moving).state is (MoveState.DONE if done else MoveState.FAILED)
        if not done:
            await made.undone()
            return
        await made.pair.check("b")
        assert made.files() == {"here/root.img.moved-to-b", "there/busybox-xvda.raw"}
        assert (await made.home())[0] == "b"


async def test_a_dead_target_s_files_are_removed(tmp_path: Path, certificates: Path) -> None:
    """Its daemon died while disks came in: only what its journal says that it made goes."""
    async with stage(tmp_path, certificates) as made:
        mine, other = made.there / "busybox-xvda.raw", made.there / "busybox-xvdb.raw"
        disk = CarriedDisk(
            vdev="xvda", path="/x", format=DiskFormat.RAW, block=False, size=4096, allocated=0, target=str(mine)
        )
        taken = local.take(disk)
        other.write_bytes(b"another's")  # it came to be after the journal was written
        line = dead_line(Side.TARGET, Phase.COPY, disks=(taken, replace(disk, vdev="xvdb", target=str(other))))
        made.pair.b.context.journal.write(line)
        made.pair.b.settler.recall()
        await made.pair.settled()
        assert made.files() == {"here/root.img", "there/busybox-xvdb.raw"}


def a_disk(vdev: str = "xvda", *, path: str = "/x", target: str = "", inode: int = 0) -> CarriedDisk:
    """A raw file that goes along."""
    return CarriedDisk(
        vdev=vdev, path=path, format=DiskFormat.RAW, block=False, size=4096, allocated=0, target=target, inode=inode
    )


async def ended(pair: Pair, side: End) -> None:
    """The domain ends on its node, and has no owner any more."""
    owner = await owners.read(pair.a.store, "busybox")
    assert owner is not None
    await side.driver.destroy(UUID)
    await owners.release(pair.a.store, owner)


async def recalled(pair: Pair, side: End, line: Line) -> None:
    """The node's next daemon finds `line` in the journal; returns when it is settled."""
    side.context.journal.write(line)
    side.settler.recall()
    async with asyncio.timeout(60):
        while side.settler.busy("busybox") or side.context.journal.open():
            await asyncio.sleep(0.01)


async def test_files_that_are_the_disks_are_not_removed(tmp_path: Path, certificates: Path) -> None:
    """The target's daemon was killed after COMMIT, and the domain has ended since. So it has no owner, but these files
    are its disks."""
    async with stage(tmp_path, certificates) as made:
        pair, mine = made.pair, made.there / "busybox-xvda.raw"
        assert (await pair.a.move(pair.b, made.along)).state is MoveState.DONE
        await pair.check("b")
        await ended(pair, pair.b)
        line = dead_line(Side.TARGET, Phase.LOADED, disks=(a_disk(target=str(mine), inode=mine.stat().st_ino),))
        await recalled(pair, pair.b, line)
        assert mine.read_bytes() == DATA


async def test_the_journal_names_a_file_as_soon_as_it_is_made(tmp_path: Path, certificates: Path) -> None:
    """A daemon that is killed here would otherwise leave a file that nobody removes, and that stops the next move."""
    async with stage(tmp_path, certificates) as made:
        pair, file = made.pair, made.there / "busybox-xvda.raw"
        release = pair.b.driver.hang("prepare")
        move = pair.a.moves.start(await pair.a.reading(), pair.b.node, made.along)
        async with asyncio.timeout(20):
            while not file.exists():
                await asyncio.sleep(0.01)
        (line,) = pair.b.context.journal.open()
        assert [(disk.target, disk.inode) for disk in line.disks] == [(str(file), file.stat().st_ino)]
        release()
        assert (await pair.a.moves.outcome(move)).state is MoveState.DONE


@pytest.mark.parametrize("home", ["", "a"])
@pytest.mark.parametrize("remove", [False, True])
async def test_disks_that_were_not_handed_over_stay_where_they_are(
    tmp_path: Path, certificates: Path, home: str, remove: bool
) -> None:
    """The source's daemon was killed before COMMIT, and the domain has ended since."""
    async with stage(tmp_path, certificates) as made:
        pair, root = made.pair, made.here / "root.img"
        record = await DOMAINS.get(pair.a.store.view(), "busybox")
        assert record is not None
        await pair.a.store.view().commit([], [DOMAINS.put("busybox", replace(record, home=home))])
        await ended(pair, pair.a)
        line = dead_line(
            Side.SOURCE,
            Phase.COPY,
            disks=(a_disk(path=str(root), target=str(made.there / "busybox-xvda.raw"), inode=root.stat().st_ino),),
            remove_source=remove,
        )
        await recalled(pair, pair.a, line)
        assert made.files() == {"here/root.img"}
        assert root.read_bytes() == DATA


def test_a_target_takes_every_disk_or_none() -> None:
    going = (a_disk("xvda"), a_disk("xvdb"))
    made = tuple(replace(disk, target=f"/there/{disk.vdev}") for disk in going)
    assert [disk.target for disk in disks.matched(going, made)] == ["/there/xvda", "/there/xvdb"]
    for wrong in (made[:1], (), (*made, a_disk("xvdc"))):
        with pytest.raises(Failed, match="cannot take all disks"):
            disks.matched(going, wrong)


async def test_every_blocker_is_told(tmp_path: Path, certificates: Path) -> None:
    async with stage(tmp_path, certificates) as made:

        async def reason(settings: MoveSettings) -> MoveReport:
            return await made.pair.a.move(made.pair.b, settings)

        assert "root.img exists already" in (await reason(MoveSettings(with_disks=True))).reason
        there = (await reason(replace(made.along, disk_dir="/no/such"))).reason
        assert "there is no folder /no/such" in there
        (made.there / "busybox-xvda.raw").touch()
        assert "busybox-xvda.raw exists already" in (await reason(made.along)).reason
        (made.there / "busybox-xvda.raw").unlink()
        await made.undone()


def test_where_a_disk_goes() -> None:
    disk = CarriedDisk(vdev="xvdb", path="/dev/vg/data", format=DiskFormat.RAW, block=True, size=1, allocated=1)
    (same,) = local.choose((disk,), "", "db")
    assert same.target == "/dev/vg/data"
    assert [each.reason for each in local.blockers((same,))] == [
        "xvdb is the device /dev/vg/data, but arrives as a file"
    ]
    (chosen,) = local.choose((replace(disk, format=DiskFormat.QCOW2),), "/srv/disks/", "db")
    assert chosen.target == "/srv/disks/db-xvdb.qcow2"
    (odd,) = local.blockers((replace(disk, format=DiskFormat.VHD, target="/srv/x"),))
    assert "only raw and qcow2" in odd.reason
    (much,) = local.blockers((replace(disk, target="/tmp/veery-no-such.raw", allocated=1 << 60),))
    assert "are free" in much.reason


def test_an_older_copy_gives_way_and_a_stranger_does_not(tmp_path: Path) -> None:
    path = tmp_path / "root.img"
    path.write_bytes(b"new")
    disk = CarriedDisk(
        vdev="xvda",
        path=str(path),
        format=DiskFormat.RAW,
        block=False,
        size=3,
        allocated=0,
        inode=path.stat().st_ino,
    )
    (tmp_path / "root.img.moved-to-b").write_bytes(b"old")
    local.put_aside(disk, "b", remove=False)
    assert (tmp_path / "root.img.moved-to-b").read_bytes() == b"new"
    path.write_bytes(b"a stranger's")
    local.put_aside(disk, "b", remove=True)
    assert path.read_bytes() == b"a stranger's"


@pytest.mark.parametrize("policy", ["balanced", "must-finish"])
async def test_a_disk_that_fails_while_it_is_copied_goes_along(tmp_path: Path, certificates: Path, policy: str) -> None:
    """The domain stands because of it; the copy goes on, and the domain goes on at the target, on the target's disk."""
    async with stage(tmp_path, certificates) as made:
        driver = made.pair.a.driver
        release = driver.hang("mirror_disks")
        settings = replace(made.along, policy=policy)
        move = made.pair.a.moves.start(await made.pair.a.reading(), made.pair.b.node, settings)
        async with asyncio.timeout(20):
            while not (made.there / "busybox-xvda.raw").exists():
                await asyncio.sleep(0.01)
        driver.disk_fails(UUID, "disk-xvda: No space left on device")
        release()
        report = await made.pair.a.moves.outcome(move)
        assert report.state is MoveState.DONE, report.reason
        await made.pair.check("b")
        assert (made.there / "busybox-xvda.raw").read_bytes() == DATA


class Full(FakeDriver):
    """A driver whose memory copy ends because a disk has no room at the target. The target sees its stream end first:
    the source is still clearing up."""

    async def send(
        self,
        uuid: str,
        stream: socket.socket,
        settings: MoveSettings,
        report: Report,
        *,
        peer: str,
        means: CopyOptions = ALONE,
    ) -> CopyResult:
        """As Driver.send."""
        stream.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise DiskFull("the copy of its xvda broke: No space left on device", hint="name another --disk-dir")


async def test_a_full_disk_is_told_though_the_target_gives_up_first(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates, make=Full) as pair:
        pair.b.driver.fail("receive", Failed("no section footer", hint="veery dmesg"))
        report = await pair.a.move(pair.b)
        assert report.state is MoveState.FAILED
        assert report.reason.startswith("the copy of its xvda broke: No space left on device (")
        assert "no section footer" in report.reason
        assert report.reason.count("No space left") == 1
        assert report.hint == "name another --disk-dir"
        await pair.check("a")
