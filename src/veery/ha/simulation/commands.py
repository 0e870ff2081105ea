"""What a scenario's steps can do as a user's commands. Each goes through the code that the real command runs, on the
node that answers it."""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine
from typing import Any

from veery.cluster import adopt as adoption
from veery.cluster import owner as gate
from veery.cluster.keys import OWNERS
from veery.errors import Failed, Refused, VeeryError
from veery.ha import draining, moverecord, orders
from veery.ha.simulation.clock import BEGIN, TrueClock
from veery.ha.simulation.scenario import Step
from veery.ha.simulation.stage import Stage, any_name, brain, command, machine_of, name_of, tell
from veery.ha.why import why
from veery.model.ha import Policy
from veery.model.node import Role


async def adopt(stage: Stage, step: Step) -> None:
    """veery cluster adopt [--lost NODE] (`node` is the one that is lost). With `force` the operator first ends what
    stands in its way: copies on nodes that are shut out, and the older of two copies."""
    name = any_name(stage, step)
    if step.force:
        _end_stale(stage)
    command(stage, f"cluster adopt{f' --lost {name}' if name else ''}")
    _quorum(stage)
    up = [name for name, machine in stage.world.machines.items() if machine.well and machine.daemon]
    asker = next((name for name in up if stage.world.machines[name].cluster_net), "")
    told = {name: stage.nodes[name].inventory() for name in up if asker and stage.world.linked(asker, name)}
    silent = {name: "no answer" for name in stage.world.machines if name not in told}
    records = dataclasses.replace(await adoption.read(stage.data), whole=True)  # the world has no such record
    made = adoption.plan(records, told, silent, [name] if name else [])
    for change in made.changes:
        stage.world.say("veery", change)
    now = stage.world.now() + BEGIN
    await adoption.write(stage.data, records, made, by="operator", epoch=now, name=f"adopted-{now - BEGIN:g}")
    stage.world.went_back = None
    stage.world.say("veery", "the store is adopted")


def _end_stale(stage: Stage) -> None:
    newest = dict(stage.world.runs)
    for machine in stage.world.machines.values():
        shut = any(machine.name in each.denied for each in stage.world.storages())
        for name, copy in list(machine.copies.items()):
            if not copy.incoming and (shut or copy.number < newest[name]):
                command(stage, f"--node {machine.name} destroy {name}")
                del machine.copies[name]


async def node_well(stage: Stage, step: Step) -> None:
    """veery node well NODE [SENSOR]."""
    machine = machine_of(stage, step)
    command(stage, f"node well {machine.name}{f' {step.sensor}' if step.sensor else ''}")
    if not (machine.well and machine.daemon):
        raise Failed(f"node {machine.name} does not answer")
    stage.nodes[machine.name].called_well(step.sensor)


async def ha_set(stage: Stage, step: Step) -> None:
    """veery ha set DOMAIN policy."""
    policy = step.policy or Policy.RESTART
    command(stage, f"ha set {step.domain} {policy}")
    _quorum(stage)
    stage.world.touch(step.domain)
    await orders.set_policy(stage.data, step.domain, policy, priority=step.priority, group=step.group)


async def drain(stage: Stage, step: Step) -> None:
    """veery node drain NODE [--force]: refused with all that stands in the way."""
    name = name_of(stage, step)
    command(stage, f"node drain {name}{' --force' if step.force else ''}")
    _quorum(stage)
    rules, look = stage.scenario.rules, brain(stage).view_now
    made = await draining.drain(stage.data, look, TrueClock(), rules, name, by="operator", force=step.force)
    for warning in (*made.risks, *made.warnings):
        stage.world.say("veery", f"warning: {warning}")
    planned = ", ".join(f"{domain} to {target}" for domain, target in made.moves) or "nothing to move"
    stage.world.say("veery", f"plan: {planned}")


async def resume(stage: Stage, step: Step) -> None:
    """veery node resume NODE [--home]."""
    name = name_of(stage, step)
    command(stage, f"node resume {name}{' --home' if step.home else ''}")
    _quorum(stage)
    rules, look = stage.scenario.rules, brain(stage).view_now
    await draining.resume(stage.data, look, TrueClock(), rules, name, by="operator", home=step.home)


