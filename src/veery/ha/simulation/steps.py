"""What a scenario's steps can do: to the world, and as an operator's commands."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Protocol

from veery.cluster import adopt as adoption
from veery.cluster import owner as gate
from veery.cluster.keys import OWNERS
from veery.cluster.memory import Backup, MemoryStore
from veery.errors import Failed, Refused, VeeryError
from veery.ha import draining, orders
from veery.ha.loop import Brain
from veery.ha.simulation.clock import BEGIN, TrueClock
from veery.ha.simulation.node import SimNode
from veery.ha.simulation.paths import NETS
from veery.ha.simulation.scenario import Scenario, Step
from veery.ha.simulation.world import Machine, World
from veery.ha.why import why
from veery.model.ha import Policy
from veery.model.node import Role

ANNOUNCED_S = 60.0  # as the setting ha.away ships


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


# ---- the world
async def power_off(stage: Stage, step: Step) -> None:
    """NODE loses power."""
    stage.world.power_off(_name(stage, step), "loses power")


async def shut_down(stage: Stage, step: Step) -> None:
    """NODE is shut down in good order: its daemon ends its domains and gives them back (node/goingdown.py); then it is
    off."""
    machine = _machine(stage, step)
    if not (machine.power and machine.daemon):
        return
    node = stage.nodes[machine.name]
    stage.world.say("world", f"{machine.name} is shut down")
    machine.daemon = False
    stage.world.end_daemon(machine.name)
    try:
        await orders.away(node.store, machine.name, ANNOUNCED_S, now=stage.world.now() + BEGIN)
        if machine.name in stage.brains:
            await stage.brains[machine.name].leadership.resign()
        await node.heartbeat.withdraw()
        for name, copy in list(machine.copies.items()):
            if copy.incoming:
                continue
            await orders.spare(node.store, name, machine.name)
            del machine.copies[name]
            owner = await gate.read(node.store, name)
            if owner is not None and (owner.node, owner.boot) == (machine.name, copy.boot):
                await orders.give_back(node.store, owner)
    except VeeryError as error:
        stage.world.say(machine.name, f"cannot give its domains back: {error.message}")
    stage.world.losses.append((stage.world.now(), machine.name))
    stage.world.power_off(machine.name, "is off")


async def power_on(stage: Stage, step: Step) -> None:
    """NODE gets power again, and its daemon starts."""
    machine = _machine(stage, step)
    if machine.power:
        return
    machine.power = machine.daemon = True
    machine.thawed.set()
    stage.world.say("world", f"{machine.name} starts")
    stage.wake(machine.name)


async def freeze(stage: Stage, step: Step) -> None:
    """All processes of NODE stand still; its watchdog runs on."""
    machine = _machine(stage, step)
    stage.world.say("world", f"{machine.name} freezes")
    machine.thawed.clear()


async def thaw(stage: Stage, step: Step) -> None:
    """They go on; without NODE: those of every frozen one."""
    name = _any(stage, step)
    for machine in stage.world.machines.values():
        if machine.frozen and name in ("", machine.name):
            stage.world.say("world", f"{machine.name} goes on")
            machine.thawed.set()


async def cut(stage: Stage, step: Step) -> None:
    """NODE's networks are cut: net = "all", "cluster" or "storage"; with PEER only between these two, and with way "in"
    or "out" only the packets to NODE or from it."""
    _nets(stage, step, up=False)


async def heal(stage: Stage, step: Step) -> None:
    """They are whole again."""
    _nets(stage, step, up=True)


def _nets(stage: Stage, step: Step, *, up: bool) -> None:
    machine = _machine(stage, step)
    which = "every network" if step.net == "all" else f"the {step.net} network"
    again = " again" if up else ""
    if step.peer or step.way != "both":
        _pair(stage, machine.name, step, up=up)
        way = {"both": "between it and", "in": "from", "out": "to"}[step.way]
        verb = f"has{again}" if up else "loses"
        stage.world.say("world", f"{machine.name} {verb} what {which} carries {way} {step.peer or 'the others'}")
        return
    machine.cluster_net = up if step.net in ("all", "cluster") else machine.cluster_net
    machine.storage_net = up if step.net in ("all", "storage") else machine.storage_net
    stage.world.say("world", f"{machine.name} {'has' if up else 'loses'} {which}{again}")


def _pair(stage: Stage, name: str, step: Step, *, up: bool) -> None:
    paths = stage.world.paths
    if up:
        paths.heal(name, peer=step.peer, net=step.net, way=step.way)
    else:
        paths.cut(name, peer=step.peer, net=step.net, way=step.way, now=stage.world.now())


async def daemon_stop(stage: Stage, step: Step) -> None:
    """NODE's daemon is stopped; its domains run on."""
    machine = _machine(stage, step)
    if not (machine.power and machine.daemon):
        return
    stage.world.say("world", f"the daemon of {machine.name} stops")
    machine.daemon = False
    stage.world.end_daemon(machine.name)


