"""Nodes: the machines that veery manages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """The role of a node. A node can have any mix of roles."""

    HYPERVISOR = "hypervisor"
    STORAGE = "storage"
    VOTER = "voter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The record of one node in the store. `address`: where peers reach its ports. `former`: earlier addresses that its
    machine still has, because running processes may still call from them. `relocation_address` and `storage_address`:
    its addresses on the networks of moves and of disks ("": `address`)."""

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
        """All addresses of this node."""
        known = (self.address, self.relocation_address, self.storage_address, *self.former)
        return tuple(dict.fromkeys(each for each in known if each))

    @property
    def storage(self) -> str:
        """The address of its targets, and the source address of its sessions."""
        return self.storage_address or self.address

    def has(self, role: Role) -> bool:
        """Return whether the node has `role`."""
        return role in self.roles
