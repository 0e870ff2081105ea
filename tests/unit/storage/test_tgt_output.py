"""What tgtadm 1.0.85 really printed (data/), as values."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.errors import Failed
from veery.model.units import GIB, MIB
from veery.storage.sockets import by_address, connections
from veery.storage.tgtoutput import Connection, Session, filler, is_filler, parse_connections, parse_targets, shown_size

DATA = Path(__file__).parent / "data"


def test_targets_are_read_whole() -> None:
    busybox, empty, seed = parse_targets((DATA / "targets.txt").read_text())

    assert (busybox.tid, busybox.iqn, busybox.state) == (1, "iqn.2026-11.lab.veery:busybox", "ready")
    assert busybox.accounts == ("test1", "test2")
    assert busybox.acl == ("iqn.2026-11.lab.veery:node:test1", "iqn.2026-11.lab.veery:node:test2")
    assert busybox.sessions == (
        Session(sid=1, initiator=busybox.acl[0], connections=(Connection(cid=0, address="127.0.0.1"),)),
        Session(sid=2, initiator=busybox.acl[1], connections=(Connection(cid=0, address="127.0.0.1"),)),
    )
    controller, disk = busybox.luns
    assert (controller.lun, controller.kind, controller.path, controller.flags) == (0, "controller", "", "")
    assert (disk.path, disk.flags, disk.backing) == ("/var/lib/veery/volumes/busybox.img", "sync", "rdwr")
    assert (disk.scsi_id, disk.serial) == ("veery-f6830235c62ae1032c62bc64", "f6830235c62ae1032c62")
    assert (disk.size_mb, disk.block_size, disk.online, disk.readonly) == (67, 512, True, False)
    assert busybox.lun(1) is disk
    assert busybox.lun(2) is None

    assert (empty.accounts, empty.outgoing) == (("test1", "test2"), "mutual")
    assert empty.acl[0] == "172.16.31.0/24"
    assert empty.luns[1].online is False
    assert empty.luns[1].readonly is True
    assert (seed.iqn, seed.acl, seed.accounts, seed.sessions) == ("iqn.2015-02.com.stu31:t1", (), (), ())
    assert parse_targets("") == ()


def test_a_session_without_lines_of_its_own_is_still_one() -> None:
    """An initiator's alias, and a connection that tgtd has closed while its last command still runs."""
    text = (
        "Target 3: iqn.2026-11.lab.veery:a\n    System information:\n        State: ready\n"
        "    I_T nexus information:\n        I_T nexus: 7\n"
        "            Initiator: iqn.x:y alias: dom0 of test1\n            Connection: 1\n                \n"
        "        I_T nexus: 8\n    LUN information:\n"
    )
    (target,) = parse_targets(text)
    assert target.sessions == (
        Session(sid=7, initiator="iqn.x:y", alias="dom0 of test1", connections=(Connection(cid=1, address=""),)),
        Session(sid=8, initiator=""),
    )


@pytest.mark.parametrize(
    "text",
    [
        "nonsense\n",
        "        I_T nexus: 1\n",
        "Target 1: a\n    LUN information:\n            Type: disk\n",
        "Target 1: a\n    LUN information:\n        LUN: 0\n            Type: disk\n",
        "Target 1: a\n    LUN information:\n        LUN: zero\n",
    ],
)
def test_what_is_not_understood_is_said_and_not_guessed(text: str) -> None:
    with pytest.raises(Failed, match="tgtadm: "):
        parse_targets(text)


def test_connections_are_read() -> None:
    second, first = parse_connections((DATA / "connections.txt").read_text())
    assert (first.sid, first.initiator) == (1, "iqn.2026-11.lab.veery:node:test1")
    assert second.connections == (Connection(cid=0, address="127.0.0.1"),)
    closing = "Session: 5\n    Connection: 2\n        Initiator: iqn.x:y\n        \n"
    assert parse_connections(closing)[0].connections == (Connection(cid=2, address=""),)
    assert parse_connections("") == ()
    with pytest.raises(Failed, match="cannot parse the connections"):
        parse_connections(closing + "Session: x\n")


def test_tgts_rounding_of_sizes() -> None:
    """Seen: 64 MiB are 67 MB, 1 GiB is 1074 MB. Sizes of whole MiB never look alike."""
    assert (shown_size(64 * MIB), shown_size(GIB)) == (67, 1074)
    shown = [shown_size(size * MIB) for size in range(1, 20000)]
    assert len(set(shown)) == len(shown)


def test_fillers_are_told_from_people() -> None:
    assert filler(["test1"]) == "#0"
    assert filler(["#0", "test1", "#1"]) == "#2"
    assert is_filler("#12")
    assert not is_filler("test1#12")


def test_tcp_connections_of_a_port(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    row = "   0: {} {} {} 00000000:00000000 00:00000000 00000000     0        0 {} 1 0000000000000000 100 0 0 10 0\n"
    (tmp_path / "tcp").write_text(
        head
        + row.format("031F10AC:0CBC", "00000000:0000", "0A", 1)  # listens
        + row.format("031F10AC:0CBC", "011F10AC:A001", "01", 2)
        + row.format("031F10AC:0CBC", "011F10AC:A002", "08", 3)
        + row.format("031F10AC:0CBC", "021F10AC:A003", "06", 4)  # TIME_WAIT
        + row.format("031F10AC:0016", "021F10AC:A004", "01", 5)  # another port
    )
    (tmp_path / "tcp6").write_text(
        head
        + row.format("0000000000000000FFFF0000031F10AC:0CBC", "0000000000000000FFFF0000021F10AC:A005", "01", 6)
        + row.format("B80D0120000000000000000003000000:0CBC", "B80D0120000000000000000001000000:A006", "01", 7)
    )
    peers = connections(3260, tmp_path)
    assert by_address(peers) == {"172.16.31.1": 2, "172.16.31.2": 1, "2001:db8::1": 1}
    assert [peer.inode for peer in peers] == ["2", "3", "6", "7"]
    (tmp_path / "tcp6").unlink()
    assert len(connections(3260, tmp_path)) == 2
