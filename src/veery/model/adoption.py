"""Adoption of a restored store: the inventories of the nodes, and the plan of the changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from veery.model.cluster import Owner
from veery.model.domain import DomainSpec
from veery.model.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyHere:
    """A domain on a node. `boot`: the id of its instance ("": not known). `incoming`: the unfinished target copy of a
    move. `spec`: the spec of the running instance, with devices attached since. `busy`: an order on it is running."""

    domain: str
    boot: str = ""
    incoming: bool = False
    busy: bool = False
    spec: DomainSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The answer of GET /v1/inventory: the domains on node `node`, the incarnations and nodes that it knows, and the
    storage nodes that shut it out (`shut`). `restored`: the node considers the store restored, and acts on nothing."""

    node: str
    restored: bool
    record: Node | None = None
    incarnations: tuple[str, ...] = ()
    copies: tuple[CopyHere, ...] = ()
    neighbours: tuple[Node, ...] = ()
    shut: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """The plan of an adoption. `refusals`: the obstacles. `changes`: the changes, in sentences. `owners`: owner keys to
    write. `specs`: domains whose records are missing or older. `free`: owner keys to remove. `lift`: fences to remove.
    `lost`: nodes to fence on an operator's word. `nodes`: nodes whose records are missing. `before`: the ids of all
    earlier incarnations."""

    refusals: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    owners: tuple[Owner, ...] = ()
    specs: dict[str, DomainSpec] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    lift: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    before: tuple[str, ...] = ()
