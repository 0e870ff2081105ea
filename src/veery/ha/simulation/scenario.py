"""scenario.toml: nodes, domains, rules and timed steps, as frozen values. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from veery.errors import Refused
from veery.health.verdict import Figures
from veery.model.ha import Group, Policy, Rules
from veery.model.node import Role
from veery.model.verdict import SensorMode

T = TypeVar("T")

WAYS = ("both", "in", "out")  # of a cut: which packets are lost


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSetup:
    """A node. `room`: MiB for domains; `methods`: how it can be fenced; `watchdog`: seconds, 0: it has none.
    `stop`: seconds without cluster and storage after which its daemon ends its domains. `accelerator`: what it says
    that it runs domains under ("": it says nothing)."""

    roles: tuple[Role, ...] = (Role.HYPERVISOR, Role.VOTER)
    room: int = 1024
    methods: tuple[str, ...] = ("storage",)
    watchdog: float = 0.0
    stop: float = 20.0
    accelerator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSetup:
    """A domain, running `on` a node at the beginning ("": it does not run). `copy`: seconds of its move; `crash`: its
    guest dies so many seconds after each start (0: never); `local`: its disk is a file of its node."""

    on: str = ""
    memory: int = 128
    policy: Policy = Policy.RESTART
    priority: int = 0
    group: str = ""
    max_restarts: int = 5
    delay: float = 0.0
    copy: float = 2.0
    crash: float = 0.0
    local: bool = False
    wanted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSetup:
    """The sensors of all nodes: `sensors` has the modes that differ from those that ship, `figures` when signs count.
    Each sensor is read once a second."""

    sensors: Mapping[str, SensorMode] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """At second `at`, `do` one thing of veery.ha.simulation.steps; the other fields are its arguments. Of a cut: `peer`
    is the other node ("": all), `way` "both", "in" or "out", as packets go to or from `node`. `tree`: a recorded
    tree of sensors, relative to the scenario's folder."""

    at: float
    do: str
    node: str = ""
    domain: str = ""
    net: str = "all"
    peer: str = ""
    way: str = "both"
    method: str = ""
    seconds: float = 0.0
    policy: Policy | None = None
    priority: int | None = None
    group: str | None = None
    text: str = ""
    force: bool = False
    home: bool = False
    done: bool = True
    count: int = 1
    sensor: str = ""
    part: str = ""
    level: str = ""
    value: str = ""
    counter: bool = False
    serial: str = ""
    exposed: bool = False
    tree: str = ""


SEED = {  # the seed's lab: two hypervisors, and the storage as witness
    "test1": NodeSetup(),
    "test2": NodeSetup(),
    "stor": NodeSetup(roles=(Role.STORAGE, Role.VOTER), room=0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One story. `about`: one line; `seconds`: how long it is played; `folder`: where it is kept."""

    about: str
    seconds: float
    nodes: Mapping[str, NodeSetup] = field(default_factory=lambda: dict(SEED))
    domains: Mapping[str, DomainSetup] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    health: HealthSetup = field(default_factory=HealthSetup)
    steps: tuple[Step, ...] = ()
    folder: Path = Path()

    @property
    def restores(self) -> bool:
        """Whether the store is put back to an earlier state in it."""
        return any(step.do == "restore-store" for step in self.steps)

    @property
    def probes(self) -> bool:
        """Whether sensors have anything to say in it."""
        return any(step.do in SENSED for step in self.steps)


SENSED = frozenset({"sick", "well", "sign", "sensor-hangs", "sensor-back", "node-well"})
"""Steps after which sensors have something to say."""

_TABLES: dict[str, type[Any]] = {"nodes": NodeSetup, "domains": DomainSetup, "groups": Group}


def load(folder: Path) -> Scenario:
    """The scenario in `folder`/scenario.toml. Raises Refused, with the file and what is wrong in it."""
    path = folder / "scenario.toml"
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise Refused(f"{path}: no such file", hint="a scenario is a folder with a scenario.toml") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Refused(f"{path}: {error}") from None
    try:
        return _scenario(data, folder)
    except (Refused, msgspec.ValidationError) as error:
        raise Refused(f"{path}: {error}", hint="docs/ha.md has the keys of a scenario") from None


def _scenario(data: dict[str, Any], folder: Path) -> Scenario:
    unknown = set(data) - {"about", "seconds", "rules", "health", "at", *_TABLES}
    if unknown:
        raise Refused(f"unknown key {sorted(unknown)[0]!r}")
    values: dict[str, Any] = {"about": data.get("about", ""), "seconds": data.get("seconds", 60.0), "folder": folder}
    for table, kind in _TABLES.items():
        if table in data:
            values[table] = {name: _value(each, kind, f"{table}.{name}") for name, each in data[table].items()}
    if "rules" in data:
        values["rules"] = _value(data["rules"], Rules, "rules")
    if "health" in data:
        values["health"] = _value(data["health"], HealthSetup, "health")
    values["steps"] = tuple(
        sorted((_value({"at": 0.0, **each}, Step, "at") for each in _steps(data)), key=lambda step: step.at)
    )
    scenario = Scenario(**values)
    _check(scenario)
    return scenario


def _steps(data: dict[str, Any]) -> list[dict[str, Any]]:
    """[[at]] tables: `second` is the time, `do` what is done."""
    steps = []
    for each in data.get("at", []):
        if "second" not in each:
            raise Refused(f"at: {each.get('do', '?')} has no `second`")
        steps.append({**{key: value for key, value in each.items() if key != "second"}, "at": each["second"]})
    return steps


def _value(data: Any, kind: type[T], where: str) -> T:
    known = {each.name for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = set(data) - known if isinstance(data, dict) else set()
    if unknown:
        raise Refused(f"{where}: unknown key {sorted(unknown)[0]!r}")
    try:
        return msgspec.convert(data, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(f"{where}: {error}") from None


def _check(scenario: Scenario) -> None:
    scenario.rules.check()
    for name, domain in scenario.domains.items():
        if domain.on and domain.on not in scenario.nodes:
            raise Refused(f"domains.{name}: no node {domain.on!r}")
    for step in scenario.steps:
        if step.node and step.node not in scenario.nodes and step.node != "leader":
            raise Refused(f"at {step.at:g}: no node {step.node!r}")
        if step.peer and step.peer not in scenario.nodes:
            raise Refused(f"at {step.at:g}: no node {step.peer!r}")
        if step.way not in WAYS:
            raise Refused(f"at {step.at:g}: no way {step.way!r}", hint="both, in or out")
        if step.tree and not (scenario.folder / step.tree).is_dir():
            raise Refused(f"at {step.at:g}: no folder {step.tree!r} beside the scenario")
        if step.domain and step.domain not in scenario.domains:
            raise Refused(f"at {step.at:g}: no domain {step.domain!r}")
