"""Upkeep of the store itself: space in its file, copies of it, and whether one voter can be spared.

A full store (etcd's alarm NOSPACE) accepts only deletions until three steps are done, in this order: its history is
compacted, each member's file is defragmented, and the alarm is removed (etcd docs, op-guide/maintenance)."""

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
DISARM_FRACTION = 0.9  # of the quota: the alarm is removed once every file is below it
DEFRAGMENT_TIMEOUT_S = 120.0  # for one member
LEADER_TIMEOUT_S = 30.0  # for a member to know a leader after its defragmentation
QUIET_TIMEOUT_S = 20.0  # without a byte of a snapshot
SNAPSHOT_MAX_BYTES = 16 << 30  # etcd advises against more than 8 GiB
TRAILER_BYTES = hashlib.sha256().digest_size

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """One voter and its answer: `status` is None if it gave none; `endpoint` is the URL that was asked."""

    voter: Voter
    endpoint: str
    status: VoterStatus | None

    @property
    def well(self) -> bool:
        """Return whether the voter answers, knows a leader and has a vote."""
        return self.status is not None and self.status.leader != 0 and not self.voter.learner


async def look(voters: Voters) -> tuple[Seen, ...]:
    """Return every member with its present answer. Raises StoreUnavailable if the members cannot be listed."""

    async def one(voter: Voter) -> Seen:
        for endpoint in voter.clients:
            with contextlib.suppress(StoreUnavailable):
                return Seen(voter, endpoint, await voters.status(endpoint))
        return Seen(voter, voter.clients[0] if voter.clients else "", None)

    return tuple(await asyncio.gather(*(one(voter) for voter in await voters.all())))


def spare(seen: Sequence[Seen], id: int) -> str:
    """Return why member `id` cannot be spared for a while: "" if the others are a majority without it."""
    voting = [each for each in seen if not each.voter.learner]
    others = [each for each in voting if each.voter.id != id and each.well]
    if len(others) > len(voting) // 2:
        return ""
    return f"without it only {len(others)} of {len(voting)} voters answer"


async def hand_over(voters: Voters, endpoint: str, member: int) -> None:
    """Hand the leadership over as Voters.hand_over does; if that fails, a harmless election follows."""
    try:
        await voters.hand_over(endpoint, member)
    except StoreUnavailable as error:
        log.warning("no other member leads yet: %s", error)


# ---- space
@dataclass(frozen=True, slots=True)
class Defragmented:
    """The size of one voter's file, in bytes, before and after its defragmentation."""

    name: str
    before: int
    after: int


async def defragment(voters: Voters, *, quota: int) -> list[Defragmented]:
    """Compact the store's history, defragment one voter after the other, the leader last, and remove the alarm NOSPACE
    if there is space again; `quota` in bytes.

    Raises Refused if a voter does not answer (of three voters, one busy and one absent are too many), Failed if the
    store is still full, StoreUnavailable, OutcomeUnknown: call it again."""
    seen = await look(voters)
    if silent := [each.voter.name or "(never started)" for each in seen if each.status is None]:
        raise Refused(f"voter {', '.join(silent)} does not answer", hint="start it first: veery doctor --all shows why")
    states = [(each, each.status) for each in seen if each.status is not None]
    await voters.compact(max(status.revision for _, status in states))
    states.sort(key=lambda pair: pair[1].leader == pair[1].id)
    done = []
    for each, status in states:
        await voters.defragment(each.endpoint, within=DEFRAGMENT_TIMEOUT_S)
        now = await _back(voters, each.endpoint)
        done.append(Defragmented(each.voter.name, status.size, now.size))
    await _disarm(voters, quota)
    return done


async def _back(voters: Voters, endpoint: str) -> VoterStatus:
    loop = asyncio.get_running_loop()
    ends = loop.time() + LEADER_TIMEOUT_S
    while True:
        with contextlib.suppress(StoreUnavailable):
            status = await voters.status(endpoint)
            if status.leader:
                return status
        if loop.time() > ends:
            raise Failed(f"{endpoint} knows no leader since it was defragmented", hint="veery doctor --all shows why")
        await asyncio.sleep(0.2)


async def _disarm(voters: Voters, quota: int) -> None:
    """Remove the alarm NOSPACE. Raises Failed if a file is still full: the next write would raise it again."""
    states = [each.status for each in await look(voters) if each.status is not None]
    alarms = {alarm for status in states for alarm in status.alarms if alarm[1] == NOSPACE}
    if not alarms:
        return
    largest = max(status.size for status in states)
    if largest > DISARM_FRACTION * quota:
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
    """Write one member's copy of the store to the new file `path`, which only its owner may read; return its size in
    bytes. The copy contains secrets: the CA's key, the passwords of the targets. Without `leader` a member that knows
    no leader may send it too.

    Raises Refused if the file exists, Failed if the copy is incomplete (it is deleted then) or cannot be written."""
    if path.exists() or path.is_symlink():
        raise Refused(f"{path} exists already", hint="give the name of a new file")
    part = path.with_name(f"{path.name}.part")
    try:
        handle = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)  # it may be left by an earlier attempt, with another mode
            size = await _receive(gateway, file, leader)
            file.flush()
            await asyncio.to_thread(os.fsync, handle)
        part.rename(path)
        return size
    except OSError as error:
        raise Failed(f"{part}: {error.strerror}", hint="give a file in an existing folder with free space") from error
    finally:
        part.unlink(missing_ok=True)


async def _receive(gateway: Gateway, file: BinaryIO, leader: bool) -> int:
    """Write the stream to `file`; return its size. etcd sends the database, then its SHA-256 as proof that all came."""
    digest, held, size, why = hashlib.sha256(), b"", 0, ""
    try:
        async for line in gateway.lines("/v3/maintenance/snapshot", {}, quiet=QUIET_TIMEOUT_S, leader=leader):
            held += b64decode(msgspec.json.decode(line, type=_Piece).result.blob)
            if len(held) > TRAILER_BYTES:
                digest.update(held[:-TRAILER_BYTES])
                size += file.write(held[:-TRAILER_BYTES])
                held = held[-TRAILER_BYTES:]
            if size > SNAPSHOT_MAX_BYTES:
                raise Failed(f"the store is larger than {format_size(SNAPSHOT_MAX_BYTES)}", hint="veery cluster defrag")
    except Unanswered as error:  # a complete stream ends in this way too
        why = str(error)
    except (msgspec.DecodeError, ValueError) as error:
        why = f"a piece is unreadable: {error}"
    if len(held) < TRAILER_BYTES or digest.digest() != held:
        raise Failed(f"the copy of the store is incomplete: {why}", hint="try again; veery doctor --all")
    return size + file.write(held)


def kept(folder: Path) -> list[Path]:
    """Return the daily copies in `folder`, the newest first."""
    return sorted(folder.glob("store-*.db"), reverse=True)


def name_of(epoch: float) -> str:
    """Return the file name of a copy made at `epoch`; names sort by time."""
    return time.strftime("store-%Y%m%dT%H%M%SZ.db", time.gmtime(epoch))


def room_for_copy(free: int, total: int, size: int) -> bool:
    """Return whether a copy of `size` bytes leaves a tenth of the filesystem, and 64 MiB, free for etcd."""
    return free - size > max(total // 10, 64 * MIB)
