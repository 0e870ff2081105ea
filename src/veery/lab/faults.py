"""Real faults for a lab's machines: power, cables, frozen and killed programs. Nothing is simulated.

A cut is a `blackhole` queue (tc-stab(8) family; in every kernel) on one end of the cable, so that each direction can
be cut alone and the card still shows its carrier, as behind a broken switch. The lab's nodes have one network; where a
real node has one for the cluster and one for its storage, one of the two is cut by what its own packet filter drops
(nft(8)): the ports of the API, of moves and of etcd, or those of iSCSI.

A nested node is cut, frozen and powered off from outside, at its cables and its outer QEMU; programs in it are found
and killed inside."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from pathlib import Path

from veery.config.settings import Settings
from veery.errors import Failed, Refused
from veery.lab import hosts, members
from veery.lab.members import Member
from veery.lab.plan import SWITCH
from veery.lab.services import Lab
from veery.lab.xen import talk

_CGROUPS = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")  # version 1 beside others, version 2
_LIMITS = ("memory.limit_in_bytes", "memory.max")
_ENOUGH = 24 << 20  # bytes that all in a starved group may take from then on
_HOG = "room = []\nwhile True:\n room.append(bytearray(1 << 20))"


class Direction(StrEnum):
    """Which way a cable is cut."""

    BOTH = "both"
    IN = "in"  # the machine hears nothing
    OUT = "out"  # the machine is not heard


class Net(StrEnum):
    """Which of a node's networks is cut."""

    ALL = "all"
    CLUSTER = "cluster"  # the API, moves, etcd
    STORAGE = "storage"  # iSCSI


async def cut(lab: Lab, node: str, direction: Direction = Direction.BOTH, net: Net = Net.ALL) -> None:
    """Cut the cable of `node` (or of the client), or one of its networks. What is sent from now on is lost without a
    sign."""
    if net is not Net.ALL:
        await _filter(lab, node, net, _chains(net, direction, nested=lab.plan.nested(node)))
        return
    for where, device in _ends(node, direction):
        await _outside(lab, where, ["tc", "qdisc", "replace", "dev", device, "root", "blackhole"])


async def heal(lab: Lab, node: str) -> None:
    """Mend the cable of `node`, whichever way it was cut, and all its networks."""
    if node in (each.name for each in lab.plan.nodes):
        for net in (Net.CLUSTER, Net.STORAGE):
            await _filter(lab, node, net, "")
    for where, device in _ends(node, Direction.BOTH):
        shown = await _outside(lab, where, ["tc", "qdisc", "show", "dev", device])
        if "blackhole" in shown:
            await _outside(lab, where, ["tc", "qdisc", "delete", "dev", device, "root"])


async def power_off(lab: Lab, node: str) -> None:
    """Take the power away: the cable first, so that not even the kernel's FIN or RST gets out, then every process.
    What a reboot would empty is emptied: the taps and the run folder; the disk (state) stays."""
    await cut(lab, node)
    await members.kill(lambda: lab.members(node))
    if lab.plan.nested(node):
        return
    shown = (await lab.run(node, ["ip", "-o", "link", "show", "type", "tun"])).out
    for row in shown.splitlines():
        await lab.run(node, ["ip", "link", "delete", row.split(":")[1].strip()])
    run = lab.plan.home(node) / "run"
    shutil.rmtree(run)
    run.mkdir()


async def power_on(lab: Lab, node: str) -> None:
    """Give the power back: cable and veeryd, which starts what the node had."""
    await heal(lab, node)
    if lab.plan.nested(node):
        await lab.nested(node).power_on()
    await lab.start(node)


async def freeze(lab: Lab, node: str, *, deadline: float = 20.0) -> tuple[Member, ...]:
    """Stop every process of `node` (SIGSTOP), as a machine that hangs; those stopped. The kernel still answers. What
    was on a processor goes on until the signal reaches it: we come back when each thread stands. Raises Failed after
    `deadline` seconds."""
    frozen: dict[int, Member] = {}
    try:
        async with asyncio.timeout(deadline):
            while moving := [each for each in lab.members(node) if not each.standing()]:
                for each in moving:
                    each.process.send(signal.SIGSTOP)
                    frozen[each.process.pid] = each
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise Failed(f"{node} was not frozen within {deadline:g} s", hint="a process hangs in the kernel") from error
    return tuple(frozen.values())


async def halt(stopped: Sequence[Member], *, deadline: float = 20.0) -> None:
    """Stop these processes alone (SIGSTOP); we come back when each thread of them stands, or they have ended. Raises
    Failed after `deadline` seconds."""
    try:
        async with asyncio.timeout(deadline):
            while moving := [each for each in stopped if each.process.alive() and not each.standing()]:
                for each in moving:
                    each.process.send(signal.SIGSTOP)
                await asyncio.sleep(0.005)
    except TimeoutError as error:
        raise Failed(f"{moving[0].program} was not stopped within {deadline:g} s") from error


def go_on(stopped: Sequence[Member]) -> None:
    """Let what `halt` stopped go on."""
    for each in stopped:
        each.process.send(signal.SIGCONT)


def thaw(lab: Lab, node: str) -> tuple[Member, ...]:
    """Let a frozen node go on."""
    thawed = lab.members(node)
    for member in thawed:
        member.process.send(signal.SIGCONT)
    return thawed


