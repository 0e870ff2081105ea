"""Real faults for a lab's machines: power cuts, cut cables, frozen and killed programs. Nothing is simulated.

A cut is a `blackhole` queue (tc-stab(8) family; in every kernel) at one end of the cable. So each direction can be cut
separately, and the card still has a carrier, as behind a broken switch. The lab's nodes have only one network. To cut
only the cluster's or only the storage's network, the node's packet filter (nft(8)) drops the ports of the API, of moves
and of etcd, or those of iSCSI.

A nested node is cut, frozen and powered off from outside, at its cables and its outer QEMU. Its programs are found and
killed inside."""

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
_GROUP_LIMIT_BYTES = 24 << 20  # the memory limit of a starved group
_HOG = "room = []\nwhile True:\n room.append(bytearray(1 << 20))"


class Direction(StrEnum):
    """The direction in which a cable is cut."""

    BOTH = "both"
    IN = "in"  # the machine receives nothing
    OUT = "out"  # the others receive nothing from the machine


class Net(StrEnum):
    """The network of a node that is cut."""

    ALL = "all"
    CLUSTER = "cluster"  # the API, moves, etcd
    STORAGE = "storage"  # iSCSI


async def cut(lab: Lab, node: str, direction: Direction = Direction.BOTH, net: Net = Net.ALL) -> None:
    """Cut the cable of `node` (or of the client), or one of its networks. Packets are then lost silently."""
    if net is not Net.ALL:
        await _filter(lab, node, net, _chains(net, direction, nested=lab.plan.nested(node)))
        return
    for where, device in _ends(node, direction):
        await _outside(lab, where, ["tc", "qdisc", "replace", "dev", device, "root", "blackhole"])


async def heal(lab: Lab, node: str) -> None:
    """Restore the cable of `node` in both directions, and all its networks."""
    if node in (each.name for each in lab.plan.nodes):
        for net in (Net.CLUSTER, Net.STORAGE):
            await _filter(lab, node, net, "")
    for where, device in _ends(node, Direction.BOTH):
        shown = await _outside(lab, where, ["tc", "qdisc", "show", "dev", device])
        if "blackhole" in shown:
            await _outside(lab, where, ["tc", "qdisc", "delete", "dev", device, "root"])


async def power_off(lab: Lab, node: str) -> None:
    """Cut the power of `node`: first its cable, so that not even the kernel's FIN or RST leaves it, then every process.
    Its taps and its run folder are removed, as by a reboot; its disk (state) stays."""
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
    """Restore the power of `node`: its cable and veeryd, which starts the node's services."""
    await heal(lab, node)
    if lab.plan.nested(node):
        await lab.nested(node).power_on()
    await lab.start(node)


async def freeze(lab: Lab, node: str, *, deadline: float = 20.0) -> tuple[Member, ...]:
    """Stop every process of `node` (SIGSTOP), like a machine that hangs; return the stopped processes. Its kernel still
    answers. A running thread continues until the signal reaches it, so this returns only when every thread is stopped.
    Raises Failed after `deadline` seconds."""
    frozen: dict[int, Member] = {}
    try:
        async with asyncio.timeout(deadline):
            while running := [each for each in lab.members(node) if not each.standing()]:
                for each in running:
                    each.process.send(signal.SIGSTOP)
                    frozen[each.process.pid] = each
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise Failed(f"{node} was not frozen within {deadline:g} s", hint="a process hangs in the kernel") from error
    return tuple(frozen.values())


async def halt(stopped: Sequence[Member], *, deadline: float = 20.0) -> None:
    """Stop only these processes (SIGSTOP); return when all their threads are stopped or have ended. Raises Failed after
    `deadline` seconds."""
    try:
        async with asyncio.timeout(deadline):
            while running := [each for each in stopped if each.process.alive() and not each.standing()]:
                for each in running:
                    each.process.send(signal.SIGSTOP)
                await asyncio.sleep(0.005)
    except TimeoutError as error:
        raise Failed(f"{running[0].program} was not stopped within {deadline:g} s") from error


def go_on(stopped: Sequence[Member]) -> None:
    """Continue the processes that `halt` stopped."""
    for each in stopped:
        each.process.send(signal.SIGCONT)


def thaw(lab: Lab, node: str) -> tuple[Member, ...]:
    """Continue the processes of a frozen node; return them."""
    thawed = lab.members(node)
    for member in thawed:
        member.process.send(signal.SIGCONT)
    return thawed


