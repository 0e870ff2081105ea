"""Gives the role of a storage node to a running node, and removes it again.

The node itself carries out the order. The next daemon starts or ends tgtd: the identity is the journal."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from veery.cluster import members
from veery.cluster.identity import Identity
from veery.cluster.keys import NODES, VOLUME_MOVES, VOLUMES
from veery.cluster.store import Store
from veery.config.settings import Settings
from veery.errors import Refused
from veery.host.log import decision
from veery.host.process import Process
from veery.model.node import Node, Role
from veery.model.volume import Volume, VolumeMove
from veery.node import needs
from veery.storage.lvm import LvmStore
from veery.storage.room import shares
from veery.storage.tgt import TargetServer
from veery.storage.volumes import Volumes

log = logging.getLogger(__name__)

PROGRAMS = ("tgtd", "tgtadm")
CLOSED = "this node gives up its role as a storage node"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageNodes:
    """The result of a change: the storage nodes that there are now, and a warning about that."""

    nodes: tuple[str, ...]
    warning: str = ""


def judge_loss(node: Node, volumes: Iterable[Volume], moves: Iterable[VolumeMove]) -> str:
    """Return why `node` must stay a storage node, "" if nothing needs it."""
    if node.roles == (Role.STORAGE,):
        return "it has no other role"
    if held := sorted(each.name for each in volumes if each.node == node.name):
        return f"it holds volume {', '.join(held)}"
    if moving := sorted(each.volume for each in moves if node.name in (each.source, each.target)):
        return f"volume {', '.join(moving)} moves from or to it"
    return ""


def warn(nodes: Sequence[str]) -> str:
    """Return the warning for `nodes` as the storage nodes."""
    return "" if nodes else "no storage node is left: a node without a watchdog or a power fence cannot be fenced"


def with_role(identity: Identity) -> Identity:
    """Return the identity of the same node as a storage node."""
    roles = tuple(dict.fromkeys((*identity.node.roles, Role.STORAGE)))
    return replace(identity, node=replace(identity.node, roles=roles))


def without_role(identity: Identity) -> Identity:
    """Return the identity of the same node without the role of a storage node."""
    roles = tuple(role for role in identity.node.roles if role is not Role.STORAGE)
    return replace(identity, node=replace(identity.node, roles=roles))


class Member(Protocol):
    """The identity of this node: node/membership.py."""

    identity: Identity

    async def become(self, identity: Identity) -> None:
        """Take `identity` from now on. Raises Failed: nothing has changed."""
        ...


class StorageRole:
    """Changes the storage role of this node."""

    def __init__(self, settings: Settings, store: Store, membership: Member, here: Volumes | None) -> None:
        """`here`: the volumes of this node, None if it is not a storage node. Nothing changes before an order."""
        self._settings, self._store, self._membership, self._here = settings, store, membership, here
        self._one = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Return True if an order is under way."""
        return self._one.locked()

    async def on(self) -> StorageNodes:
        """Make this node a storage node, unless it is one. Raises Refused if its programs, its pool or its port are not
        fit for that. Raises Failed, StoreUnavailable, OutcomeUnknown: order it again."""
        async with self._one:
            before = self._membership.identity
            warning = ""
            if not before.node.has(Role.STORAGE):
                await self._store.revision()  # do not change a store that is not trusted
                warning = await self._fit(before.node)
                await self._membership.become(with_role(before))
            await members.update(self._store, members.current(self._settings, self._membership.identity))
            log.info(decision("storage.on", node=before.node.name))
            return StorageNodes(nodes=await self._nodes(), warning=warning)

    async def _fit(self, node: Node) -> str:
        """Return the warning about this node. Raises Refused."""
        if lacks := [name for name in PROGRAMS if shutil.which(name) is None]:
            wanted = " ".join(needs.OF_ROLE[Role.STORAGE])
            raise Refused(f"{node.name} lacks {', '.join(lacks)}", hint=f"there: apt-get install {wanted}")
        storage, state = self._settings.storage, Path(self._settings.state)
        server = TargetServer(
            address=storage.address or node.address, port=storage.portal_port, run=Path(self._settings.run)
        )
        server.command()
        if storage.group:
            await LvmStore(storage.group).free()
        pool = Path(storage.pool or state / "volumes")
        try:
            pool.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(pool, os.W_OK):
                raise PermissionError(1, "not writable")
            shared = shares(pool, state)
        except OSError as error:
            raise Refused(
                f"{pool}: {error.strerror}", hint=f"set storage.pool in veery.toml of {node.name}, restart veeryd"
            ) from error
        return f"volumes in {pool} share a filesystem with veery's own state in {state}" if shared else ""

    async def off(self) -> StorageNodes:
        """Remove the storage role of this node. Raises Refused while it holds a volume or one moves here, and for a
        node without another role; nothing has changed then. Raises Failed, StoreUnavailable, OutcomeUnknown: order it
        again."""
        async with self._one:
            before = self._membership.identity
            if before.node.has(Role.STORAGE):
                await self._require_unneeded(before.node)
                if self._here is not None:
                    await self._here.close(CLOSED)  # from here on no volume is made or moved here
                try:
                    await self._require_unneeded(before.node)
                    await self._membership.become(without_role(before))
                except BaseException:
                    if self._here is not None:
                        await self._here.close("")
                    raise
            await members.update(self._store, members.current(self._settings, self._membership.identity))
            log.info(decision("storage.off", node=before.node.name))
            nodes = await self._nodes()
            return StorageNodes(nodes=nodes, warning=warn(nodes))

    async def _require_unneeded(self, node: Node) -> None:
        volumes = (await VOLUMES.all(self._store)).values()
        moves = (await VOLUME_MOVES.all(self._store)).values()
        if why := judge_loss(node, volumes, moves):
            hint = f"veery volume list; veery volume move NAME STORAGE, or veery node leave {node.name}"
            raise Refused(f"{node.name} stays a storage node: {why}", hint=hint)

    async def _nodes(self) -> tuple[str, ...]:
        nodes = (await NODES.readable(self._store)).values()
        return tuple(sorted(each.name for each in nodes if each.has(Role.STORAGE)))


async def end_target(run: Path, state: Path) -> None:
    """End the tgtd that a node had when it was a storage node, and forget what it served. Raises Failed."""
    file = run / "tgtd.pid"
    process = Process.load(file)
    if process is not None:
        log.info("tgtd ends: this node is no longer a storage node")
        await process.stop(grace=0)  # it ignores SIGTERM, and it serves no one now
    file.unlink(missing_ok=True)
    (state / "served.json").unlink(missing_ok=True)
