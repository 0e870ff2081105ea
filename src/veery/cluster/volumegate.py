"""The gate of a volume's move: compare-and-set alone decides which storage node has the volume.

    begin                       writes the move's key; from then on no domain starts or moves with the volume
    commit    source -> target  the point of no return; deletes the key
    drop                        any side cancels before it; deletes the key

`commit` and `drop` both require the key unchanged, and both delete it, so at most one of the two succeeds.
A domain's start and reservation require that the key does not exist; `begin` requires that the domain's owner is
unchanged and has no reservation (veery.cluster.owner)."""

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

ATTEMPTS = 8  # each can lose a race with another change; more failures in a row mean a fault


async def take_tid(store: Store, least: int) -> int:
    """Return a target number that is unique in the whole cluster, at least `least`. tgt makes the disk's NAA name from
    it, and two storage nodes may ask at once. Raises StoreUnavailable, OutcomeUnknown."""
    for _ in range(ATTEMPTS):
        entry = await store.get(TID)
        tid = max(least, int(entry.value) + 1 if entry else 1)
        if (await store.commit([Unchanged(TID, entry.revision if entry else 0)], [Put(TID, str(tid).encode())])).held:
            return tid
    raise StoreUnavailable("the target numbers change faster than they can be read", hint="try again")


async def standing(store: Store, volume: str) -> VolumeMove | None:
    """Return the move of `volume` in progress, or None. Raises StoreUnavailable."""
    return await VOLUME_MOVES.get(store, volume)


async def begin(store: Store, move: VolumeMove, owner: Owner | None) -> VolumeMove:
    """Write the move's key; return the move with its revision. `owner` is the owner of the domain that uses the volume.

    Raises Refused if the volume changed or is being moved, or if its domain moves or has another owner by now;
    StoreUnavailable, OutcomeUnknown."""
    entry = await store.get(VOLUMES.key(move.volume))
    if entry is None or VOLUMES.value(entry).node != move.source or not VOLUMES.value(entry).ready:
        raise Refused(f"volume {move.volume} is not ready on {move.source}", hint="veery volume list shows it")
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
    """Make the record name the target: THE point of no return. The caller guarantees that the target has every
    acknowledged write, and that there are no more writes until the domain uses the target.

    Raises Refused if the key or the owner changed: this call changed nothing. StoreUnavailable: not done.
    OutcomeUnknown: `drop` tells."""
    conditions = [Unchanged(VOLUME_MOVES.key(move.volume), move.revision)]
    if owner is not None:
        conditions.append(Unchanged(OWNERS.key(owner.domain), owner.revision))
    operations: list[Put | Delete] = [VOLUMES.put(move.volume, move.place), Delete(VOLUME_MOVES.key(move.volume))]
    if not (await store.commit(conditions, operations)).held:
        raise Refused(
            f"volume {move.volume} is not given to {move.target}: its move was cancelled",
            hint=f"it is on {move.source}; start the move again",
        )
    log.info(decision("volume.commit", volume=move.volume, move=move.id, source=move.source, target=move.target))


async def drop(store: Store, move: VolumeMove) -> Volume | None:
    """Delete the move's key; return the volume's record. After this COMMIT of this move can no longer succeed.
    Raises StoreUnavailable, OutcomeUnknown: call again."""
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
    """Cancel the moves of `volumes`, because their domain starts again under its old owner key and the QEMU that copied
    a volume is gone. Raises StoreUnavailable, OutcomeUnknown."""
    for name in volumes:
        if move := await standing(store, name):
            await drop(store, move)


def arrived(record: Volume | None, move: VolumeMove) -> bool:
    """Return whether `record` shows that the move was committed."""
    return record is not None and (record.node, record.tid) == (move.target, move.place.tid)


def being_moved(move: VolumeMove) -> Refused:
    """Return the refusal of an operation that conflicts with a move."""
    return Refused(
        f"volume {move.volume} is being moved from {move.source} to {move.target}",
        hint=f"wait for its end, or: veery volume move --cancel {move.volume}",
    )