async def daemon_start(stage: Stage, step: Step) -> None:
    """And started again."""
    machine = _machine(stage, step)
    if machine.daemon or not machine.power:
        return
    stage.world.say("world", f"the daemon of {machine.name} starts")
    machine.daemon = True
    stage.wake(machine.name)


async def etcd_stop(stage: Stage, step: Step) -> None:
    """The etcd member on NODE stops; without NODE: all of them."""
    name = _any(stage, step)
    for machine in stage.world.voters():
        machine.etcd = machine.etcd and name not in ("", machine.name)
    stage.world.say("world", f"etcd stops on {name or 'every voter'}")


async def etcd_start(stage: Stage, step: Step) -> None:
    """And starts again."""
    name = _any(stage, step)
    for machine in stage.world.voters():
        machine.etcd = machine.etcd or name in ("", machine.name)
    stage.world.say("world", f"etcd starts on {name or 'every voter'}")


async def disk_full(stage: Stage, step: Step) -> None:
    """The disk of NODE is full: its etcd member takes no part."""
    machine = _machine(stage, step)
    machine.disk_full = True
    stage.world.say("world", f"the disk of {machine.name} is full")


async def disk_freed(stage: Stage, step: Step) -> None:
    """It has room again."""
    machine = _machine(stage, step)
    machine.disk_full = False
    stage.world.say("world", f"the disk of {machine.name} has room again")


async def target_stop(stage: Stage, step: Step) -> None:
    """The storage service of NODE stops."""
    machine = _machine(stage, step)
    machine.target = False
    stage.world.say("world", f"the storage service of {machine.name} stops")


async def target_start(stage: Stage, step: Step) -> None:
    """And starts again, with the same access as before."""
    machine = _machine(stage, step)
    machine.target = True
    stage.world.say("world", f"the storage service of {machine.name} starts")


async def target_restart(stage: Stage, step: Step) -> None:
    """The storage service of NODE is killed and starts again at once, with nothing: it lets nobody in until the node's
    daemon has told it whom, by the records."""
    machine = _machine(stage, step)
    machine.target, machine.knows = True, False
    stage.world.say("world", f"the storage service of {machine.name} starts anew and knows nobody")


async def slow_store(stage: Stage, step: Step) -> None:
    """Each answer of the store comes `seconds` later, to NODE or to all; 0: as ever."""
    name = _any(stage, step)
    for machine in stage.world.machines.values():
        machine.slow = step.seconds if name in ("", machine.name) else machine.slow
    whom = name or "everybody"
    stage.world.say(
        "world", f"the store answers {whom} {f'{step.seconds:g} s late' if step.seconds else 'at once again'}"
    )


async def board_lost(stage: Stage, step: Step) -> None:
    """The board that switches NODE's power cannot be reached."""
    machine = _machine(stage, step)
    machine.board = False
    stage.world.say("world", f"the power board of {machine.name} cannot be reached")


async def board_back(stage: Stage, step: Step) -> None:
    """It can again."""
    machine = _machine(stage, step)
    machine.board = True
    stage.world.say("world", f"the power board of {machine.name} can be reached again")


async def slow_fence(stage: Stage, step: Step) -> None:
    """`method` takes `seconds` for NODE from now on, and works."""
    name = _name(stage, step)
    stage.world.lasting[f"{name}/{step.method}"] = step.seconds
    stage.world.say("world", f"a fence of {name} by {step.method} takes {step.seconds:g} s")


async def clock_step(stage: Stage, step: Step) -> None:
    """The wall clock of NODE is set by `seconds`."""
    machine = _machine(stage, step)
    machine.offset += step.seconds
    stage.world.say("world", f"the clock of {machine.name} is set by {step.seconds:+g} s")


