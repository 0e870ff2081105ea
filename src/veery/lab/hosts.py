"""The lab's machines as network namespaces: a switch, a client outside, and the nodes with their xenbr0."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from veery.errors import Failed, Refused
from veery.host.run import run
from veery.lab import lock, members
from veery.lab.plan import BRIDGE, CLIENT, CLIENT_ADDRESS, NAMESPACES, PREFIX, SWITCH, Machine, Plan, lab_of
from veery.lab.xen.agent import HERE as LINK_HERE
from veery.lab.xen.agent import LAN, LINK

SWITCH_BRIDGE = "br0"
_CALL_TIMEOUT_S = 30.0
_NO_IPV6 = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $f ] || echo 1 >$f; done"


async def build(plan: Plan) -> None:
    """Make the namespaces and connect them. Raises Failed with ip(8)'s words; `remove` then removes them."""
    await _batch([f"netns add {name}" for name in plan.namespaces()])
    # The nodes' addresses are IPv4, as in the seed; IPv6's own packets would only disturb measurements.
    await asyncio.gather(*(inside(name, ["sh", "-c", _NO_IPV6]) for name in plan.namespaces()))
    machines = (CLIENT, *(node.name for node in plan.nodes))
    await _batch(_switch(plan, machines), inside=plan.namespace(SWITCH))
    await asyncio.gather(
        _batch(_client(), inside=plan.namespace(CLIENT)),
        *(
            _batch(_wires() if plan.nested(node.name) else _node(node), inside=plan.namespace(node.name))
            for node in plan.nodes
        ),
    )


async def remove(lab: str, folder: Path) -> None:
    """Remove everything that exists of lab `lab`: processes, namespaces (with all links in them), `folder`. Raises
    Failed if a process does not end."""
    names = [path.name for path in _namespaces() if lab_of(path.name) == lab]
    await members.kill(lambda: members.members([NAMESPACES / name for name in names]))
    if names:
        await _batch([f"netns delete {name}" for name in names])
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def stands(lab: str) -> bool:
    """Return whether any namespace of `lab` exists."""
    return any(lab_of(path.name) == lab for path in _namespaces())


async def sweep(labs: Path) -> tuple[str, ...]:
    """Remove every lab that an ended process has left; return their names. `labs` is the folder of the labs' folders. A
    lab in use, or made to stay, is left alone."""
    found = {*lock.known(), *(lab_of(path.name) for path in _namespaces())} - {""}
    found |= {path.name for path in labs.glob("*") if path.is_dir()}
    swept = []
    for lab in sorted(found):
        try:
            held = lock.LabLock(lab)
        except Refused:
            continue
        record = lock.read(lab)
        if record is not None and record.stays:
            held.release()
            continue
        await remove(lab, Path(record.folder) if record else labs / lab)
        held.forget()
        swept.append(lab)
    return tuple(swept)


async def inside(namespace: str, argv: Sequence[str | Path], *, deadline: float = _CALL_TIMEOUT_S) -> str:
    """Run `argv` in a namespace; return its output. Raises Failed."""
    return (await run(enter(namespace, argv), deadline=deadline)).out


def enter(namespace: str, argv: Sequence[str | Path]) -> list[str | Path]:
    """Return the command line that runs `argv` in a namespace, in the same process (nsenter(1) execs it)."""
    return ["nsenter", f"--net={NAMESPACES / namespace}", "--", *argv]


def environ(plan: Plan, machine: str) -> dict[str, str]:
    """Return the additional environment of a command inside `machine`: veery's programs in PATH and, on a node, its
    settings. A nested node gets nothing of it: it has its own."""
    # VEERY_NODE belongs to the caller: inside a node, veery uses that node's daemon
    found = {
        "VEERY_LAB": plan.lab,
        "VEERY_NODE": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
    }
    if machine not in (CLIENT, SWITCH) and not plan.nested(machine):
        found["VEERY_SETTINGS"] = str(plan.settings(machine))
    return found


def members_of(plan: Plan, machine: str) -> tuple[members.Member, ...]:
    """Return the processes that run inside `machine`."""
    return members.members([NAMESPACES / plan.namespace(machine)])


def _switch(plan: Plan, machines: Iterable[str]) -> list[str]:
    lines = [f"link add {SWITCH_BRIDGE} type bridge", f"link set {SWITCH_BRIDGE} up"]
    for name in machines:
        lines.append(f"link add {name} type veth peer name eth0 netns {plan.namespace(name)}")
        lines.append(f"link set {name} master {SWITCH_BRIDGE} up")
    return lines


def _client() -> list[str]:
    return ["link set lo up", f"addr add {CLIENT_ADDRESS}/{PREFIX} dev eth0", "link set eth0 up"]


def _node(node: Machine) -> list[str]:
    """Return a node's links, as in the seed's ifcfg-eth0 and ifcfg-xenbr0. A set MAC does not follow the ports'."""
    return [
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"link set {BRIDGE} address {node.mac}",
        f"link set eth0 address {node.mac} master {BRIDGE}",
        "link set eth0 up",
        f"addr add {node.address}/{PREFIX} brd + dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]


def _wires() -> list[str]:
    """Return the cables of a nested node: one to the switch, one to its agent."""
    lines = ["link set lo up", "link add wire type bridge", "link set wire up", "link set eth0 master wire up"]
    lines += [f"tuntap add dev {LAN} mode tap", f"tuntap add dev {LINK} mode tap"]
    lines += [f"link set {LAN} master wire up", f"addr add {LINK_HERE}/30 dev {LINK}", f"link set {LINK} up"]
    return lines


async def _batch(lines: Sequence[str], *, inside: str = "") -> None:
    where = ["-netns", inside] if inside else []
    text = "\n".join(lines).encode() + b"\n"
    result = await run(["ip", *where, "-batch", "-"], deadline=_CALL_TIMEOUT_S, stdin=text, check=False)
    if result.code:
        message = (result.err.strip() or "no message").splitlines()[0]
        raise Failed(f"building the lab: {message}", hint="run as root; veery lab down removes a half-built one")


def _namespaces() -> list[Path]:
    return list(NAMESPACES.iterdir()) if NAMESPACES.is_dir() else []
