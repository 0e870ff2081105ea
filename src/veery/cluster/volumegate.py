"""The gate of a volume's move: which storage node has the volume is decided by compare-and-set and by nothing else.

    begin                       the move is known; no domain starts or moves on the volume from here on
    commit    source -> target  the point of no return; uses the move's key up
    drop                        any side's way out before it; takes the key away

`commit` asks for the key as `begin` wrote it, and takes it away; so does `drop`. At most one of the two can find it.
A domain's start and a domain's reservation ask for its absence, `begin` for theirs (veery.cluster.owner)."""

from __future__ import annotations

import dataclasses
import logging

from veery.cluster.keys import OWNERS, RESERVATIONS, TID, VOLUME_MOVES, VOLUMES
from veery.cluster.store import Delete, Put, Store, StoreUnavailable, Unchanged
from veery.errors import Refused
from veery.host.log import decision
from veery.model.cluster import Owner
from veery.model.volume import Volume, VolumeMove

log = logging.getLogger(__name__)

ATTEMPTS = 8  # each lost to somebody else's change; more in a row means a fault, not a race


async def take_tid(store: Store, least: int) -> int:
    """A target's number that nobody else gets, at least `least`: it is unique in the whole cluster, for tgt makes the
    disk's NAA name out of it, and two storage nodes may ask at once. Raises StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        entry = await store.get(TID)
        tid = max(least, int(entry.value) + 1 if entry else 1)
        if (await store.commit([Unchanged(TID, entry.revision if entry else 0)], [Put(TID, str(tid).encode())])).held:
            return tid
    raise StoreUnavailable("targets' numbers change faster than they can be read", hint="try again")


async def standing(store: Store, volume: str) -> VolumeMove | None:
    """The move of `volume` that is under way. Raises StoreUnavailable."""
    return await VOLUME_MOVES.get(store, volume)


async def begin(store: Store, move: VolumeMove, owner: Owner | None) -> VolumeMove:
    """Write the move's key; with its revision. `owner` is that of the domain which uses the volume.

    Raises Refused where the volume has changed or is being moved, or its domain moves or has another owner by now;
    StoreUnavailable, OutcomeUnknown."""
    entry = await store.get(VOLUMES.key(move.volume))
    if entry is None or VOLUMES.value(entry).node != move.source or not VOLUMES.value(entry).ready:
        raise Refused(f"volume {move.volume} is not whole on {move.source}", hint="veery volume list shows it")
    conditions = [Unchanged(VOLUMES.key(move.volume), entry.revision), Unchanged(VOLUME_MOVES.key(move.volume), 0)]
    if owner is not None:
        conditions.append(Unchanged(OWNERS.key(owner.domain), owner.revision))
        conditions.append(Unchanged(RESERVATIONS.key(owner.domain), 0))
    done = await store.commit(conditions, [VOLUME_MOVES.put(move.volume, move)])
    if done.held:
        log.info(decision("volume.begin", volume=move.volume, move=move.id, source=move.source, target=move.target))
        return dataclasses.replace(move, revision=done.revision)
    if other := await standing(store, move.volume):
        raise being_moved(other)
    if owner is not None and (promise := await RESERVATIONS.get(store, owner.domain)):
        raise Refused(
            f"{owner.domain}, which uses volume {move.volume}, is being moved to {promise.target}",
            hint="wait for its end: veery moves",
        )
    raise Refused(f"volume {move.volume} or its domain has just changed", hint="try again")


async def commit(store: Store, move: VolumeMove, owner: Owner | None) -> None:
    """THE point of no return: from here on the record names the target. The caller vouches that the target has every
    write that was acknowledged, and that there will be none until the domain has turned to the target.

    Raises Refused when the gate is shut: nothing was changed by us. StoreUnavailable: surely not done.
    OutcomeUnknown: `drop` tells."""
    conditions = [Unchanged(VOLUME_MOVES.key(move.volume), move.revision)]
    if owner is not None:
        conditions.append(Unchanged(OWNERS.key(owner.domain), owner.revision))
    operations: list[Put | Delete] = [VOLUMES.put(move.volume, move.place), Delete(VOLUME_MOVES.key(move.volume))]
    if not (await store.commit(conditions, operations)).held:
        raise Refused(
            f"volume {move.volume} is not given to {move.target}: its move was broken off",
            hint=f"it is on {move.source}; order the move again",
        )
    log.info(decision("volume.commit", volume=move.volume, move=move.id, source=move.source, target=move.target))


async def drop(store: Store, move: VolumeMove) -> Volume | None:
    """Take the move's key away; the volume's record as it is for good: COMMIT of this move can no longer succeed.
    Raises StoreUnavailable, OutcomeUnknown: ask again."""
    key = VOLUME_MOVES.key(move.volume)
    for _ in range(ATTEMPTS):
        entry = await store.get(key)
        if entry is None or VOLUME_MOVES.value(entry).id != move.id:
            return await VOLUMES.get(store, move.volume)
        if (await store.commit([Unchanged(key, entry.revision)], [Delete(key)])).held:
            log.info(decision("volume.drop", volume=move.volume, move=move.id))
            return await VOLUMES.get(store, move.volume)
    raise StoreUnavailable(f"the records of volume {move.volume} change faster than they can be read", hint="try again")


async def break_off(store: Store, volumes: list[str]) -> None:
    """A domain of these volumes starts anew under its old owner key: what moved one of them has lost its QEMU.
    Raises StoreUnavailable, OutcomeUnknown."""
    for name in volumes:
        if move := await standing(store, name):
            await drop(store, move)


def arrived(record: Volume | None, move: VolumeMove) -> bool:
    """Whether `record` says that the move was committed."""
    return record is not None and (record.node, record.tid) == (move.target, move.place.tid)


def being_moved(move: VolumeMove) -> Refused:
    """The refusal of whatever does not go with a move."""
    return Refused(
        f"volume {move.volume} is being moved from {move.source} to {move.target}",
        hint=f"wait for its end, or: veery volume move --cancel {move.volume}",
    )
