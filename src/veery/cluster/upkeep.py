"""Upkeep of the store itself: room in its file, copies of it, and whether one voter can be spared.

A full store (etcd's alarm NOSPACE) takes nothing but deletions until its history is compacted, each member's file is
written anew, and the alarm is taken back, in this order (etcd docs, op-guide/maintenance)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from veery.cluster.gateway import Gateway, Unanswered
from veery.cluster.store import StoreUnavailable
from veery.cluster.voters import Voter, Voters, VoterStatus
from veery.errors import Failed, Refused
from veery.model.units import MIB, format_size

log = logging.getLogger(__name__)

NOSPACE = "NOSPACE"
ROOM_AGAIN = 0.9  # of the quota: a file below it takes writes again
DEFRAGMENT_S = 120.0  # for one member
BACK_S = 30.0  # for a member to know a leader after it
QUIET_S = 20.0  # without a byte of a snapshot
LARGEST = 16 << 30  # bytes of a snapshot; etcd advises against more than 8 GiB
TRAILER = hashlib.sha256().digest_size

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """One voter and its answer; `status` is None where it gave none, `endpoint` where it was asked."""

    voter: Voter
    endpoint: str
    status: VoterStatus | None

    @property
    def well(self) -> bool:
        """Whether it answers, knows a leader and has a vote."""
        return self.status is not None and self.status.leader != 0 and not self.voter.learner


async def look(voters: Voters) -> tuple[Seen, ...]:
    """Every member, as it answers now. Raises StoreUnavailable where the members cannot be listed."""

    async def one(voter: Voter) -> Seen:
        for endpoint in voter.clients:
            with contextlib.suppress(StoreUnavailable):
                return Seen(voter, endpoint, await voters.status(endpoint))
        return Seen(voter, voter.clients[0] if voter.clients else "", None)

    return tuple(await asyncio.gather(*(one(voter) for voter in await voters.all())))


def spare(seen: Sequence[Seen], id: int) -> str:
    """Why member `id` cannot be without an answer for a while: "" where the others are a majority without it."""
    voting = [each for each in seen if not each.voter.learner]
    others = [each for each in voting if each.voter.id != id and each.well]
    if len(others) > len(voting) // 2:
        return ""
    return f"without it only {len(others)} of {len(voting)} voters answer"


async def hand_over(voters: Voters, endpoint: str, member: int) -> None:
    """As Voters.hand_over; where it fails an election follows, which is no harm."""
    try:
        await voters.hand_over(endpoint, member)
    except StoreUnavailable as error:
        log.warning("no other member leads yet: %s", error)


# ---- room
@dataclass(frozen=True, slots=True)
class Defragmented:
    """One voter's file, in bytes, before and after."""

    name: str
    before: int
    after: int


async def defragment(voters: Voters, *, quota: int) -> list[Defragmented]:
    """Compact the store's history, have one voter after the other write its file anew, the leader last, and take the
    alarm NOSPACE back where there is room again; `quota` in bytes.

    Raises Refused where a voter does not answer (with three, one that is busy and one that is away are too many),
    Failed where the store is still full, StoreUnavailable, OutcomeUnknown: call it again."""
    seen = await look(voters)
    if silent := [each.voter.name or "one that has not started" for each in seen if each.status is None]:
        raise Refused(f"voter {', '.join(silent)} does not answer", hint="bring it up first: veery doctor --all tells")
    states = [(each, each.status) for each in seen if each.status is not None]
    await voters.compact(max(status.revision for _, status in states))
    states.sort(key=lambda pair: pair[1].leader == pair[1].id)
    done = []
    for each, status in states:
        await voters.defragment(each.endpoint, within=DEFRAGMENT_S)
        now = await _back(voters, each.endpoint)
        done.append(Defragmented(each.voter.name, status.size, now.size))
    await _disarm(voters, quota)
    return done