async def lose_answer(stage: Stage, step: Step) -> None:
    """The next write of NODE to a key that begins with `text` gets no answer; `done`: it was carried out."""
    name = _name(stage, step)
    stage.nodes[name].store.lose = (step.text, step.done)
    stage.world.say("world", f"{name}'s next write of {step.text} will get no answer, done: {step.done}")


async def break_fence(stage: Stage, step: Step) -> None:
    """`method` fails for NODE, `count` times, saying `text`."""
    said = step.text or f"{step.method} does not answer"
    stage.world.failing["fence", f"{_name(stage, step)}/{step.method}"] = (step.count, said)


async def break_start(stage: Stage, step: Step) -> None:
    """The next `count` starts of DOMAIN fail (on NODE, if named), saying `text`; "unknown": they are done, and their
    answer is lost."""
    name = _any(stage, step)
    whom = f"{step.domain}@{name}" if name else step.domain
    if step.text == "unknown":
        stage.world.failing["answer", step.domain] = (step.count, step.text)
        return
    stage.world.failing["start", whom] = (step.count, step.text or f"{step.domain} does not start")


async def break_move(stage: Stage, step: Step) -> None:
    """The next `count` moves of DOMAIN fail."""
    stage.world.failing["move", step.domain] = (step.count, step.text or f"the copy of {step.domain} failed")


async def crash(stage: Stage, step: Step) -> None:
    """DOMAIN's process dies, wherever it runs."""
    for machine in stage.world.machines.values():
        copy = machine.copies.get(step.domain)
        if copy is not None and not copy.incoming:
            del machine.copies[step.domain]
            stage.world.say("world", f"{step.domain} dies on {machine.name}")


async def sick(stage: Stage, step: Step) -> None:
    """NODE's sensors say `text`."""
    machine = _machine(stage, step)
    machine.sick = step.text or "a disk reports errors"
    stage.world.say("world", f"{machine.name} is sick: {machine.sick}")


async def well(stage: Stage, step: Step) -> None:
    """They say nothing any more."""
    machine = _machine(stage, step)
    machine.sick = ""
    stage.world.say("world", f"{machine.name} is well again")


async def snapshot_store(stage: Stage, step: Step) -> None:
    """A copy of the store is put away."""
    del step
    stage.backup = stage.data.backup()
    stage.world.say("world", "a copy of the store is put away")


async def restore_store(stage: Stage, step: Step) -> None:
    """The store is put back as it was at the last `snapshot-store`; `text`: the cluster id that it gets ("": as it
    was). `seconds`: for so long before no voter's etcd runs."""
    if stage.backup is None:
        raise Refused("no copy of the store was put away")
    if step.seconds:
        await etcd_stop(stage, dataclasses.replace(step, node=""))
        await asyncio.sleep(step.seconds)
    before = _lasting(stage.data.backup())
    stage.data.restore(stage.backup, cluster=step.text)
    if step.text or before != _lasting(stage.backup):  # else nothing went back
        stage.world.went_back = stage.world.now()
    stage.world.say("world", "the store is restored from its copy")
    if step.seconds:
        await etcd_start(stage, dataclasses.replace(step, node=""))


def _lasting(backup: Backup) -> dict[str, tuple[int, bytes]]:
    """What hangs on no lease."""
    return {key: (each.revision, each.value) for key, each in backup.entries.items() if not each.lease}


# ---- commands
async def adopt(stage: Stage, step: Step) -> None:
    """veery cluster adopt [--lost NODE] (`node` is the one that is lost). With `force` the operator first ends what
    stands in its way: copies on nodes that are shut out, and the older of two copies."""
    name = _any(stage, step)
    if step.force:
        _end_stale(stage)
    _command(stage, f"cluster adopt{f' --lost {name}' if name else ''}")
    if not stage.world.members():
        raise Failed("the store does not answer")
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
                _command(stage, f"--node {machine.name} destroy {name}")
                del machine.copies[name]


async def ha_set(stage: Stage, step: Step) -> None:
    """veery ha set DOMAIN policy."""
    policy = step.policy or Policy.RESTART
    _command(stage, f"ha set {step.domain} {policy}")
    await orders.set_policy(stage.data, step.domain, policy, priority=step.priority, group=step.group)