def find(lab: Lab, node: str, program: str) -> tuple[Member, ...]:
    """Return the processes on `node` whose program's name begins with `program`: "veeryd", "etcd", "tgtd",
    "qemu-system". Raises Refused if there is none."""
    found = tuple(member for member in lab.members(node) if member.program.startswith(program))
    if not found:
        running = ", ".join(sorted({member.program for member in lab.members(node)})) or "nothing"
        raise Refused(f"no {program} runs on {node}", hint=f"running programs: {running}")
    return found


async def kill(lab: Lab, node: str, program: str) -> tuple[Member, ...]:
    """Send SIGKILL to the processes that `find` returns, and wait for their end."""
    found = find(lab, node, program)
    await members.end(found)
    return found


@contextlib.asynccontextmanager
async def starved(lab: Lab, node: str, victim: Member, *, deadline: float = 60.0) -> AsyncIterator[None]:
    """Make `victim` on `node` run out of memory: move it into its own memory cgroup with a low limit, together with a
    process that allocates more and more. The kernel's OOM killer then kills the larger of the two, a QEMU with a guest.
    Yields when the victim is dead. Raises Failed if it still runs after `deadline` seconds, Refused if this machine has
    no memory cgroups."""
    group = _group(f"veery-{lab.plan.lab}-{node}")
    try:
        with contextlib.suppress(ProcessLookupError):
            (group / "cgroup.procs").write_text(str(victim.process.pid))
        join = f'ulimit -v 1000000; echo $$ >{group}/cgroup.procs && exec "$@"'
        async with asyncio.timeout(deadline):
            while victim.process.alive():
                hog = await asyncio.create_subprocess_exec("sh", "-c", join, "sh", sys.executable, "-c", _HOG)
                try:  # the OOM killer kills it too, once it is alone
                    await hog.wait()
                finally:
                    if hog.returncode is None:
                        hog.kill()
                        await hog.wait()
        await victim.process.gone()
        yield
    except TimeoutError as error:
        raise Failed(f"{victim.program} on {node} did not run out of memory", hint=f"see {group}") from error
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def fill(folder: Path) -> Path:
    """Fill the filesystem of `folder` to its last block; return the file, which the caller removes."""
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
    """Return a new memory cgroup with a limit. Raises Refused."""
    for top in _CGROUPS:
        group = Path(top, name)
        with contextlib.suppress(OSError):
            group.mkdir(exist_ok=True)
            for limit in _LIMITS:
                if (group / limit).exists():
                    (group / limit).write_text(str(_GROUP_LIMIT_BYTES))
                    return group
            group.rmdir()
    raise Refused("this machine lets veery make no memory cgroup", hint="is /sys/fs/cgroup mounted, and writable?")


async def inside(lab: Lab, node: str, program: str) -> tuple[Member, ...]:
    """Return as `find` the processes in a nested node's dom0, with its own pids; () if there is none."""
    return tuple(member for member in await lab.nested(node).members() if member.program.startswith(program))


async def signal_inside(lab: Lab, node: str, program: str, number: signal.Signals = signal.SIGKILL) -> int:
    """Send a signal to the processes that `inside` returns, and after SIGKILL wait for their end; return their number.
    Raises Refused if there is none."""
    found = await inside(lab, node, program)
    if not found:
        raise Refused(f"no {program} runs in {node}")
    await asyncio.gather(*(talk.send(lab.nested(node).namespace, member.process, number) for member in found))
    return len(found)


async def _outside(lab: Lab, machine: str, argv: list[str]) -> str:
    """Run `argv` in the machine's namespace, for a nested node outside of it; return its output."""
    return await hosts.inside(lab.plan.namespace(machine), list(argv))


async def _filter(lab: Lab, node: str, net: Net, chains: str) -> None:
    """Make `node`, or the bridge outside of a nested node, drop packets of `net` by `chains` ("": none). This replaces
    its former chains for `net`."""
    family = "bridge" if lab.plan.nested(node) else "inet"
    table = f"table {family} veery_fault_{net}"  # the first line makes it, so that the deletion cannot fail
    rules = f"{table}\ndelete {table}\n" + (f"{table} {{\n{chains}}}\n" if chains else "")
    await _outside(lab, node, ["nft", rules])


def _chains(net: Net, direction: Direction, *, nested: bool) -> str:
    """Return nft's rules that drop a node's incoming or outgoing packets from or to the ports of `net`."""
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
    """Return each (machine, device) whose sending side is to be cut: the switch's port, the machine's own card."""
    ends = []
    if direction is not Direction.OUT:
        ends.append((SWITCH, node))
    if direction is not Direction.IN:
        ends.append((node, "eth0"))
    return ends