def find(lab: Lab, node: str, program: str) -> tuple[Member, ...]:
    """The processes on `node` whose program's name begins with `program`: "veeryd", "etcd", "tgtd", "qemu-system".
    Raises Refused when there is none."""
    found = tuple(member for member in lab.members(node) if member.program.startswith(program))
    if not found:
        running = ", ".join(sorted({member.program for member in lab.members(node)})) or "nothing"
        raise Refused(f"no {program} runs on {node}", hint=f"there runs {running}")
    return found


async def kill(lab: Lab, node: str, program: str) -> tuple[Member, ...]:
    """SIGKILL the processes that `find` finds, and wait for their end."""
    found = find(lab, node, program)
    await members.end(found)
    return found


@contextlib.asynccontextmanager
async def starved(lab: Lab, node: str, victim: Member, *, deadline: float = 60.0) -> AsyncIterator[None]:
    """Let the memory of `node` run out for `victim`: it is put into a memory cgroup of its own that has nothing left
    to give, with another process that wants more and more. The kernel's OOM killer then takes the larger of the two,
    which is a QEMU with a guest in it. Yields when the victim is dead. Raises Failed where it outlives `deadline`
    seconds, Refused where this machine has no memory cgroups."""
    group = _group(f"veery-{lab.plan.lab}-{node}")
    try:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(victim.process.pid))
        join = f'ulimit -v 1000000; echo $$ >{group}/cgroup.procs && exec "$@"'
        async with asyncio.timeout(deadline):
            while victim.process.alive():
                hog = await asyncio.create_subprocess_exec("sh", "-c", join, "sh", sys.executable, "-c", _HOG)
                try:  # it is killed in its turn, when it alone is left
                    await hog.wait()
                finally:
                    if hog.returncode is None:
                        hog.kill()
                        await hog.wait()
        await victim.process.gone()
        yield
    except TimeoutError as error:
        raise Failed(f"{victim.program} on {node} had enough memory", hint=f"see {group}") from error
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def fill(folder: Path) -> Path:
    """Fill the filesystem of `folder` to its last block; the file to be removed."""
    path = folder / "filler"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for piece in (1 << 20, 4 << 10):
            while True:
                try:
                    os.write(handle, bytes(piece))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break
    finally:
        os.close(handle)
    return path


def _group(name: str) -> Path:
    """A fresh memory cgroup with a limit. Raises Refused."""
    for top in _CGROUPS:
        group = Path(top, name)
        with contextlib.suppress(OSError):
            group.mkdir(exist_ok=True)
            for limit in _LIMITS:
                if (group / limit).exists():
                    (group / limit).write_text(str(_ENOUGH))
                    return group
            group.rmdir()
    raise Refused("there are no memory cgroups here that we may make", hint="is /sys/fs/cgroup mounted, and writable?")


async def inside(lab: Lab, node: str, program: str) -> tuple[Member, ...]:
    """As `find`, of a nested node: the processes in its dom0, by its own pids; () when there is none."""
    return tuple(member for member in await lab.nested(node).members() if member.program.startswith(program))


async def signal_inside(lab: Lab, node: str, program: str, number: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to the processes that `inside` finds, and after SIGKILL wait for their end; how many there were.
    Raises Refused when there is none."""
    found = await inside(lab, node, program)
    if not found:
        raise Refused(f"no {program} runs in {node}")
    await asyncio.gather(*(talk.send(lab.nested(node).namespace, member.process, number) for member in found))
    return len(found)


async def _outside(lab: Lab, machine: str, argv: list[str]) -> str:
    """Run `argv` in the machine's namespace, on our side of a nested node's cards; its output."""
    return await hosts.inside(lab.plan.namespace(machine), list(argv))


async def _filter(lab: Lab, node: str, net: Net, chains: str) -> None:
    """Have `node`, or the bridge outside of a nested one, drop what `chains` say of `net` ("": nothing), instead of
    what it dropped."""
    family = "bridge" if lab.plan.nested(node) else "inet"
    table = f"table {family} veery_fault_{net}"  # made before it is deleted: it may not be there
    rules = f"{table}\ndelete {table}\n" + (f"{table} {{\n{chains}}}\n" if chains else "")
    await _outside(lab, node, ["nft", rules])


def _chains(net: Net, direction: Direction, *, nested: bool) -> str:
    """nft's rules that drop what comes into a node, or leaves it, from or to the ports of `net`."""
    settings = Settings()
    ports = {
        Net.CLUSTER: (
            *(settings.api.port, settings.relocation.port),
            *(settings.etcd.client_port, settings.etcd.peer_port),
        ),
        Net.STORAGE: (settings.storage.portal_port,),
    }[net]
    names = ", ".join(str(port) for port in ports)
    ways = {Direction.IN: ("input", ""), Direction.OUT: ("output", "")}
    if nested:
        ways = {Direction.IN: ("forward", 'iifname "eth0" '), Direction.OUT: ("forward", 'oifname "eth0" ')}
    return "".join(
        f"chain {way} {{ type filter hook {hook} priority -300; "
        f"{which}tcp sport {{ {names} }} drop; {which}tcp dport {{ {names} }} drop; }}\n"
        for way, (hook, which) in ways.items()
        if direction in (Direction.BOTH, way)
    )


def _ends(node: str, direction: Direction) -> list[tuple[str, str]]:
    """(machine, device) whose sending side is to be stopped: the switch's port, the machine's own card."""
    ends = []
    if direction is not Direction.OUT:
        ends.append((SWITCH, node))
    if direction is not Direction.IN:
        ends.append((node, "eth0"))
    return ends