async def drain(stage: Stage, step: Step) -> None:
    """veery node drain NODE [--force]: refused with all that stands in the way."""
    name = _name(stage, step)
    _command(stage, f"node drain {name}{' --force' if step.force else ''}")
    rules, look = stage.scenario.rules, _brain(stage).view_now
    made = await draining.drain(stage.data, look, TrueClock(), rules, name, by="operator", force=step.force)
    for warning in (*made.risks, *made.warnings):
        stage.world.say("veery", f"warning: {warning}")
    planned = ", ".join(f"{domain} to {target}" for domain, target in made.moves) or "nothing to move"
    stage.world.say("veery", f"plan: {planned}")


async def resume(stage: Stage, step: Step) -> None:
    """veery node resume NODE [--home]."""
    name = _name(stage, step)
    _command(stage, f"node resume {name}{' --home' if step.home else ''}")
    rules, look = stage.scenario.rules, _brain(stage).view_now
    await draining.resume(stage.data, look, TrueClock(), rules, name, by="operator", home=step.home)


async def away(stage: Stage, step: Step) -> None:
    """NODE's daemon announces that it will be away for `seconds`."""
    name = _name(stage, step)
    stage.world.say(name, f"announces a restart of its daemon within {step.seconds:g} s")
    await orders.away(stage.data, name, step.seconds, now=stage.world.now() + BEGIN)


async def confirm(stage: Stage, step: Step) -> None:
    """veery fence confirm NODE."""
    name = _name(stage, step)
    _command(stage, f"fence confirm {name}")
    await orders.confirm(stage.data, name, by="operator", now=stage.world.now() + BEGIN)
    stage.world.losses.append((stage.world.now(), name))


async def disarm(stage: Stage, step: Step) -> None:
    """veery disarm."""
    _command(stage, "disarm")
    await orders.disarm(stage.data, by="operator", reason=step.text, now=stage.world.now() + BEGIN)


async def arm(stage: Stage, step: Step) -> None:
    """veery arm."""
    del step
    _command(stage, "arm")
    await orders.arm(stage.data)


async def destroy(stage: Stage, step: Step) -> None:
    """veery destroy DOMAIN: ended on purpose."""
    _command(stage, f"destroy {step.domain}")
    if await gate.end_of_fenced(stage.data, step.domain):
        return
    await orders.want(stage.data, step.domain, wanted=False)
    owner = await gate.read(stage.data, step.domain)
    if owner is None or step.domain not in stage.world.machines[owner.node].copies:
        raise Failed(f"{step.domain} does not run")
    await stage.nodes[owner.node].end(step.domain, owner.boot)


async def create(stage: Stage, step: Step) -> None:
    """veery create DOMAIN, on NODE."""
    machine = _machine(stage, step)
    _command(stage, f"create {step.domain} on {machine.name}")
    if not (machine.well and machine.daemon):
        raise Failed(f"{machine.name} does not answer")
    if Role.HYPERVISOR not in machine.roles:
        raise Refused(f"{machine.name} runs no domains")
    await orders.require_undrained(stage.data, machine.name)
    await gate.reclaim(stage.data, step.domain)
    boot = f"{step.domain}-by-hand-{stage.world.runs[step.domain]}"
    await gate.claim(stage.data, step.domain, machine.name, boot, None)
    await orders.want(stage.data, step.domain, wanted=True)
    await orders.stay(stage.data, step.domain)
    stage.world.begin(machine, step.domain, boot)


async def migrate(stage: Stage, step: Step) -> None:
    """veery migrate DOMAIN NODE: begun, not waited for."""
    name = _name(stage, step)
    _command(stage, f"migrate {step.domain} {name}")
    owner = await OWNERS.get(stage.data, step.domain)
    if owner is None:
        raise Refused(f"domain {step.domain} does not run")
    if not stage.world.linked(owner.node, owner.node):
        raise Failed(f"{owner.node} does not answer")
    if owner.node == name:
        raise Refused(f"it runs on {name} already")
    await orders.require_undrained(stage.data, name)
    stage.world.works(owner.node, stage.nodes[owner.node].send(step.domain, stage.nodes[name]))
    await orders.stay(stage.data, step.domain)


