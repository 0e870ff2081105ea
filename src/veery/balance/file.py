"""Read a described cluster from JSON, and check everything in it once. docs/balance.md describes the keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from veery.balance.model import LINK_MIB_S, Cluster, Domain, Group, Node
from veery.errors import Refused
from veery.model.ha import GroupKind

FILE_MAX = 64 << 20  # bytes
NODES_MAX, DOMAINS_MAX, GROUPS_MAX = 5_000, 100_000, 20_000
MEMORY_MAX = 1 << 30  # MiB
CORES_MAX = 100_000
NAMES_MAX = 100  # groups of one domain
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,99}")
_HINT = "docs/balance.md describes the file"


def load(path: Path) -> Cluster:
    """Return the cluster that the file at `path` describes. Raises Refused."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", hint=_HINT) from None
    if len(data) > FILE_MAX:
        raise Refused(f"{path}: more than {FILE_MAX >> 20} MiB", hint=_HINT)
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        raise Refused(f"{path}:{error.lineno}:{error.colno}: {error.msg}", hint=_HINT) from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not JSON: {str(error)[:100]}", hint=_HINT) from None
    try:
        return parse(value)
    except Refused as error:
        raise Refused(f"{path}: {error.message}", hint=error.hint) from None


def parse(value: object) -> Cluster:
    """Return the cluster that a JSON value describes. Raises Refused."""
    top = _Fields(value, "the cluster", ("nodes", "domains", "groups", "link"))
    nodes: dict[str, Node] = {}
    for place, row in enumerate(top.rows("nodes", NODES_MAX), 1):
        node = _node(_Fields(row, f"node {place}", ("name", "memory", "reserved", "cores", "load", "in_service")))
        _new(nodes, node.name, "node")
        nodes[node.name] = node
    if not nodes:
        _refuse("no nodes")
    groups: dict[str, Group] = {}
    for place, row in enumerate(top.rows("groups", GROUPS_MAX), 1):
        fields = _Fields(row, f"group {place}", ("name", "kind", "nodes", "strict"))
        name = fields.name()
        _new(groups, name, "group")
        groups[name] = _group(fields, nodes)
    domains: dict[str, Domain] = {}
    keys = ("name", "node", "memory", "vcpus", "load", "groups", "balance", "restart")
    for place, row in enumerate(top.rows("domains", DOMAINS_MAX), 1):
        domain = _domain(_Fields(row, f"domain {place}", keys), nodes, groups)
        _new(domains, domain.name, "domain")
        domains[domain.name] = domain
    return Cluster(nodes=nodes, domains=domains, groups=groups, link=top.number("link", LINK_MIB_S, low=0.01))


def _node(fields: _Fields) -> Node:
    name = fields.name()
    memory = fields.whole("memory", MEMORY_MAX, low=1)
    reserved = fields.whole("reserved", MEMORY_MAX, default=0)
    if reserved >= memory:
        _refuse(f"node {name}: reserved is not below memory")
    return Node(
        name=name,
        memory=memory,
        cores=fields.whole("cores", CORES_MAX, low=1),
        reserved=reserved,
        load=fields.number("load", 0.0),
        in_service=fields.flag("in_service", default=True),
    )


def _group(fields: _Fields, nodes: Collection[str]) -> Group:
    kind = fields.text("kind", GroupKind.APART)
    if kind not in set(GroupKind):
        _refuse(f"{fields.what}: kind must be apart or together")
    names = fields.names("nodes", NODES_MAX)
    for each in names:
        if each not in nodes:
            _refuse(f"{fields.what}: no node {each}")
    return Group(kind=GroupKind(kind), nodes=names, strict=fields.flag("strict", default=False))


def _domain(fields: _Fields, nodes: Collection[str], groups: Collection[str]) -> Domain:
    name, node = fields.name(), fields.text("node", "")
    if node not in nodes:
        _refuse(f"domain {name}: no node {node!r:.120}")
    member = fields.names("groups", NAMES_MAX)
    for each in member:
        if each not in groups:
            _refuse(f"domain {name}: no group {each}")
    balance = fields.text("balance", "on")
    if balance not in ("on", "off"):
        _refuse(f'domain {name}: balance must be "on" or "off"')
    return Domain(
        name=name,
        node=node,
        memory=fields.whole("memory", MEMORY_MAX, low=1),
        vcpus=fields.whole("vcpus", CORES_MAX, low=1),
        load=fields.number("load", 0.0),
        groups=member,
        balance=balance == "on",
        restart=fields.flag("restart", default=True),
    )


def _new(known: Collection[str], name: str, kind: str) -> None:
    if name in known:
        _refuse(f"{kind} {name} is there twice")


def _refuse(message: str) -> NoReturn:
    raise Refused(message, hint=_HINT)


class _Fields:
    """One JSON object, `what` in messages. Unknown keys and wrong values raise Refused."""

    def __init__(self, value: object, what: str, keys: Collection[str]) -> None:
        if not isinstance(value, dict):
            _refuse(f"{what} is not an object")
        for key in value:
            if key not in keys:
                _refuse(f"{what}: unknown key {key!r:.60}")
        self._values: dict[str, Any] = value
        self.what = what

    def rows(self, key: str, most: int) -> list[Any]:
        """Return a list of at most `most` values; an absent key is empty."""
        rows = self._values.get(key, [])
        if not isinstance(rows, list):
            _refuse(f"{self.what}: {key} is not a list")
        if len(rows) > most:
            _refuse(f"{self.what}: more than {most} {key}")
        return rows

    def name(self) -> str:
        """Return the name, and use it in later messages."""
        name = self._values.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            _refuse(f"{self.what}: name must be a word of letters, digits and _.:+-")
        self.what = f"{self.what.partition(' ')[0]} {name}"
        return name

    def names(self, key: str, most: int) -> tuple[str, ...]:
        """Return a list of names without repetitions."""
        rows = self.rows(key, most)
        for each in rows:
            if not isinstance(each, str) or not _NAME.fullmatch(each):
                _refuse(f"{self.what}: {key} must be a list of names")
        return tuple(dict.fromkeys(rows))

    def text(self, key: str, default: str) -> str:
        """Return a string."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            _refuse(f"{self.what}: {key} is not a string")
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """Return true or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            _refuse(f"{self.what}: {key} is not true or false")
        return value

    def whole(self, key: str, most: int, *, low: int = 0, default: int | None = None) -> int:
        """Return a whole number from `low` to `most`."""
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= most:
            _refuse(f"{self.what}: {key} must be a whole number from {low} to {most}")
        return value

    def number(self, key: str, default: float, *, low: float = 0.0) -> float:
        """Return a number from `low` to a million."""
        value = self._values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            _refuse(f"{self.what}: {key} is not a number")
        if not low <= value <= 1e6:
            _refuse(f"{self.what}: {key} must be from {low:g} to 1000000")
        return float(value)