async def away(stage: Stage, step: Step) -> None:
    """NODE's daemon announces that it will be away for `seconds`."""
    name = name_of(stage, step)
    stage.world.say(name, f"announces a restart of its daemon within {step.seconds:g} s")
    await orders.away(stage.data, name, step.seconds, now=stage.world.now() + BEGIN)


async def confirm(stage: Stage, step: Step) -> None:
    """veery fence confirm NODE."""
    name = name_of(stage, step)
    command(stage, f"fence confirm {name}")
    await orders.confirm(stage.data, name, by="operator", now=stage.world.now() + BEGIN)
    stage.world.losses.append((stage.world.now(), name))


async def disarm(stage: Stage, step: Step) -> None:
    """veery disarm."""
    command(stage, "disarm")
    await orders.disarm(stage.data, by="operator", reason=step.text, now=stage.world.now() + BEGIN)


async def arm(stage: Stage, step: Step) -> None:
    """veery arm."""
    del step
    command(stage, "arm")
    await orders.arm(stage.data)


async def destroy(stage: Stage, step: Step) -> None:
    """veery destroy DOMAIN: ended on purpose, by the node that has it."""
    command(stage, f"destroy {step.domain}")
    _quorum(stage)
    stage.world.touch(step.domain)
    if await gate.end_of_fenced(stage.data, step.domain):
        return
    owner = await gate.read(stage.data, step.domain)
    if owner is None:
        raise Refused(f"{step.domain} does not run")
    _ask(stage, owner.node, step.domain, stage.nodes[owner.node].destroy(step.domain))


async def create(stage: Stage, step: Step) -> None:
    """veery create DOMAIN, on NODE."""
    machine = machine_of(stage, step)
    command(stage, f"create {step.domain} on {machine.name}{' --force' if step.force else ''}")
    if Role.HYPERVISOR not in machine.roles:
        raise Refused(f"{machine.name} runs no domains")
    _ask(stage, machine.name, step.domain, stage.nodes[machine.name].create(step.domain, force=step.force))


async def migrate(stage: Stage, step: Step) -> None:
    """veery migrate DOMAIN NODE: begun, not waited for."""
    name = name_of(stage, step)
    command(stage, f"migrate {step.domain} {name}{' --force' if step.force else ''}")
    _quorum(stage)
    owner = await OWNERS.get(stage.data, step.domain)
    if owner is None:
        raise Refused(f"domain {step.domain} does not run")
    if owner.node == name:
        raise Refused(f"it runs on {name} already")
    if Role.HYPERVISOR not in stage.world.machines[name].roles:
        raise Refused(f"{name} runs no domains")
    await orders.require_undrained(stage.data, name)
    if not step.force:
        await orders.require_well(stage.data, name)
    node = stage.nodes[owner.node]
    _ask(stage, owner.node, step.domain, node.migrate(step.domain, stage.nodes[name]))


def _quorum(stage: Stage) -> None:
    if not stage.world.members():
        raise Failed("the store does not answer")


def _ask(stage: Stage, node: str, domain: str, work: Coroutine[Any, Any, None]) -> None:
    """Have `node` do `work` about `domain`, as a user asked; what it refuses is told."""

    async def told() -> None:
        try:
            await work
        except VeeryError as error:
            tell(stage, error)
        stage.world.touch(domain)

    if not stage.world.linked(node, node):
        work.close()
        raise Failed(f"{node} does not answer")
    stage.world.touch(domain)
    stage.world.works(node, told())


async def ask_why(stage: Stage, step: Step) -> None:
    """veery why NODE or DOMAIN."""
    name = step.domain or name_of(stage, step)
    command(stage, f"why {name}")
    for line in why(brain(stage).view_now(), name, stage.world.now() + BEGIN, stage.scenario.rules):
        stage.world.say("veery", line)


async def ask_record(stage: Stage, step: Step) -> None:
    """veery node health --record."""
    del step
    command(stage, "node health --record")
    for each in await moverecord.records(stage.data):
        gap, time, outcome = each.promised.gap_ms, each.promised.total_ms, each.outcome
        promised = each.promised.why if gap is None or time is None else f"{gap:.0f} ms gap, {time / 1000:.1f} s"
        took = "" if outcome.total_ms is None else f" after {outcome.total_ms / 1000:.1f} s"
        error = f": {outcome.error}" if outcome.error else ""
        result = f"{outcome.result}{took}{error}"
        stage.world.say("veery", f"{each.domain} {each.source} to {each.target}: forecast {promised}; {result}")