async def _back(voters: Voters, endpoint: str) -> VoterStatus:
    loop = asyncio.get_running_loop()
    ends = loop.time() + BACK_S
    while True:
        with contextlib.suppress(StoreUnavailable):
            status = await voters.status(endpoint)
            if status.leader:
                return status
        if loop.time() > ends:
            raise Failed(f"{endpoint} knows no leader since it was defragmented", hint="veery doctor --all tells why")
        await asyncio.sleep(0.2)


async def _disarm(voters: Voters, quota: int) -> None:
    """Take NOSPACE back. Raises Failed where a file is as full as before: the next write would raise it again."""
    states = [each.status for each in await look(voters) if each.status is not None]
    alarms = {alarm for status in states for alarm in status.alarms if alarm[1] == NOSPACE}
    if not alarms:
        return
    largest = max(status.size for status in states)
    if largest > ROOM_AGAIN * quota:
        raise Failed(
            f"the store is still full: {format_size(largest)} of {format_size(quota)}",
            hint="raise etcd.quota in veery.toml of each voter, then on each: veery node restart etcd",
        )
    for member, kind in sorted(alarms):
        await voters.disarm(member, kind)


# ---- copies
class _Blob(msgspec.Struct):
    blob: str = ""


class _Piece(msgspec.Struct):
    result: _Blob


async def backup(gateway: Gateway, path: Path, *, leader: bool = True) -> int:
    """Write a copy of the store, as one member has it, to the new file `path`, which only its owner may read; its size
    in bytes. It holds secrets: the CA's key, the passwords of the targets. Without `leader` also a member that knows no
    leader gives it.

    Raises Refused where there is such a file, Failed where the copy is not whole (nothing is left then) or cannot be
    written."""
    if path.exists() or path.is_symlink():
        raise Refused(f"{path} is there already", hint="give the name of a new file")
    part = path.with_name(f"{path.name}.part")
    try:
        handle = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)  # one that was left by an older try
            size = await _receive(gateway, file, leader)
            file.flush()
            await asyncio.to_thread(os.fsync, handle)
        part.rename(path)
        return size
    except OSError as error:
        raise Failed(f"{part}: {error.strerror}", hint="give a file in a folder that is there and has room") from error
    finally:
        part.unlink(missing_ok=True)


async def _receive(gateway: Gateway, file: BinaryIO, leader: bool) -> int:
    """Write the stream to `file`; its size. etcd sends the database, then its SHA-256: by that all of it came."""
    digest, held, size, why = hashlib.sha256(), b"", 0, ""
    try:
        async for line in gateway.lines("/v3/maintenance/snapshot", {}, quiet=QUIET_S, leader=leader):
            held += b64decode(msgspec.json.decode(line, type=_Piece).result.blob)
            if len(held) > TRAILER:
                digest.update(held[:-TRAILER])
                size += file.write(held[:-TRAILER])
                held = held[-TRAILER:]
            if size > LARGEST:
                raise Failed(f"the store is larger than {format_size(LARGEST)}", hint="veery cluster defrag")
    except Unanswered as error:  # so it ends also when it is whole
        why = str(error)
    except (msgspec.DecodeError, ValueError) as error:
        why = f"a piece is unreadable: {error}"
    if len(held) < TRAILER or digest.digest() != held:
        raise Failed(f"the copy of the store is not whole: {why}", hint="try again; veery doctor --all")
    return size + file.write(held)


def kept(folder: Path) -> list[Path]:
    """The daily copies in `folder`, the newest first."""
    return sorted(folder.glob("store-*.db"), reverse=True)


def name_of(epoch: float) -> str:
    """The file name of a copy made at `epoch`; names sort by time."""
    return time.strftime("store-%Y%m%dT%H%M%SZ.db", time.gmtime(epoch))


def room_for_copy(free: int, total: int, size: int) -> bool:
    """Whether a copy of `size` bytes leaves the filesystem a tenth, and 64 MiB, that etcd needs more."""
    return free - size > max(total // 10, 64 * MIB)
