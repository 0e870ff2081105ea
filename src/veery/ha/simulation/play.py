"""Playing a scenario: the world is built, the steps are done in their time, and the story is told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from veery.cluster.keys import (
    DOMAINS,
    FENCES,
    GROUPS,
    HEALTHS,
    INCARNATION,
    INCARNATIONS,
    NODES,
    OWNERS,
    POLICIES,
    PROCESSORS,
    RESERVATIONS,
)
from veery.cluster.memory import Backup, MemoryStore
from veery.cluster.store import Put
from veery.errors import VeeryError
from veery.ha.loop import Brain
from veery.ha.observer import StoreObserver
from veery.ha.simulation.clock import TrueClock, run
from veery.ha.simulation.doors import SimDoors
from veery.ha.simulation.node import SimNode, boots
from veery.ha.simulation.promises import Promises
from veery.ha.simulation.scenario import Scenario, Step
from veery.ha.simulation.stage import Stage, tell
from veery.ha.simulation.steps import STEPS, check
from veery.ha.simulation.world import NodeClock, World
from veery.host.tasks import stop
from veery.model.cluster import DomainRecord, Incarnation, Owner
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.ha import Event, HaRecord, Level, Policy
from veery.model.node import Node, Role
from veery.model.plan import Processor
from veery.model.verdict import NodeVerdict


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a scenario. `lines`: the story; `broken`: what must never be and was; `running`: the node of each
    domain that runs at the end; `starts`, `moves`, `fences`: (second, domain or node, where or how); `left`: fences,
    promises, half copies and verdicts on nodes that are not well, which stand at the end; `wanted`: the domains that
    are to run then, as the store has it; `groups`: the group of each that has one."""

    lines: tuple[str, ...]
    broken: tuple[str, ...]
    running: dict[str, str]
    starts: tuple[tuple[float, str, str], ...]
    moves: tuple[tuple[float, str, str], ...]
    fences: tuple[tuple[float, str, str], ...]
    left: tuple[str, ...] = ()
    wanted: frozenset[str] = frozenset()
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The story as log.expect has it."""
        return "".join(f"{line}\n" for line in self.lines)


def play(scenario: Scenario) -> Told:
    """Play `scenario` in virtual time. Raises Refused for a step that cannot be done."""
    for step in scenario.steps:
        check(step)
    quiet = logging.getLogger("veery")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)  # the story says it all, in virtual time
    try:
        return run(_Play(scenario).run())
    finally:
        quiet.setLevel(level)


class _Play(Stage):
    """One cluster, simulated."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.world = World(scenario)
        self.nodes: dict[str, SimNode] = {}
        self.brains: dict[str, Brain] = {}
        self.backup: Backup | None = None
        self._boots = boots()

    async def run(self) -> Told:
        """Build, play, tell."""
        clock = TrueClock()
        self.data = MemoryStore(clock)
        self.promises = Promises(self.world, self.data)
        await self._found()
        for name in self.scenario.nodes:
            self.wake(name)
        judges = [asyncio.create_task(self.world.run()), asyncio.create_task(self.promises.run())]
        failed: BaseException | None = None
        try:
            for step in self.scenario.steps:
                await asyncio.sleep(max(0.0, step.at - self.world.now()))
                await self._step(step)
            await asyncio.sleep(max(0.0, self.scenario.seconds - self.world.now()))
        finally:
            failed = next((judge.exception() for judge in judges if judge.done()), None)
            for name in self.scenario.nodes:
                self.world.end_daemon(name)
            await stop(*judges)
            for _ in range(20):
                await asyncio.sleep(0)
        if failed:
            raise failed
        return self._told(await self._left(), await POLICIES.all(self.data))

    async def _left(self) -> tuple[str, ...]:
        """What nobody has cleared away."""
        fences = [f"the fence of {name}" for name in await FENCES.all(self.data)]
        promises = [f"the promise of {name}" for name in await RESERVATIONS.all(self.data)]
        halves = [
            f"half a copy of {copy.domain} on {machine.name}"
            for machine in self.world.machines.values()
            for copy in machine.copies.values()
            if copy.incoming
        ]
        sick = [
            f"the {record.verdict} of {name}"
            for name, record in (await HEALTHS.all(self.data)).items()
            if record.verdict is not NodeVerdict.WELL
        ]
        return (*fences, *promises, *halves, *sick)

    async def _found(self) -> None:
        """The cluster as it stands at second 0: records, owners, running copies."""
        operations: list[Put] = [INCARNATIONS.put(INCARNATION, Incarnation(id="first"))]
        for name, setup in self.scenario.nodes.items():
            operations.append(NODES.put(name, Node(name=name, address=name, roles=setup.roles)))
            if setup.accelerator:
                processor = Processor(node=name, accelerator=setup.accelerator, model="", version="", features=())
                operations.append(PROCESSORS.put(name, processor))
        for name, group in self.scenario.groups.items():
            operations.append(GROUPS.put(name, group))
        for name, domain in self.scenario.domains.items():
            disk = DiskSpec(vdev="xvda", target=f"/srv/{name}") if domain.local else DiskSpec(vdev="xvda", volume=name)
            spec = DomainSpec(name=name, memory=domain.memory, disks=(disk,))
            operations.append(DOMAINS.put(name, DomainRecord(spec=spec)))
            ha = HaRecord(
                policy=domain.policy,
                priority=domain.priority,
                group=domain.group,
                max_restarts=domain.max_restarts,
                delay=domain.delay,
                wanted=domain.wanted,
            )
            operations.append(POLICIES.put(name, ha))
            if domain.on:
                boot = f"{name}-{next(self._boots)}"
                operations.append(OWNERS.put(name, Owner(domain=name, node=domain.on, boot=boot)))
                self.world.begin(self.world.machines[domain.on], name, boot)
        await self.data.commit([], operations)

    def wake(self, name: str) -> None:
        """Start `name`'s daemon, and on a voter its brain."""
        machine = self.world.machines[name]
        machine.fed = self.world.now()
        node = self.nodes[name] = SimNode(self.world, machine, self.data, self._boots)
        self.world.works(name, node.run())
        if Role.VOTER not in machine.roles:
            return
        doors = SimDoors(self.world, self.nodes, name, self.promises)
        clock, rules = NodeClock(machine), self.scenario.rules
        observer = StoreObserver(node.store, doors, clock, rules)
        brain = Brain(
            name, store=node.store, observer=observer, control=doors, clock=clock, rules=rules, told=self._heard
        )
        self.brains[name] = brain
        self.world.works(name, brain.run())

    def leader(self) -> str:
        """The node whose brain leads; "" when none does."""
        for name, brain in self.brains.items():
            if self.world.machines[name].power and self.world.machines[name].daemon and brain.leadership.held():
                return name
        return ""

    async def _step(self, step: Step) -> None:
        try:
            await STEPS[step.do](self, step)
        except VeeryError as error:
            tell(self, error)
        self.world.judge()

    def _heard(self, event: Event) -> None:
        """The brains' part of the story."""
        mark = {Level.INFO: "", Level.WARNING: "", Level.ALARM: "ALARM "}[event.level]
        self.world.say(event.by, f"{mark}{event.what} {event.subject}: {event.text}")

    def _told(self, left: tuple[str, ...], policies: Mapping[str, HaRecord]) -> Told:
        world = self.world
        running = {
            copy.domain: machine.name
            for machine in world.machines.values()
            for copy in machine.copies.values()
            if machine.well and copy.running and not copy.incoming
        }
        where = [f"{name} on {running[name]}" if name in running else f"{name} does not run" for name in world.runs]
        counts = f"{len(world.fences)} fences, {len(world.starts)} starts, {len(world.moves)} moves"
        world.lines.append(f"at the end: {', '.join(sorted(where)) or 'no domains'}; {counts}")
        world.lines.append("the judge: " + ("; ".join(world.broken) if world.broken else "no disk had two writers"))
        return Told(
            tuple(world.lines),
            tuple(world.broken),
            running,
            tuple(world.starts),
            tuple(world.moves),
            tuple(world.fences),
            left,
            frozenset(name for name, each in policies.items() if each.policy is Policy.RESTART and each.wanted),
            {name: each.group for name, each in policies.items() if each.group},
        )
