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
    it had before, as long as its machine still has them: what runs on it may go on calling from there."""

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

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses that are this node's."""
        return tuple(dict.fromkeys(each for each in (self.address, self.relocation_address, *self.former) if each))

    def has(self, role: Role) -> bool:
        """Whether the node does `role`."""
        return role in self.roles
