"""A data folder for a new store, made from a snapshot of an old one.

    STATE/etcd               the member's data
    STATE/etcd.part          an incomplete folder
    STATE/etcd.new           a complete folder; it replaces STATE/etcd once this node's identity says so
    STATE/etcd.before-TIME   data of a replaced store; nothing reads it

`etcdctl snapshot restore` gives the new store new ids for itself and its one member (etcd docs, op-guide/recovery), so
members of the old and of the new store refuse each other. `etcd --force-new-cluster` is not used: it keeps the store's
id, and in etcd 3.4 its database may be ahead of its log, so members that join later can miss the last writes."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from veery.cluster.identity import Identity, peer_url
from veery.config.settings import Settings
from veery.errors import Failed, Refused
from veery.host.files import sync_folder
from veery.host.run import run

RESTORE_S = 300.0  # for `etcdctl snapshot restore`


def data(state: Path) -> Path:
    """Return the folder of the member's data."""
    return state / "etcd"


def has_data(state: Path) -> bool:
    """Return whether the folder contains a member's data."""
    return (data(state) / "member").is_dir()


def database(state: Path) -> Path:
    """Return the file with all keys. While etcd does not run, it is a snapshot without a checksum."""
    return data(state) / "member" / "snap" / "db"


async def restore(
    settings: Settings, identity: Identity, snapshot: Path, *, token: str, checked: bool
) -> tuple[str, str]:
    """Make STATE/etcd.new from the file `snapshot`, for a store with this node as its only member.

    Return etcd's flags initial-cluster and initial-cluster-state. `token` must be new: the store's id derives from it.
    With `checked` the file ends with its checksum. Raises Refused if there is no such file, Failed."""
    state, node = Path(settings.state), identity.node
    if not snapshot.is_file():
        raise Refused(f"{snapshot} is no file", hint=f"the daily copies are in {state / 'backups'}")
    part, new = state / "etcd.part", state / "etcd.new"
    peer = peer_url(settings, node)
    await asyncio.to_thread(discard, state)
    argv: list[str | Path] = ["etcdctl", "snapshot", "restore", snapshot, "--data-dir", part, "--name", node.name]
    argv += ["--initial-cluster", f"{node.name}={peer}", "--initial-advertise-peer-urls", peer]
    argv += ["--initial-cluster-token", token]
    if not checked:
        argv += ["--skip-hash-check"]
    try:
        await run(argv, deadline=RESTORE_S, env={"ETCDCTL_API": "3"})
        part.rename(new)
        sync_folder(state)
    except Failed as error:
        raise Failed(f"no store can be made from {snapshot}: {error.message}", hint="try an older copy") from error
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}", hint="make room there") from error
    return f"{node.name}={peer}", "new"


def put_aside(state: Path, *, epoch: float) -> Path | None:
    """Rename the member's data; return the new name, None if there are none. Raises Failed."""
    if not has_data(state):
        return None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(epoch))
    for number in range(100):
        place = state / f"etcd.before-{stamp}{f'-{number}' if number else ''}"
        if not place.exists():
            break
    try:
        data(state).rename(place)
        sync_folder(state)
    except OSError as error:
        raise Failed(f"{data(state)}: {error.strerror}") from error
    return place


def discard(state: Path) -> None:
    """Remove the folders of a recovery that was not completed."""
    for name in ("etcd.part", "etcd.new"):
        shutil.rmtree(state / name, ignore_errors=True)


def take(state: Path) -> None:
    """Rename STATE/etcd.new to STATE/etcd, whose data was put aside before. A second call does nothing. Raises
    Failed."""
    new = state / "etcd.new"
    if has_data(state) or not (new / "member").is_dir():
        return
    try:
        if data(state).is_dir():
            data(state).rmdir()
        new.rename(data(state))
        sync_folder(state)
    except OSError as error:
        raise Failed(f"{new}: {error.strerror}", hint=f"{data(state)} must be empty") from error
