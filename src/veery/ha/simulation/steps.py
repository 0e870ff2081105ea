"""What a scenario's steps can do: to the world here, and as a user's commands in commands.py."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

from veery.cluster import owner as gate
from veery.cluster.memory import Backup
from veery.errors import Refused, VeeryError
from veery.ha import orders
from veery.ha.simulation import commands
from veery.ha.simulation.clock import BEGIN
from veery.ha.simulation.paths import NETS
from veery.ha.simulation.scenario import Step
from veery.ha.simulation.stage import Stage, any_name, machine_of, name_of
from veery.ha.simulation.world import Machine
from veery.health import looking
from veery.health.sign import RANK, Level, sign

ANNOUNCED_S = 60.0  # as the setting ha.away ships


# ---- the world
async def power_off(stage: Stage, step: Step) -> None:
    """NODE loses power."""
    stage.world.power_off(name_of(stage, step), "loses power")


async def shut_down(stage: Stage, step: Step) -> None:
    """NODE is shut down in good order: its daemon ends its domains and gives them back (node/goingdown.py); then it is
    off."""
    machine = machine_of(stage, step)
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
    machine = machine_of(stage, step)
    if machine.power:
        return
    machine.power = machine.daemon = True
    machine.boots += 1
    machine.thawed.set()
    stage.world.say("world", f"{machine.name} starts")
    stage.wake(machine.name)


async def freeze(stage: Stage, step: Step) -> None:
    """All processes of NODE stand still; its watchdog runs on."""
    machine = machine_of(stage, step)
    stage.world.say("world", f"{machine.name} freezes")
    machine.thawed.clear()


async def thaw(stage: Stage, step: Step) -> None:
    """They go on; without NODE: those of every frozen one."""
    name = any_name(stage, step)
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
    machine = machine_of(stage, step)
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
    machine = machine_of(stage, step)
    if not (machine.power and machine.daemon):
        return
    stage.world.say("world", f"the daemon of {machine.name} stops")
    machine.daemon = False
    stage.world.end_daemon(machine.name)


async def daemon_start(stage: Stage, step: Step) -> None:
    """And started again."""
    machine = machine_of(stage, step)
    if machine.daemon or not machine.power:
        return
    stage.world.say("world", f"the daemon of {machine.name} starts")
    machine.daemon = True
    stage.wake(machine.name)


async def etcd_stop(stage: Stage, step: Step) -> None:
    """The etcd member on NODE stops; without NODE: all of them."""
    name = any_name(stage, step)
    for machine in stage.world.voters():
        machine.etcd = machine.etcd and name not in ("", machine.name)
    stage.world.say("world", f"etcd stops on {name or 'every voter'}")


async def etcd_start(stage: Stage, step: Step) -> None:
    """And starts again."""
    name = any_name(stage, step)
    for machine in stage.world.voters():
        machine.etcd = machine.etcd or name in ("", machine.name)
    stage.world.say("world", f"etcd starts on {name or 'every voter'}")


async def disk_full(stage: Stage, step: Step) -> None:
    """The disk of NODE is full: its etcd member takes no part."""
    machine = machine_of(stage, step)
    machine.disk_full = True
    stage.world.say("world", f"the disk of {machine.name} is full")


async def disk_freed(stage: Stage, step: Step) -> None:
    """It has room again."""
    machine = machine_of(stage, step)
    machine.disk_full = False
    stage.world.say("world", f"the disk of {machine.name} has room again")


async def target_stop(stage: Stage, step: Step) -> None:
    """The storage service of NODE stops."""
    machine = machine_of(stage, step)
    machine.target = False
    stage.world.say("world", f"the storage service of {machine.name} stops")


async def target_start(stage: Stage, step: Step) -> None:
    """And starts again, with the same access as before."""
    machine = machine_of(stage, step)
    machine.target = True
    stage.world.say("world", f"the storage service of {machine.name} starts")


async def target_restart(stage: Stage, step: Step) -> None:
    """The storage service of NODE is killed and starts again at once, with nothing: it lets nobody in until the node's
    daemon has told it whom, by the records."""
    machine = machine_of(stage, step)
    machine.target, machine.knows = True, False
    stage.world.say("world", f"the storage service of {machine.name} starts anew and knows nobody")


async def slow_store(stage: Stage, step: Step) -> None:
    """Each answer of the store comes `seconds` later, to NODE or to all; 0: as ever."""
    name = any_name(stage, step)
    for machine in stage.world.machines.values():
        machine.slow = step.seconds if name in ("", machine.name) else machine.slow
    whom = name or "everybody"
    stage.world.say(
        "world", f"the store answers {whom} {f'{step.seconds:g} s late' if step.seconds else 'at once again'}"
    )


async def board_lost(stage: Stage, step: Step) -> None:
    """The board that switches NODE's power cannot be reached."""
    machine = machine_of(stage, step)
    machine.board = False
    stage.world.say("world", f"the power board of {machine.name} cannot be reached")


async def board_back(stage: Stage, step: Step) -> None:
    """It can again."""
    machine = machine_of(stage, step)
    machine.board = True
    stage.world.say("world", f"the power board of {machine.name} can be reached again")


async def slow_fence(stage: Stage, step: Step) -> None:
    """`method` takes `seconds` for NODE from now on, and works."""
    name = name_of(stage, step)
    stage.world.lasting[f"{name}/{step.method}"] = step.seconds
    stage.world.say("world", f"a fence of {name} by {step.method} takes {step.seconds:g} s")


