"""What the steps of a scenario act on, and how they read their arguments."""

from __future__ import annotations

from typing import Protocol

from veery.cluster.memory import Backup, MemoryStore
from veery.errors import Failed, Refused, VeeryError
from veery.ha.loop import Brain
from veery.ha.simulation.node import SimNode
from veery.ha.simulation.scenario import Scenario, Step
from veery.ha.simulation.world import Machine, World


class Stage(Protocol):
    """What steps act on."""

    scenario: Scenario
    world: World
    data: MemoryStore
    nodes: dict[str, SimNode]
    brains: dict[str, Brain]
    backup: Backup | None

    def wake(self, name: str) -> None:
        """Start a node's daemon."""
        ...

    def leader(self) -> str:
        """The node that leads; "" for none."""
        ...


def command(stage: Stage, text: str) -> None:
    stage.world.say("operator", f"veery {text}")


def name_of(stage: Stage, step: Step) -> str:
    """The step's node; "leader" is whoever leads now."""
    name = stage.leader() if step.node == "leader" else step.node
    if not name:
        raise Refused(f"{step.do}: no node is named, or none leads")
    return name


def any_name(stage: Stage, step: Step) -> str:
    """The step's node; "" where none is named."""
    return name_of(stage, step) if step.node else ""


def machine_of(stage: Stage, step: Step) -> Machine:
    return stage.world.machines[name_of(stage, step)]


def brain(stage: Stage) -> Brain:
    """The brain that answers: the leader's, else any that lives."""
    name = stage.leader() or next((each for each in stage.brains if stage.world.machines[each].well), "")
    if not name:
        raise Failed("no node answers")
    return stage.brains[name]


def tell(stage: Stage, error: VeeryError) -> None:
    """What a command says when it does not do what was asked."""
    stage.world.say("veery", f"{error.kind}: {error.message}{f' ({error.hint})' if error.hint else ''}")
