"""What nodes tell of themselves when a restored store is adopted, and what the store is then given."""

from __future__ import annotations

from dataclasses import dataclass, field

from veery.model.cluster import Owner
from veery.model.domain import DomainSpec
from veery.model.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyHere:
    """A domain on a node. `boot` names its run ("": not known); `incoming`: half a copy of a move; `spec`: as it runs,
    with what was attached since; `busy`: an order on it is under way."""

    domain: str
    boot: str = ""
    incoming: bool = False
    busy: bool = False
    spec: DomainSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The answer of GET /v1/inventory: what runs on node `node`, which incarnations and nodes it knows, and which
    storage nodes shut it out (`shut`). `restored`: whether it counts the store as restored, and so acts on nothing."""

    node: str
    restored: bool
    record: Node | None = None
    incarnations: tuple[str, ...] = ()
    copies: tuple[CopyHere, ...] = ()
    neighbours: tuple[Node, ...] = ()
    shut: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What adopting the store would come to. `refusals`: what stands in its way; `changes`: what it writes, in
    sentences. `owners`: the owner keys to be written; `specs`: domains whose records are missing or older; `free`:
    owner keys to be removed; `lift`: fences to be removed; `lost`: nodes to be fenced on an operator's word; `nodes`:
    nodes whose records are missing; `before`: the ids of all earlier incarnations."""

    refusals: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    owners: tuple[Owner, ...] = ()
    specs: dict[str, DomainSpec] = field(default_factory=dict)
    free: tuple[str, ...] = ()
    lift: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    before: tuple[str, ...] = ()
