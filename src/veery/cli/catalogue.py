"""The catalogue: name, module and summary of every verb. `veery` loads only the module of the verb that it runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from veery.cli.parser import Parser
    from veery.cli.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """A verb: its options, its text, and the function that runs it and returns the exit status.

    `about` is the text of the manual. `examples` has one command a line (`command  # what it does`). `failure` is a
    further meaning of exit status 1. `json` and `dry` are true if the verb supports --json and -N."""

    run: Callable[[Session, Namespace], int]
    declare: Callable[[Parser], None]
    about: str
    examples: str = ""
    failure: str = ""
    json: bool = False
    dry: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `veery --help`. The VERBS of `module` hold its Verb."""

    name: str
    module: str
    summary: str

    def load(self) -> Verb:
        """Import the module and return the verb."""
        verbs: dict[str, Verb] = importlib.import_module(f"veery.cli.{self.module}").VERBS
        return verbs[self.name]


GROUPS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "Domains",
        (
            Entry("create", "create", "start a domain from its domain file"),
            Entry("list", "inspect", "list domains"),
            Entry("console", "lifecycle", "attach to a domain's console"),
            Entry("shutdown", "lifecycle", "ask a domain to power off"),
            Entry("reboot", "lifecycle", "ask a domain to restart"),
            Entry("destroy", "lifecycle", "stop a domain immediately"),
            Entry("delete", "lifecycle", "delete the record of a domain that does not run"),
            Entry("pause", "lifecycle", "pause a domain's virtual processors"),
            Entry("unpause", "lifecycle", "resume a paused domain"),
            Entry("save", "lifecycle", "write a domain's state to a file"),
            Entry("restore", "lifecycle", "resume a domain from a saved state"),
            Entry("rename", "lifecycle", "change a domain's name"),
            Entry("sysrq", "signals", "send a magic SysRq key to a domain's kernel"),
            Entry("trigger", "signals", "send an NMI to a domain or press its power button"),
            Entry("dump-core", "signals", "write a domain's memory to a file"),
            Entry("mem-set", "lifecycle", "set a domain's memory"),
            Entry("mem-max", "adjusting", "set a domain's maximum memory"),
            Entry("vcpu-set", "adjusting", "set how many virtual processors are online"),
            Entry("vcpu-pin", "adjusting", "pin virtual processors to host processors"),
            Entry("sched-credit", "adjusting", "set a domain's weight and cap"),
            Entry("sched-credit2", "adjusting", "set a domain's weight and cap"),
        ),
    ),
    (
        "Moves",
        (
            Entry("migrate", "moves", "move running domains to another node"),
            Entry("moves", "movelist", "list moves"),
            Entry("move show", "movelist", "show the report of a move"),
            Entry("move set", "movelist", "change the bandwidth or downtime limit of a running move"),
            Entry("move cancel", "movelist", "cancel a running move"),
            Entry("balance", "balance", "plan moves that make the load even"),
        ),
    ),
    (
        "High availability",
        (
            Entry("ha set", "ha", "set the HA policy of a domain"),
            Entry("ha list", "ha", "list the HA policies of domains"),
            Entry("ha show", "ha", "show the HA policy of one domain"),
            Entry("group list", "groups", "list the groups of domains and their placement rules"),
            Entry("group set", "groups", "set the placement rule of a group"),
            Entry("group delete", "groups", "delete the placement rule of a group"),
            Entry("why", "ha", "explain why the cluster acts or does not act"),
            Entry("events", "ha", "print what the cluster did automatically"),
            Entry("disarm", "ha", "turn automatic actions of the cluster off"),
            Entry("arm", "ha", "turn automatic actions of the cluster on again"),
        ),
    ),
    (
        "Inspection",
        (
            Entry("vcpu-list", "inspect", "list virtual processors"),
            Entry("vm-list", "inspect", "list domains with their UUIDs"),
            Entry("uptime", "inspect", "show how long domains have run"),
            Entry("domid", "inspect", "print the id of a domain"),
            Entry("domname", "inspect", "print the name of a domain"),
            Entry("info", "inspect", "show the node's processors, memory and versions"),
            Entry("top", "inspect", "monitor the processor and memory use of domains"),
            Entry("dmesg", "inspect", "print the hypervisor's log"),
        ),
    ),
    (
        "Devices",
        (
            Entry("block-list", "devices", "list a domain's disks"),
            Entry("block-attach", "devices", "plug a disk into a running domain"),
            Entry("block-detach", "devices", "unplug a disk"),
            Entry("cd-insert", "media", "insert a medium into a CD-ROM drive"),
            Entry("cd-eject", "media", "eject the medium of a CD-ROM drive"),
            Entry("network-list", "devices", "list a domain's network interfaces"),
            Entry("network-attach", "devices", "plug a network interface into a running domain"),
            Entry("network-detach", "devices", "unplug a network interface"),
        ),
    ),
    (
        "Storage and network",
        (
            Entry("volume list", "volumes", "list volumes"),
            Entry("volume show", "volumes", "show one volume"),
            Entry("volume create", "volumes", "create a volume"),
            Entry("volume import", "volumes", "fill a volume from a disk image"),
            Entry("volume resize", "volumes", "grow a volume, also while a domain uses it"),
            Entry("volume move", "volumes", "move a volume to another storage node, live"),
            Entry("volume delete", "volumes", "delete a volume"),
            Entry("image build", "volumes", "build a guest's root filesystem into a volume"),
            Entry("target list", "volumes", "show the iSCSI targets as tgtadm reports them"),
            Entry("network list", "nodes", "list the bridges of a node"),
        ),
    ),
    (
        "Nodes",
        (
            Entry("node list", "nodes", "list the nodes of the cluster"),
            Entry("node show", "nodes", "show one node"),
            Entry("node token", "nodes", "create a token that lets a new node join"),
            Entry("token list", "nodes", "list the unused tokens"),
            Entry("token revoke", "nodes", "revoke a token"),
            Entry("node drain", "maintenance", "empty a node for maintenance"),
            Entry("node resume", "maintenance", "return a drained node to service"),
            Entry("node health", "nodehealth", "show the health of nodes by their sensors"),
            Entry("node well", "nodehealth", "declare a node healthy"),
            Entry("node vote", "recovery", "give a node a vote in the store, or take the vote away"),
            Entry("node storage", "readdress", "give a node the storage role, or take the role away"),
            Entry("node readdress", "readdress", "change the address of a node"),
            Entry("node restart", "upkeep", "restart a node's etcd"),
            Entry("node renew", "certificates", "renew a node's certificate"),
            Entry("node leave", "nodes", "remove a node from the cluster"),
            Entry("node forget", "nodes", "remove a dead node from the cluster"),
            Entry("simulate", "simulate", "simulate a cluster in virtual time"),
            Entry("doctor", "doctor", "check everything that the cluster needs"),
            Entry("sensors", "sensors", "check the sensors of this machine's hardware"),
            Entry("selftest kvm", "selftest", "test the life cycle of a domain on this machine"),
            Entry("report", "report", "collect a support report without secrets"),
            Entry("alarm list", "alarms", "show how a node sends alarms"),
            Entry("alarm test", "alarms", "send a test alarm"),
            Entry("fence list", "fences", "list the fenced nodes"),
            Entry("fence show", "fences", "show the fence of a node"),
            Entry("fence test", "fences", "test whether a node could be fenced"),
            Entry("fence confirm", "fences", "confirm that a lost node is off"),
            Entry("fence lift", "fences", "lift the fence of a node"),
            Entry("cluster status", "ha", "show the quorum, the leader and each node's state"),
            Entry("cluster roll", "roll", "drain each node in turn, run a command, resume it"),
            Entry("cluster adopt", "adoption", "adopt a store that was restored"),
            Entry("cluster recover", "recovery", "rebuild the store after the loss of most voters"),
            Entry("cluster defrag", "upkeep", "free space in the store, also in a full one"),
            Entry("cluster backup", "upkeep", "back up the store to a file"),
            Entry("cluster ca", "certificates", "show the cluster's CA, or replace it"),
            Entry("cluster cpu", "plan", "show the CPU model that new domains get"),
            Entry("setup", "setup", "install what this machine needs to be a node"),
            Entry("init", "nodes", "create a cluster with this machine as its first node"),
            Entry("join", "nodes", "add this machine to a cluster"),
            Entry("version", "nodes", "print the version"),
            Entry("completion", "completion", "print a shell completion script"),
        ),
    ),
)


def entries() -> dict[str, Entry]:
    """Return every entry by the name of its verb."""
    return {entry.name: entry for _, group in GROUPS for entry in group}
