"""The voters: the members of etcd, read and changed by its cluster and maintenance calls.

A new member joins as a learner. A learner has no vote, so it cannot cost the cluster its majority; it is promoted
when it has caught up (etcd docs, learning/design-learner)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from veery.cluster.gateway import Declined, Gateway, NotDone, Unanswered
from veery.cluster.store import StoreUnavailable
from veery.errors import OutcomeUnknown, Refused

CHANGE_TIMEOUT_S = 20.0  # for a change of members that etcd rejects as too early
_ALARM = re.compile(r"(?:memberID:(\d+) )?alarm:(\w+)")  # in the status answer (AlarmMember.String)
TOO_EARLY = ("in sync with leader", "too many learner members", "not enough started members")
# etcd makes a member's id from its peer URL and the time in seconds (membership/member.go, NewMember). A member that is
# added in the second of its removal would get the removed id; etcd rejects that with these words.
TOO_SOON = ("member not found",)


@dataclass(frozen=True, slots=True)
class Voter:
    """One etcd member. `name` is "" until its first start; a `learner` has no vote yet."""

    id: int
    name: str
    peers: tuple[str, ...]
    clients: tuple[str, ...]
    learner: bool


@dataclass(frozen=True, slots=True)
class VoterStatus:
    """One member's status of itself. `leader`: 0 if it knows none. `size`: of its file, `in_use`: of the data in it, in
    bytes. `alarms`: etcd's own ("NOSPACE", "CORRUPT"), each with the member that raised it."""

    id: int
    version: str
    leader: int
    learner: bool
    index: int
    size: int
    in_use: int = 0
    revision: int = 0
    alarms: tuple[tuple[int, str], ...] = ()
    cluster: str = ""  # etcd's id of the store


@dataclass(frozen=True, slots=True)
class VoterHash:
    """The hash of all keys of one member at `revision`. Hashes are comparable if `compacted` is equal too."""

    revision: int
    compacted: int
    hash: int


class _Member(msgspec.Struct):
    ID: int = 0
    name: str = ""
    peerURLs: list[str] = []  # noqa: N815 (etcd's name)
    clientURLs: list[str] = []  # noqa: N815
    isLearner: bool = False  # noqa: N815

    def voter(self) -> Voter:
        return Voter(self.ID, self.name, tuple(self.peerURLs), tuple(self.clientURLs), self.isLearner)


class _Header(msgspec.Struct):
    member_id: int = 0
    cluster_id: int = 0
    revision: int = 0


class _Members(msgspec.Struct):
    members: list[_Member] = []
    header: _Header = msgspec.field(default_factory=_Header)


class _Status(msgspec.Struct):
    header: _Header
    version: str = ""
    leader: int = 0
    dbSize: int = 0  # noqa: N815
    dbSizeInUse: int = 0  # noqa: N815
    raftAppliedIndex: int = 0  # noqa: N815
    isLearner: bool = False  # noqa: N815
    errors: list[str] = []

    def status(self) -> VoterStatus:
        return VoterStatus(
            id=self.header.member_id,
            version=self.version,
            leader=self.leader,
            learner=self.isLearner,
            index=self.raftAppliedIndex,
            size=self.dbSize,
            in_use=self.dbSizeInUse,
            revision=self.header.revision,
            alarms=tuple((int(number or 0), kind) for each in self.errors for number, kind in _ALARM.findall(each)),
            cluster=f"{self.header.cluster_id:x}",
        )


class _Hash(msgspec.Struct):
    header: _Header
    hash: int = 0
    compact_revision: int = 0


class _Nothing(msgspec.Struct):
    pass


