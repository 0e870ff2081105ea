"""The doctor's checks of the store's members: a reading of all members, and pure judgements on it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from veery.cluster import upkeep
from veery.cluster.store import StoreUnavailable
from veery.cluster.voters import Voter, VoterHash, Voters, VoterStatus
from veery.model.health import Finding, Level
from veery.model.node import Node, Role
from veery.model.units import format_size

FULL_WARN, FULL_BAD = 0.5, 0.9  # of the quota
TRIES = 3  # to find one revision that every member still has, and has already


@dataclass(frozen=True, slots=True)
class MemberReading:
    """One member of the store. `status` is None if it does not answer, `hash` None if it gave none."""

    voter: Voter
    status: VoterStatus | None
    hash: VoterHash | None = None

    @property
    def name(self) -> str:
        """Return the node's name, or the peer URL of a member that has not started yet."""
        return self.voter.name or ", ".join(self.voter.peers)


@dataclass(frozen=True, slots=True)
class StoreReading:
    """The members of the store and the nodes of the cluster, read at about the same time."""

    members: tuple[MemberReading, ...]
    nodes: tuple[Node, ...]


async def read(voters: Voters, nodes: Sequence[Node]) -> StoreReading:
    """Read all members, asking each one itself. Raises StoreUnavailable if the members cannot be listed."""
    for _ in range(TRIES):
        seen = await upkeep.look(voters)
        least = min((each.status.revision for each in seen if each.status), default=0)
        hashes = await asyncio.gather(*(_hash(voters, each, least) for each in seen))
        members = tuple(MemberReading(each.voter, each.status, hash) for each, hash in zip(seen, hashes, strict=True))
        told = [each for each in members if each.hash is not None]
        if len(told) == sum(each.status is not None for each in members):
            break
    return StoreReading(members, tuple(nodes))


async def _hash(voters: Voters, seen: upkeep.Seen, revision: int) -> VoterHash | None:
    if seen.status is None:
        return None
    for peer in seen.voter.peers:
        with contextlib.suppress(StoreUnavailable):
            return await voters.hash_kv(peer, revision)
    return None


# ---- pure
def judge_members(reading: StoreReading, *, quota: int) -> list[Finding]:
    """Judge each member, and each node that should be one; `quota` in bytes."""
    found = [_judge_member(each, quota) for each in reading.members]
    names, members = {node.name for node in reading.nodes}, {each.voter.name for each in reading.members}
    found += [
        _finding(
            each.name,
            Level.BAD,
            "the store has a member here, but the cluster has no such node",
            f"if it is gone for good, on a voter: etcdctl member remove {each.voter.id:x} (options: docs/ha.md)",
        )
        for each in reading.members
        if each.voter.name and each.voter.name not in names
    ]
    found += [
        _finding(
            node.name,
            Level.BAD,
            "it has the role voter, but the store has no member there",
            f"veery node vote off {node.name}, then on again: until then the store survives one loss less",
        )
        for node in reading.nodes
        if node.has(Role.VOTER) and node.name not in members
    ]
    return found


def judge_store(node: str, reading: StoreReading, *, quota: int) -> list[Finding]:
    """Judge the members together, as findings of `node`: how many answer, alarms, whether they have the same data."""
    return [judge_count(node, reading), *judge_alarms(node, reading), judge_hashes(node, reading)]


def judge_count(node: str, reading: StoreReading) -> Finding:
    """Judge how many voters answer, of how many, and how many more may be lost."""
    voting = [each for each in reading.members if not each.voter.learner]
    down = sorted(each.name for each in voting if each.status is None or each.status.leader == 0)
    up, most = len(voting) - len(down), len(voting) // 2 + 1
    told = f"{up} of {len(voting)} answer; {max(up - most, 0)} more may be lost"
    if not down:
        return _finding(node, Level.OK, told, what="voters")
    level = Level.BAD if up <= most else Level.WARN
    return _finding(node, level, f"{told}; down: {', '.join(down)}", "start them: see etcd.log there", what="voters")


def judge_alarms(node: str, reading: StoreReading) -> list[Finding]:
    """Return findings on etcd's own alarms."""
    kinds = {kind for each in reading.members if each.status for _, kind in each.status.alarms}
    advice = {
        "NOSPACE": ("the store accepts no writes: NOSPACE", "veery cluster defrag"),
        "CORRUPT": (
            "its members have different data, and it accepts no writes: CORRUPT",
            "docs/hosts.md, Members that differ",
        ),
    }
    found = []
    for kind in sorted(kinds):
        told, what = advice.get(kind, (kind, "see etcd.log on the voters"))
        found.append(_finding(node, Level.BAD, told, what, what="store alarm"))
    return found


def judge_hashes(node: str, reading: StoreReading) -> Finding:
    """Judge whether the members have the same keys at one revision. Only members with the same compaction are
    compared."""
    told = [(each.name, each.hash) for each in reading.members if each.hash is not None]
    if not told:
        return _finding(node, Level.WARN, "no member reports its hash", what="store data")
    groups: dict[tuple[int, int], Counter[int]] = {}
    for _, hash in told:
        groups.setdefault((hash.revision, hash.compacted), Counter())[hash.hash] += 1
    for (revision, compacted), counts in groups.items():
        if len(counts) == 1:
            continue
        usual = counts.most_common(1)[0][0]
        alike = [(name, hash) for name, hash in told if (hash.revision, hash.compacted) == (revision, compacted)]
        odd = [name for name, hash in alike if hash.hash != usual]
        who = f"{', '.join(odd)} differs" if counts[usual] > len(odd) else f"{', '.join(n for n, _ in alike)} differ"
        return _finding(
            node,
            Level.BAD,
            f"{who} at revision {revision}",
            "veery disarm, then docs/hosts.md, Members that differ",
            what="store data",
        )
    revision = told[0][1].revision
    most = max(counts.total() for counts in groups.values())
    return _finding(node, Level.OK, f"{most} of {len(reading.members)} compared at {revision}", what="store data")


def _judge_member(member: MemberReading, quota: int) -> Finding:
    status, advice = member.status, "see etcd.log in its run folder"
    if status is None:
        told = "its member does not answer" if member.voter.name else "a member that has not started yet"
        return _finding(member.name, Level.BAD, told, advice)
    if not status.leader:
        return _finding(member.name, Level.BAD, "knows no leader", advice)
    told = f"etcd {status.version}, {format_size(status.size)}"
    if status.size > FULL_WARN * quota:
        level = Level.BAD if status.size > FULL_BAD * quota else Level.WARN
        told += f" of {format_size(quota)} ({format_size(status.in_use)} in use)"
        return _finding(member.name, level, told, "veery cluster defrag")
    if member.voter.learner:
        return _finding(member.name, Level.WARN, f"{told}, without a vote yet")
    return _finding(member.name, Level.OK, told)


def _finding(node: str, level: Level, told: str, advice: str = "", *, what: str = "store") -> Finding:
    return Finding(node=node, what=what, level=level, told=told, advice=advice)
