"""What the doctor makes of what it sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.host import kept
from veery.model.domain import DomainReading, DomainState
from veery.model.health import Health, Heard, Level
from veery.node.doctor import (
    DAY_S,
    judge_bridges,
    judge_clock,
    judge_copies,
    judge_domains,
    judge_end,
    judge_ends,
    judge_files,
    judge_promises,
    judge_room,
    judge_shared,
    judge_versions,
)
from veery.storage.room import Usage


def health(node: str, *, version: str = "1.0", epoch: float = 1000.0, **bridges: int) -> Health:
    return Health(node=node, version=version, epoch=epoch, bridges=bridges, findings=())


@pytest.mark.parametrize(
    ("epoch", "answered", "level"),
    [
        (1000.0, 1000.2, Level.OK),
        (1000.9, 1000.2, Level.OK),
        (1004.0, 1010.0, Level.OK),  # it may have been asked late: nothing is known
        (1003.0, 1000.2, Level.WARN),
        (996.0, 1000.2, Level.WARN),
        (1060.0, 1000.2, Level.BAD),
        (940.0, 1000.2, Level.BAD),
    ],
)
def test_clocks(epoch: float, answered: float, level: Level) -> None:
    found = judge_clock(Heard(health=health("test1", epoch=epoch), asked=1000.0, answered=answered))
    assert found.level is level
    assert bool(found.advice) == (level is not Level.OK)
    if level is Level.BAD:
        assert ("ahead of" if epoch > 1000 else "behind") in found.told


def test_versions_and_bridges_alike() -> None:
    rows = judge_versions([health("a"), health("b"), health("c", version="2.0")])
    assert [row.level for row in rows] == [Level.OK, Level.OK, Level.WARN]
    assert rows[2].told == "2.0, while most nodes have 1.0"
    assert judge_versions([]) == []

    rows = judge_bridges([health("a", xenbr0=1500), health("b", xenbr0=1500, dmz=1500), health("c", xenbr0=9000)])
    assert [(row.node, row.level) for row in rows] == [("a", Level.WARN), ("b", Level.OK), ("c", Level.WARN)]
    assert rows[0].told == "lacks dmz"
    rows = judge_bridges([health("a", xenbr0=1500), health("b", xenbr0=1500), health("c", xenbr0=9000)])
    assert [row.level for row in rows] == [Level.OK, Level.OK, Level.WARN]
    assert "MTU of xenbr0" in rows[2].told


def test_room_and_certificates() -> None:
    assert [judge_room("a", "disk", 1000, free).level for free in (500, 99, 19, 0)] == [
        Level.OK,
        Level.WARN,
        Level.BAD,
        Level.BAD,
    ]
    assert judge_room("a", "disk", 0, 0).level is Level.BAD
    ends = [judge_end("a", "certificate", days * DAY_S, 0.0) for days in (400, 31, 29, -1)]
    assert [found.level for found in ends] == [Level.OK, Level.OK, Level.WARN, Level.BAD]
    assert (ends[0].told, ends[3].told) == ("good for 400 days", "ended 1 days ago")


def test_a_file_that_was_put_aside_is_bad_until_it_is_removed(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    file = tmp_path / "journal" / "m1.source.json"
    file.write_bytes(bytes(3))
    kept.put_aside(file, "NUL bytes")
    (bad,) = judge_files("test1", kept.unreadable([tmp_path]), ())
    assert bad.level is Level.BAD
    assert "m1.source.json.unreadable" in bad.told
    (tmp_path / "journal" / "m1.source.json.unreadable").unlink()
    assert [one.level for one in judge_files("test1", kept.unreadable([tmp_path]), ())] == [Level.OK]
    (bad,) = judge_files("test1", (), ("process 7, /run/veery/domains/3",))
    assert (bad.level, "process 7" in bad.told) == (Level.BAD, True)


def test_programs_that_end_again_and_again_pools_and_copies() -> None:
    assert [judge_ends("a", "etcd", ends).level for ends in (0, 2, 3)] == [Level.OK, Level.OK, Level.BAD]
    usage = Usage(total=1000, free=500, promised=600, taken=100, shared=False)
    assert judge_promises("a", usage).level is judge_shared("a", Path("/p"), usage).level is Level.OK
    usage = Usage(total=1000, free=500, promised=601, taken=100, shared=True)
    assert judge_promises("a", usage).level is judge_shared("a", Path("/p"), usage).level is Level.WARN
    levels = [judge_copies("a", newest, 9 * DAY_S).level for newest in (0.0, 6 * DAY_S, 8 * DAY_S)]
    assert levels == [Level.WARN, Level.WARN, Level.OK]


def reading(name: str, state: DomainState, reason: str = "") -> DomainReading:
    return DomainReading(
        name=name, uuid=name, domid=1, state=state, memory=64, vcpus=1, cpu_seconds=0, started=0, reason=reason
    )


def test_a_domain_that_its_disk_has_stopped_is_bad_and_named() -> None:
    full = reading("web", DomainState.PAUSED, "virtio0: No space left on device")
    others = [reading("db", DomainState.PAUSED), reading("dns", DomainState.RUNNING)]
    (found,) = judge_domains("a", others, lambda name: "")
    assert found.level is Level.OK
    (found,) = judge_domains("a", [full, *others], lambda name: "")
    assert (found.node, found.what, found.level) == ("a", "domains", Level.BAD)
    assert found.told == "web is stopped by an error of its disk (virtio0: No space left on device)"
    assert found.advice == "after the repair: veery --node a unpause web"
    (found,) = judge_domains("a", [full], lambda name: f"{name} is being moved (COPY, move m1)")
    assert "unpause" not in found.advice, "unpause is refused while it is moved"
    assert "web is being moved (COPY, move m1)" in found.advice
