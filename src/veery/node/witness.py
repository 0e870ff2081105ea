"""The answer of a node to another that has lost the store: whether it has lost the store too, and whether it shuts the
other node out.

None of this needs the store: a voter asks its own etcd member, and a storage node its own tgtd."""

from __future__ import annotations

from dataclasses import dataclass

from veery.cluster.etcd import EtcdStore
from veery.errors import VeeryError
from veery.model.node import Node, Role
from veery.node.volumes import VolumeService

MEMBER_TIMEOUT_S = 0.7  # seconds for this node's own etcd member to answer


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessAnswer:
    """The answer of GET /v1/standing/NODE.

    `quorum`: on a voter, whether its etcd member knows a leader (a member that does not answer knows none); None
    elsewhere. `fenced`: on a storage node, whether one of its targets keeps NODE out; None elsewhere, and also if it
    has no target or its tgtd does not answer."""

    node: str
    quorum: bool | None = None
    fenced: bool | None = None


class Witness:
    """The witness service of a daemon."""

    def __init__(self, node: Node, store: EtcdStore, volumes: VolumeService, own_url: str) -> None:
        """`own_url` is the address of this node's etcd member, "" if it is not a voter."""
        self._node, self._store, self._volumes, self._own = node, store, volumes, own_url

    async def word(self, initiator: str = "") -> WitnessAnswer:
        """Return this node's answer about the node whose initiator name is `initiator`. Raises nothing."""
        return WitnessAnswer(node=self._node.name, quorum=await self._quorum(), fenced=await self._fenced(initiator))

    async def _quorum(self) -> bool | None:
        if not self._own:
            return None
        try:
            return (await self._store.voters.status(self._own, within=MEMBER_TIMEOUT_S)).leader != 0
        except VeeryError:
            return False

    async def _fenced(self, initiator: str) -> bool | None:
        if not initiator or not self._node.has(Role.STORAGE):
            return None
        return await self._volumes.mine().shuts_out(initiator)