class Voters:
    """The members of the etcd cluster behind one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def all(self) -> tuple[Voter, ...]:
        """Return all members, learners too. Raises StoreUnavailable."""
        answer = await self._gateway.read("/v3/cluster/member/list", {}, _Members)
        return tuple(member.voter() for member in answer.members)

    async def store(self) -> str:
        """Return etcd's id of the store. Raises StoreUnavailable."""
        answer = await self._gateway.read("/v3/cluster/member/list", {}, _Members)
        return f"{answer.header.cluster_id:x}"

    async def status(self, endpoint: str, *, within: float = 2.0) -> VoterStatus:
        """Return the status of the member at `endpoint`. Raises StoreUnavailable."""
        path = "/v3/maintenance/status"
        try:
            answer = await self._gateway.ask(endpoint, path, {}, _Status, within=within, leader=False)
        except (NotDone, Unanswered, Declined) as error:
            raise StoreUnavailable(f"the voter does not answer ({error})") from error
        return answer.status()

    async def hash_kv(self, peer: str, revision: int, *, within: float = 5.0) -> VoterHash:
        """Return the hash of the member with peer URL `peer`, at `revision`. Raises StoreUnavailable if it has that
        revision no longer or not yet.

        The request goes to its peer port, as in etcd's own check (etcdserver/corrupt.go): in the gateway of etcd before
        3.5.10 the path of HashKV leads to another call, which takes no revision."""
        body = {"revision": revision}
        try:
            answer = await self._gateway.ask(
                peer, "/members/hashkv", body, _Hash, within=within, leader=False, method="GET"
            )
        except (NotDone, Unanswered, Declined) as error:
            raise StoreUnavailable(f"the voter returns no hash ({error})") from error
        return VoterHash(revision=revision, compacted=answer.compact_revision, hash=answer.hash)

    async def compact(self, revision: int) -> None:
        """Delete the history before `revision`; a repeat is no error. Raises StoreUnavailable, OutcomeUnknown."""
        try:
            await self._gateway.write("/v3/kv/compaction", {"revision": revision, "physical": True}, _Nothing)
        except Declined as error:
            if "has been compacted" not in error.reason:
                raise

    async def defragment(self, endpoint: str, *, within: float) -> None:
        """Make the member at `endpoint` rewrite its file without holes. It answers nothing meanwhile. Raises
        StoreUnavailable if it does not confirm the end."""
        path = "/v3/maintenance/defragment"
        try:
            await self._gateway.ask(endpoint, path, {}, _Nothing, within=within, leader=False)
        except (NotDone, Unanswered, Declined) as error:
            raise StoreUnavailable(f"the voter was not defragmented ({error})") from error

    async def disarm(self, member: int, kind: str) -> None:
        """Remove alarm `kind` of `member`. Raises StoreUnavailable, OutcomeUnknown."""
        body = {"action": "DEACTIVATE", "memberID": member, "alarm": kind}
        await self._gateway.write("/v3/maintenance/alarm", body, _Nothing)

    async def hand_over(self, endpoint: str, member: int) -> None:
        """Make the leader, the member at `endpoint`, transfer its leadership to `member`: no election follows, and
        writes wait for milliseconds only. Raises StoreUnavailable: the leader stays, or an election follows."""
        path = "/v3/maintenance/transfer-leadership"
        try:
            await self._gateway.ask(endpoint, path, {"targetID": member}, _Nothing, within=3.0)
        except (NotDone, Unanswered, Declined) as error:
            raise StoreUnavailable(f"the store's leader stays as it is ({error})") from error

    async def add_learner(self, peer: str) -> tuple[Voter, ...]:
        """Add a member with the peer URL `peer` as a learner; return all members. An existing member is kept.

        etcd accepts one learner at a time, so this waits for the promotion of another. Raises Refused,
        StoreUnavailable, OutcomeUnknown."""
        members = await self.all()
        if any(peer in member.peers for member in members):
            return members
        body = {"peerURLs": [peer], "isLearner": True}
        early = (*TOO_EARLY, *TOO_SOON)
        await self._insist("/v3/cluster/member/add", body, done="Peer URLs already exists", early=early)
        return await self.all()

    async def update(self, member: int, peers: Sequence[str]) -> None:
        """Set the peer URLs of `member` to `peers`; the others try one after the other. A repeated call is no error.
        Raises Refused, StoreUnavailable, OutcomeUnknown."""
        body = {"ID": member, "peerURLs": list(peers)}
        await self._insist("/v3/cluster/member/update", body, done="no update")

    async def promote(self, member: int) -> None:
        """Give learner `member` its vote; wait while it catches up. Raises as `add_learner`."""
        await self._insist("/v3/cluster/member/promote", {"ID": member}, done="can only promote a learner member")

    async def remove(self, member: int) -> None:
        """Remove `member`. Refuse if the other members that answer would be no majority among themselves.

        Raises Refused, StoreUnavailable, OutcomeUnknown."""
        members = await self.all()
        leaving = next((each for each in members if each.id == member), None)
        if leaving is None:
            return
        others = [each for each in members if each.id != member and not each.learner]
        if not others:
            raise Refused(f"{leaving.name} is the last voter", hint="make another node a voter first")
        if not leaving.learner:
            up = [each for each in others if await self._answers(each)]
            if len(up) <= len(others) // 2:
                raise Refused(
                    f"without voter {leaving.name} only {len(up)} of {len(others)} voters would be up",
                    hint="start the others first, or make another node a voter",
                )
        await self._insist("/v3/cluster/member/remove", {"ID": member}, done="member not found")

    async def _answers(self, voter: Voter) -> bool:
        for endpoint in voter.clients:
            try:
                return (await self.status(endpoint)).leader != 0
            except StoreUnavailable:
                continue
        return False

    async def _insist(self, path: str, body: dict[str, object], *, done: str, early: Sequence[str] = TOO_EARLY) -> None:
        """Request a change of members until etcd accepts it. etcd's answers in `early` mean that it is too early. A
        repeated request does no harm: etcd then rejects it with the words `done`."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + CHANGE_TIMEOUT_S
        while True:
            try:
                await self._gateway.write(path, body, _Members)
                return
            except Declined as error:
                if error.reason.endswith(done):
                    return
                if loop.time() > ends or not any(words in error.reason for words in early):
                    raise Refused(error.message, hint="try again when all voters are up") from error
            except (OutcomeUnknown, StoreUnavailable):
                if loop.time() > ends:
                    raise
            await asyncio.sleep(0.25)