async def ask_why(stage: Stage, step: Step) -> None:
    """veery why NODE or DOMAIN."""
    name = step.domain or _name(stage, step)
    _command(stage, f"why {name}")
    for line in why(_brain(stage).view_now(), name, stage.world.now() + BEGIN, stage.scenario.rules):
        stage.world.say("veery", line)


STEPS: dict[str, Callable[[Stage, Step], Awaitable[None]]] = {
    "power-off": power_off,
    "power-on": power_on,
    "shut-down": shut_down,
    "freeze": freeze,
    "thaw": thaw,
    "cut": cut,
    "heal": heal,
    "daemon-stop": daemon_stop,
    "daemon-start": daemon_start,
    "etcd-stop": etcd_stop,
    "etcd-start": etcd_start,
    "disk-full": disk_full,
    "disk-freed": disk_freed,
    "target-stop": target_stop,
    "target-start": target_start,
    "target-restart": target_restart,
    "slow-store": slow_store,
    "board-lost": board_lost,
    "board-back": board_back,
    "slow-fence": slow_fence,
    "clock-step": clock_step,
    "lose-answer": lose_answer,
    "break-fence": break_fence,
    "break-start": break_start,
    "break-move": break_move,
    "crash": crash,
    "sick": sick,
    "well": well,
    "ha-set": ha_set,
    "drain": drain,
    "resume": resume,
    "away": away,
    "confirm": confirm,
    "disarm": disarm,
    "arm": arm,
    "destroy": destroy,
    "create": create,
    "migrate": migrate,
    "why": ask_why,
    "snapshot-store": snapshot_store,
    "restore-store": restore_store,
    "adopt": adopt,
}


NEEDS: dict[str, tuple[str, ...]] = {  # the fields without which a step says nothing
    **dict.fromkeys(
        (
            "power-off",
            "power-on",
            "shut-down",
            "freeze",
            "cut",
            "heal",
            "daemon-stop",
            "daemon-start",
            "disk-full",
            "disk-freed",
            "target-stop",
            "target-start",
            "target-restart",
            "board-lost",
            "board-back",
            "sick",
            "well",
            "drain",
            "resume",
            "confirm",
        ),
        ("node",),
    ),
    "away": ("node", "seconds"),
    "clock-step": ("node", "seconds"),
    "slow-fence": ("node", "method"),
    "break-fence": ("node", "method"),
    "lose-answer": ("node", "text"),
    **dict.fromkeys(("break-start", "break-move", "crash", "ha-set", "destroy"), ("domain",)),
    **dict.fromkeys(("create", "migrate"), ("domain", "node")),
}


def check(step: Step) -> None:
    """Raises Refused for a step that is not known, or lacks a field that it needs."""
    if step.do not in STEPS:
        raise Refused(f"at {step.at:g}: no step {step.do!r}", hint=f"there are {', '.join(STEPS)}")
    for name in NEEDS.get(step.do, ()):
        if not getattr(step, name):
            raise Refused(f"at {step.at:g}: {step.do} needs `{name}`", hint="docs/ha.md has the keys of a scenario")
    if step.do == "why" and not (step.node or step.domain):
        raise Refused(f"at {step.at:g}: why needs `node` or `domain`", hint="docs/ha.md has the keys of a scenario")
    if step.net not in ("all", *NETS):
        raise Refused(f"at {step.at:g}: no net {step.net!r}", hint="all, cluster or storage")


def _command(stage: Stage, text: str) -> None:
    stage.world.say("operator", f"veery {text}")


def _name(stage: Stage, step: Step) -> str:
    """The step's node; "leader" is whoever leads now."""
    name = stage.leader() if step.node == "leader" else step.node
    if not name:
        raise Refused(f"{step.do}: no node is named, or none leads")
    return name


def _any(stage: Stage, step: Step) -> str:
    """The step's node; "" where none is named."""
    return _name(stage, step) if step.node else ""


def _machine(stage: Stage, step: Step) -> Machine:
    return stage.world.machines[_name(stage, step)]


def _brain(stage: Stage) -> Brain:
    """The brain that answers: the leader's, else any that lives."""
    name = stage.leader() or next((each for each in stage.brains if stage.world.machines[each].well), "")
    if not name:
        raise Failed("no node answers")
    return stage.brains[name]
