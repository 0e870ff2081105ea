"""Nodes: the machines that veery manages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a node does; any mix."""

    HYPERVISOR = "hypervisor"
    STORAGE = "storage"
    VOTER = "voter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The record of one node, kept in the store. `address` is where peers reach its ports. `former` are addresses that
    it had before, as long as its machine still has them: what runs on it may go on calling from there.
    `relocation_address` and `storage_address` are those on the networks of moves and of disks ("": `address`)."""

    name: str
    address: str
    roles: tuple[Role, ...]
    driver: str = ""
    api_port: int = 8001
    relocation_address: str = ""
    relocation_port: int = 8002
    initiator: str = ""
    version: str = ""
    former: tuple[str, ...] = ()
    storage_address: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses that are this node's."""
        known = (self.address, self.relocation_address, self.storage_address, *self.former)
        return tuple(dict.fromkeys(each for each in known if each))

    @property
    def storage(self) -> str:
        """Where its targets are reached, and its sessions come from."""
        return self.storage_address or self.address

    def has(self, role: Role) -> bool:
        """Whether the node does `role`."""
        return role in self.roles
