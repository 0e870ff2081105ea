"""The plan of a lab, after the seed's drawing: names, addresses and folders. Nothing here changes the machine.

    client 172.16.31.100 ── switch ── stor  172.16.31.3   storage, voter
                                 ├─── test1 172.16.31.1   hypervisor, voter
                                 └─── test2 172.16.31.2   hypervisor, voter   (test3 .11, test4 .12, ...)

Further storage nodes, if requested, are stor2 (172.16.32.2), stor3 (.3) and so on.

Each machine is a network namespace `vy-LAB-MACHINE`; its addresses exist only inside. Each node has a folder
`XDG_CACHE_HOME/veery/lab/LAB/NODE` with etc/veery.toml, lib (its state), run (its sockets) and log.

With the driver xen the hypervisors are nested: virtual machines in QEMU, with their cables in the namespace. They have
no vote then: stor is the only voter."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from veery.client.address import lab_folder
from veery.errors import Refused
from veery.model.node import Role

BRIDGE = "xenbr0"
DRIVERS = ("qemu", "xen")
PREFIX = 16
SWITCH, CLIENT, STORAGE = "switch", "client", "stor"
CLIENT_ADDRESS = "172.16.31.100"
DOMAIN_ADDRESS = "172.16.31.4"  # typed into the domain's console, as in the seed
NAMESPACES = Path("/run/netns")  # ip-netns(8)'s folder

_NAME = re.compile(r"[a-z][a-z0-9]{0,15}")
_NAMESPACE = re.compile(r"vy-([a-z][a-z0-9]{0,15})-(?:switch|client|stor\d*|test\d+)")
_SEED_MACS = {"test1": "08:00:27:16:d9:aa", "test2": "08:00:27:6a:9d:57"}  # HWADDR in the seed's ifcfg-eth0
_RUN_PATH_MAX = 60  # leaves 47 of a socket path's 107 characters (unix(7)) for the files below a run folder


@dataclass(frozen=True, slots=True)
class Machine:
    """One node of a lab."""

    name: str
    address: str
    roles: tuple[Role, ...]

    @property
    def mac(self) -> str:
        """Return the fixed MAC of its eth0 and xenbr0; the seed's own if it has one."""
        octets = "".join(f":{int(part):02x}" for part in self.address.split("."))
        return _SEED_MACS.get(self.name, "02:00" + octets)


@dataclass(frozen=True, slots=True)
class Plan:
    """One lab: its name and its nodes, the storage node first; `driver` runs the domains."""

    lab: str
    nodes: tuple[Machine, ...]
    driver: str = "qemu"
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", lab_folder(self.lab))

    def node(self, name: str) -> Machine:
        """Return node `name`. Raises Refused."""
        for machine in self.nodes:
            if machine.name == name:
                return machine
        known = ", ".join(machine.name for machine in self.nodes)
        raise Refused(f"lab {self.lab} has no node {name}", hint=f"its nodes are {known}")

    def nested(self, machine: str) -> bool:
        """Return whether `machine` is a nested node."""
        return self.driver == "xen" and any(
            machine == node.name and Role.HYPERVISOR in node.roles for node in self.nodes
        )

    def namespace(self, machine: str) -> str:
        """Return the network namespace of `machine` (a node, "switch" or "client")."""
        return f"vy-{self.lab}-{machine}"

    def namespaces(self) -> tuple[str, ...]:
        """Return all network namespaces, the switch's first."""
        return tuple(self.namespace(name) for name in (SWITCH, CLIENT, *(node.name for node in self.nodes)))

    def home(self, node: str) -> Path:
        """Return the folder of `node`."""
        return self.folder / node

    def settings(self, node: str) -> Path:
        """Return the settings file of `node`."""
        return self.home(node) / "etc" / "veery.toml"


def plan(lab: str, hypervisors: int = 2, storages: int = 1, driver: str = "qemu") -> Plan:
    """Return the plan of lab `lab`. Raises Refused for an invalid name or number, or if its folder's path is too long
    for the sockets in it."""
    if not _NAME.fullmatch(lab):
        raise Refused(f"not a name for a lab: {lab!r}", hint="use a-z first, then at most 15 of a-z and 0-9")
    if not 1 <= hypervisors <= 60:
        raise Refused(f"a lab has 1 to 60 hypervisors, not {hypervisors}", hint="the default is --nodes 2")
    if not 1 <= storages <= 60:
        raise Refused(f"a lab has 1 to 60 storage nodes, not {storages}", hint="the default is --storages 1")
    nodes = [Machine(STORAGE, "172.16.31.3", (Role.STORAGE, Role.VOTER))]
    nodes += [
        Machine(f"{STORAGE}{number}", f"172.16.32.{number}", (Role.STORAGE,)) for number in range(2, storages + 1)
    ]
    for number in range(1, hypervisors + 1):
        voter = (Role.VOTER,) if number <= 2 and driver != "xen" else ()
        last = number if number <= 2 else number + 8
        nodes.append(Machine(f"test{number}", f"172.16.31.{last}", (Role.HYPERVISOR, *voter)))
    made = Plan(lab, tuple(nodes), driver)
    longest = max(len(str(made.home(node.name) / "run")) for node in nodes)
    if longest > _RUN_PATH_MAX:
        raise Refused(
            f"the path {made.folder} is too long for the unix sockets in it",
            hint="set XDG_CACHE_HOME to a folder with a shorter name",
        )
    return made


def lab_of(namespace: str) -> str:
    """Return the lab of a network namespace, "" if it belongs to none."""
    match = _NAMESPACE.fullmatch(namespace)
    return match.group(1) if match else ""
