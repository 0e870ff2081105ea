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
    """The record of one node, kept in the store. `address` is where peers reach its ports."""

    name: str
    address: str
    roles: tuple[Role, ...]
    driver: str = ""
    api_port: int = 8001
    relocation_address: str = ""
    relocation_port: int = 8002
    initiator: str = ""
    version: str = ""

    def has(self, role: Role) -> bool:
        """Whether the node does `role`."""
        return role in self.roles