async def clock_step(stage: Stage, step: Step) -> None:
    """The wall clock of NODE is set by `seconds`."""
    machine = machine_of(stage, step)
    machine.offset += step.seconds
    stage.world.say("world", f"the clock of {machine.name} is set by {step.seconds:+g} s")


async def lose_answer(stage: Stage, step: Step) -> None:
    """The next write of NODE to a key that begins with `text` gets no answer; `done`: it was carried out."""
    name = name_of(stage, step)
    stage.nodes[name].store.lose = (step.text, step.done)
    stage.world.say("world", f"{name}'s next write of {step.text} will get no answer, done: {step.done}")


async def break_fence(stage: Stage, step: Step) -> None:
    """`method` fails for NODE, `count` times, saying `text`."""
    said = step.text or f"{step.method} does not answer"
    stage.world.failing["fence", f"{name_of(stage, step)}/{step.method}"] = (step.count, said)


async def break_start(stage: Stage, step: Step) -> None:
    """The next `count` starts of DOMAIN fail (on NODE, if named), saying `text`; "unknown": they are done, and their
    answer is lost."""
    name = any_name(stage, step)
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
    """A disk of NODE says that it fails: `text`."""
    machine = machine_of(stage, step)
    said = step.text or "the disk says that it fails"
    machine.shown["smart", "sda"] = sign("smart", "sda", Level.BAD, "", said)
    stage.world.say("world", f"{machine.name} is sick: {said}")


async def well(stage: Stage, step: Step) -> None:
    """NODE is mended, and an operator says so."""
    machine = machine_of(stage, step)
    machine.shown.clear()
    machine.hung.clear()
    stage.world.say("world", f"{machine.name} is well again")
    stage.nodes[machine.name].called_well("")


async def sign_shown(stage: Stage, step: Step) -> None:
    """`sensor` of NODE finds `part` to be at `level` (ok, watch, bad, unknown), with `value` and `text`; `counter`: a
    counter grows too fast, nothing that has happened for good; `serial`: that of the part;
    `exposed`: the next fault of its kind ends the node. With
    `tree` all sensors of NODE read that recorded tree instead."""
    machine = machine_of(stage, step)
    if step.tree:
        _tree_shown(stage, machine, step.tree)
        return
    part, level = step.part or "it", Level(step.level)
    text = step.text or f"it is {level}"
    machine.shown[step.sensor, part] = sign(
        step.sensor,
        part,
        level,
        step.value,
        text,
        counter=step.counter,
        serial=step.serial,
        exposed=step.exposed,
    )
    stage.world.say("world", f"{step.sensor} of {machine.name} finds {part} {level}: {text}")


def _tree_shown(stage: Stage, machine: Machine, tree: str) -> None:
    found = looking.case(stage.scenario.folder / tree)
    machine.shown.clear()
    for each in sorted(found.signs, key=lambda each: RANK[each.level]):  # of several about one part the gravest
        machine.shown[each.sensor, each.part] = each
    stage.world.say("world", f"the sensors of {machine.name} read {tree.rpartition('/')[2]}: {found.level}")


async def sensor_hung(stage: Stage, step: Step) -> None:
    """`sensor` of NODE gives no answer any more."""
    machine = machine_of(stage, step)
    machine.hung.add(step.sensor)
    stage.world.say("world", f"{step.sensor} of {machine.name} hangs")


async def sensor_back(stage: Stage, step: Step) -> None:
    """It answers again."""
    machine = machine_of(stage, step)
    machine.hung.discard(step.sensor)
    stage.world.say("world", f"{step.sensor} of {machine.name} answers again")


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
    "sign": sign_shown,
    "sensor-hangs": sensor_hung,
    "sensor-back": sensor_back,
    "node-well": commands.node_well,
    "ha-set": commands.ha_set,
    "drain": commands.drain,
    "resume": commands.resume,
    "away": commands.away,
    "confirm": commands.confirm,
    "disarm": commands.disarm,
    "arm": commands.arm,
    "destroy": commands.destroy,
    "create": commands.create,
    "migrate": commands.migrate,
    "why": commands.ask_why,
    "record": commands.ask_record,
    "snapshot-store": snapshot_store,
    "restore-store": restore_store,
    "adopt": commands.adopt,
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
            "node-well",
            "drain",
            "resume",
            "confirm",
        ),
        ("node",),
    ),
    "away": ("node", "seconds"),
    "sign": ("node", "sensor", "level"),
    **dict.fromkeys(("sensor-hangs", "sensor-back"), ("node", "sensor")),
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
    for name in ("node",) if step.tree else NEEDS.get(step.do, ()):
        if not getattr(step, name):
            raise Refused(f"at {step.at:g}: {step.do} needs `{name}`", hint="docs/ha.md has the keys of a scenario")
    if step.tree and step.do != "sign":
        raise Refused(f"at {step.at:g}: {step.do} reads no tree", hint="only `sign` does")
    if step.level and step.level not in tuple(Level):
        raise Refused(f"at {step.at:g}: no level {step.level!r}", hint=f"one of {', '.join(Level)}")
    if step.do == "why" and not (step.node or step.domain):
        raise Refused(f"at {step.at:g}: why needs `node` or `domain`", hint="docs/ha.md has the keys of a scenario")
    if step.net not in ("all", *NETS):
        raise Refused(f"at {step.at:g}: no net {step.net!r}", hint="all, cluster or storage")
