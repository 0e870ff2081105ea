"""What the doctor makes of the store's members."""

from __future__ import annotations

from dataclasses import replace

import pytest

from veery.cluster import upkeep
from veery.cluster.voters import Voter, VoterHash, VoterStatus
from veery.model.health import Finding, Level
from veery.model.node import Node, Role
from veery.node.storehealth import MemberReading, StoreReading, judge_members, judge_store

QUOTA = 1000


def node(name: str, *roles: Role) -> Node:
    return Node(name=name, address="127.0.0.1", roles=roles or (Role.VOTER,), driver="", relocation_address="")


def member(number: int, name: str, *, hash: int = 7, compacted: int = 3, size: int = 100) -> MemberReading:
    status = VoterStatus(number, "3.4.23", 1, False, 5, size, size, 9)
    return MemberReading(Voter(number, name, ("p",), ("c",), False), status, VoterHash(9, compacted, hash))


def reading(*members: MemberReading) -> StoreReading:
    return StoreReading(members, (node("a"), node("b"), node("c"), node("d", Role.STORAGE)))


def judged(store: StoreReading) -> dict[tuple[str, str], Finding]:
    rows = [*judge_members(store, quota=QUOTA), *judge_store("a", store, quota=QUOTA)]
    return {(row.node, row.what): row for row in rows if row.level is not Level.OK}


A, B, C = member(1, "a"), member(2, "b"), member(3, "c")


def test_three_members_that_agree_are_well() -> None:
    assert judged(reading(A, B, C)) == {}


def test_a_voter_without_a_member_and_a_member_without_a_node() -> None:
    found = judged(reading(A, B, member(4, "e")))
    assert found["c", "store"].level is found["e", "store"].level is Level.BAD
    assert "no member there" in found["c", "store"].told
    assert "member remove 4" in found["e", "store"].advice


def test_voters_that_are_down() -> None:
    silent = replace(C, status=None, hash=None)
    assert judged(reading(A, B, silent))["a", "voters"].level is Level.BAD
    assert "down: c" in judged(reading(A, B, silent))["a", "voters"].told
    five = (A, B, member(4, "d"), member(5, "e"))
    assert judged(reading(*five, silent))["a", "voters"].level is Level.WARN
    lost = replace(B, status=replace(B.status, leader=0) if B.status else None)
    assert judged(reading(A, lost, C))["b", "store"].told == "knows no leader"


@pytest.mark.parametrize(("size", "level"), [(501, Level.WARN), (901, Level.BAD)])
def test_a_store_that_fills(size: int, level: Level) -> None:
    row = judged(reading(A, B, member(3, "c", size=size)))["c", "store"]
    assert (row.level, row.advice) == (level, "veery cluster defrag")


@pytest.mark.parametrize(("kind", "advice"), [("NOSPACE", "veery cluster defrag"), ("CORRUPT", "docs/hosts.md")])
def test_alarms(kind: str, advice: str) -> None:
    assert A.status is not None
    row = judged(reading(replace(A, status=replace(A.status, alarms=((1, kind),))), B, C))["a", "store alarm"]
    assert (row.level, kind in row.told, advice in row.advice) == (Level.BAD, True, True)


def test_members_that_differ_at_one_revision() -> None:
    row = judged(reading(A, member(2, "b", hash=8), C))["a", "store data"]
    assert (row.level, row.told) == (Level.BAD, "b differs at revision 9")
    row = judged(reading(A, member(2, "b", hash=8)))["a", "store data"]
    assert row.told == "a, b differ at revision 9"
    assert ("a", "store data") not in judged(reading(A, member(2, "b", hash=8, compacted=4), C))


def test_a_voter_is_spared_only_where_the_others_are_a_majority() -> None:
    seen = [upkeep.Seen(each.voter, "", each.status) for each in (A, B, C)]
    assert upkeep.spare(seen, 1) == ""
    assert "only 1 of 3" in upkeep.spare([*seen[:2], replace(seen[2], status=None)], 1)
    assert upkeep.spare([*seen[:2], replace(seen[2], status=None)], 3) == ""
    assert "only 0 of 1" in upkeep.spare(seen[:1], 1)
