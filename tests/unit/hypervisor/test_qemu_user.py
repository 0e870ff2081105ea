"""A QEMU that does not run as root: what it is handed, on its command line and by the folder of its domain."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from veery.errors import Failed, Refused
from veery.host.owner import Owner
from veery.hypervisor.qemu import handover, lending, postcopy
from veery.hypervisor.qemu.argv import SANDBOX, Handed, Wiring, build_argv
from veery.hypervisor.qemu.build import lay_out
from veery.hypervisor.qemu.process import Home, Record, Stage
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec, VifSpec
from veery.model.volume import AttachedDisk, AttachedVif, Attachments, LocalDisk

NEW = Owner(200001, 200001)
XVDA = DiskSpec(vdev="xvda", target="/disks/a,b.raw")
VIF = AttachedVif(spec=VifSpec(bridge="xenbr0", mac="00:16:3E:00:00:01"), device="vif1.0")
SPEC = DomainSpec(
    name="busybox",
    uuid="7c2f4b1e-0000-4000-8000-000000000001",
    kernel="/boot/k",
    ramdisk="/boot/r",
    disks=(XVDA,),
    vifs=(VIF.spec,),
)
HANDED = Handed(disks={"xvda": 11}, taps={"vif-00163e000001-tap": 12}, console_log=13, kvm=14, boot=True)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def local(path: Path, **changes: object) -> AttachedDisk:
    spec = replace(XVDA, target=str(path), **changes)  # type: ignore[arg-type]
    return AttachedDisk(spec=spec, source=LocalDisk(path=str(path), format=DiskFormat.RAW, block=False))


def argv(handed: Handed, accel: str = "tcg") -> list[str]:
    wiring = Wiring(monitors=(5, 6), console=7, console_log=Path("/run/a,b/console.log"), secrets={}, agent=8)
    plan = lay_out(SPEC, machine="pc-q35-9.0", accel=accel, started=1.0)
    attachments = Attachments(disks=(local(Path(XVDA.target)),), vifs=(VIF,))
    return build_argv("qemu", SPEC, attachments, plan, replace(wiring, handed=handed), incoming=False)


def options(words: list[str], flag: str) -> list[str]:
    return [words[number + 1] for number, word in enumerate(words) if word == flag]


def test_it_opens_no_path_that_only_root_may() -> None:
    words = argv(HANDED, "kvm")
    assert json.loads(options(words, "-blockdev")[0])["file"]["filename"] == "/dev/fdset/11"
    (tap,) = [json.loads(word) for word in options(words, "-netdev")]
    assert tap == {"type": "tap", "id": "vif-00163e000001-tap", "fd": "12", "vhost": False}
    (console,) = [word for word in options(words, "-chardev") if ",id=console," in word]
    assert console.endswith("logfile=/dev/fdset/13,logappend=on")
    assert options(words, "-accel") == ["kvm,device=/dev/fdset/14"]
    assert (options(words, "-kernel"), options(words, "-initrd")) == (["kernel"], ["ramdisk"])
    assert options(words, "-add-fd") == [
        f"fd={number},set={number},opaque=/run/a,,b/console.log" for number in (13, 14, 11)
    ]


def test_the_machine_is_the_same_as_roots() -> None:
    """Both may meet in one move."""
    host = {"-add-fd", "-blockdev", "-netdev", "-chardev", "-accel", "-kernel", "-initrd"}

    def guests(words: list[str]) -> list[tuple[str, str]]:
        return [pair for pair in itertools.pairwise(words) if pair[0].startswith("-") and pair[0] not in host]

    assert guests(argv(HANDED)) == guests(argv(Handed()))


def test_seccomp_denies_all_that_qemu_offers_to_deny() -> None:
    assert options(argv(Handed()), "-sandbox") == [SANDBOX]
    assert SANDBOX.split(",") == [
        "on", "obsolete=deny", "elevateprivileges=deny", "spawn=deny", "resourcecontrol=deny",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, os.O_RDWR),
        ({"readwrite": False}, os.O_RDONLY),
        ({"cdrom": True}, os.O_RDONLY),
        ({"direct_io_safe": True}, os.O_RDWR | os.O_DIRECT),
    ],
)
def test_a_disk_is_opened_as_qemu_would(tmp_path: Path, changes: dict[str, object], mode: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    with handover.disk_opened(local(path, **changes)) as handle:
        assert fcntl.fcntl(handle, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_DIRECT) == mode
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(handle)


def test_what_is_no_disk_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (
        pytest.raises(Refused, match="neither a file nor a block device"),
        handover.disk_opened(local(tmp_path / "fifo")),
    ):
        pass
    with pytest.raises(Failed, match="No such file"), handover.disk_opened(local(tmp_path / "none")):
        pass


@as_root
def test_its_folder_is_closed_to_it_but_for_its_own_part(tmp_path: Path) -> None:
    home = Home(tmp_path / "7")
    plan = lay_out(SPEC, machine="pc-q35-9.0", accel="tcg", started=1.0)
    record = Record(domid=7, spec=SPEC, attachments=Attachments(), build=plan, stage=Stage.STARTING)
    home.make(record)
    assert (home.apart, home.uid()) == (False, 0)
    home.make(record, b"", NEW)
    assert (home.apart, home.uid()) == (True, NEW.uid)

    def owned(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_uid, found.st_gid, found.st_mode & 0o777

    assert owned(home.path) == (0, 0, 0o700)
    assert owned(home.own) == (0, NEW.gid, 0o750)
    assert owned(home.tmp) == (NEW.uid, NEW.gid, 0o700)
    kernel = tmp_path / "vmlinuz"
    kernel.write_text("a kernel")
    kernel.chmod(0o600)
    home.copy_boot_files(replace(SPEC, kernel=str(kernel), ramdisk=""), NEW)
    assert owned(home.own / "kernel") == (0, NEW.gid, 0o640)
    home.drop_boot_files()
    assert sorted(home.own.iterdir()) == [home.tmp]
    with pytest.raises(Failed, match="No such file"):
        home.copy_boot_files(replace(SPEC, kernel=str(tmp_path / "none")), NEW)


@as_root
def test_certificates_are_lent_for_one_order(tmp_path: Path) -> None:
    home, tls = Home(tmp_path / "7"), tmp_path / "tls"
    plan = lay_out(SPEC, machine="pc-q35-9.0", accel="tcg", started=1.0)
    home.make(Record(domid=7, spec=SPEC, attachments=Attachments(), build=plan, stage=Stage.STARTING))
    tls.mkdir()
    for name in ("ca-cert", "server-cert", "server-key", "client-cert", "client-key"):
        (tls / f"{name}.pem").write_text(name)
    with lending.certificates(home, tls, "client") as folder:
        assert folder == tls  # root reads them where they are
    home.make(Record(domid=7, spec=SPEC, attachments=Attachments(), build=plan, stage=Stage.STARTING), b"", NEW)
    with lending.certificates(home, tls, "client") as folder:
        copies = home.own / folder
        assert sorted(each.name for each in copies.iterdir()) == ["ca-cert.pem", "client-cert.pem", "client-key.pem"]
        for each in (copies, *copies.iterdir()):
            found = each.stat()
            assert (found.st_uid, found.st_gid) == (0, NEW.gid)
            assert found.st_mode & 0o027 == 0o000 or each == copies
            assert not found.st_mode & 0o007
        assert (copies / "client-key.pem").read_text() == "client-key"
    assert sorted(home.own.iterdir()) == [home.tmp]


def test_post_copy_wants_a_userfaultfd_for_that_user(tmp_path: Path) -> None:
    device, switch = tmp_path / "userfaultfd", tmp_path / "switch"
    device.touch()
    mine = device.stat()
    stranger = Owner(mine.st_uid + 1, mine.st_gid + 1)
    device.chmod(0o600)
    switch.write_text("0\n")
    assert "udev" in postcopy.closed(stranger, device, switch)
    assert "sysctl" in postcopy.closed(stranger, device, tmp_path / "none")
    assert postcopy.closed(Owner(mine.st_uid, mine.st_gid), device, switch) == ""
    device.chmod(0o660)
    assert postcopy.closed(Owner(mine.st_uid + 1, mine.st_gid), device, switch) == ""
    assert postcopy.closed(stranger, device, switch)
    device.chmod(0o666)
    assert postcopy.closed(stranger, device, switch) == ""
    device.chmod(0o600)
    switch.write_text("1\n")
    assert postcopy.closed(stranger, device, switch) == ""
