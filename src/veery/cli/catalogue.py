"""Every verb's name, module and one line. Kept apart from the verbs so that only the one that is called is loaded."""

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
    """What a verb is: its options, its text, and the function that does it and returns the exit status.

    `about` is the manual's text, `examples` one command a line (`command  # what it does`), `failure` what exit
    status 1 may mean besides. `json` and `dry` say whether --json and -N mean anything to it."""

    run: Callable[[Session, Namespace], int]
    declare: Callable[[Parser], None]
    about: str
    examples: str = ""
    failure: str = ""
    json: bool = False
    dry: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `veery --help`; `module` is where its Verb stands, in that module's VERBS."""

    name: str
    module: str
    summary: str

    def load(self) -> Verb:
        """The verb itself."""
        verbs: dict[str, Verb] = importlib.import_module(f"veery.cli.{self.module}").VERBS
        return verbs[self.name]


GROUPS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "Domains",
        (
            Entry("create", "create", "start a domain from its file"),
            Entry("list", "inspect", "list domains"),
            Entry("console", "lifecycle", "attach to a domain's console"),
            Entry("shutdown", "lifecycle", "ask a domain to power off"),
            Entry("reboot", "lifecycle", "ask a domain to restart"),
            Entry("destroy", "lifecycle", "end a domain at once"),
            Entry("delete", "lifecycle", "forget a domain that does not run"),
            Entry("pause", "lifecycle", "stop a domain's processors"),
            Entry("unpause", "lifecycle", "let a paused domain go on"),
            Entry("save", "lifecycle", "write a domain's state to a file"),
            Entry("restore", "lifecycle", "start a saved domain where it stood"),
            Entry("rename", "lifecycle", "give a domain another name"),
            Entry("sysrq", "signals", "send a magic SysRq letter to a domain's kernel"),
            Entry("trigger", "signals", "give a domain an NMI or press its power button"),
            Entry("dump-core", "signals", "write a domain's memory to a file"),
            Entry("mem-set", "lifecycle", "set a domain's memory"),
            Entry("mem-max", "adjusting", "set the most memory that a domain can have"),
            Entry("vcpu-set", "adjusting", "set how many virtual processors are online"),
            Entry("vcpu-pin", "adjusting", "say on which processors a domain runs"),
            Entry("sched-credit", "adjusting", "set a domain's weight and cap"),
            Entry("sched-credit2", "adjusting", "set a domain's weight and cap"),
        ),
    ),
    (
        "Moving",
        (
            Entry("migrate", "moves", "move running domains to another node"),
            Entry("moves", "movelist", "list moves"),
            Entry("move show", "movelist", "show the report of a move"),
            Entry("move set", "movelist", "change the bandwidth or downtime of a move under way"),
            Entry("move cancel", "movelist", "cancel a move that is under way"),
        ),
    ),
    (
        "High availability",
        (
            Entry("ha set", "ha", "say what the cluster does for a domain by itself"),
            Entry("ha list", "ha", "list what is asked for domains"),
            Entry("ha show", "ha", "show what is asked for one domain"),
            Entry("group list", "groups", "list groups of domains and their rules"),
            Entry("group set", "groups", "say how the domains of a group lie on the nodes"),
            Entry("group delete", "groups", "take a group's rule away"),
            Entry("why", "ha", "say why the cluster does or does not act"),
            Entry("events", "ha", "print what the cluster did by itself"),
            Entry("disarm", "ha", "have the cluster do nothing by itself"),
            Entry("arm", "ha", "let the cluster act by itself again"),
        ),
    ),
    (
        "Looking",
        (
            Entry("vcpu-list", "inspect", "list virtual processors"),
            Entry("vm-list", "inspect", "list domains with their UUIDs"),
            Entry("uptime", "inspect", "show for how long domains have run"),
            Entry("domid", "inspect", "print the id of a domain"),
            Entry("domname", "inspect", "print the name of a domain"),
            Entry("info", "inspect", "show the node: processors, memory, versions"),
            Entry("top", "inspect", "watch what domains use"),
            Entry("dmesg", "inspect", "print the hypervisor's log"),
        ),
    ),
    (
        "Devices",
        (
            Entry("block-list", "devices", "list a domain's disks"),
            Entry("block-attach", "devices", "plug a disk into a running domain"),
            Entry("block-detach", "devices", "unplug a disk"),
            Entry("cd-insert", "media", "put a medium into a CD-ROM drive"),
            Entry("cd-eject", "media", "take the medium out of a CD-ROM drive"),
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
            Entry("volume create", "volumes", "make a volume"),
            Entry("volume import", "volumes", "fill a volume from a file"),
            Entry("volume resize", "volumes", "grow a volume, under a running domain too"),
            Entry("volume move", "volumes", "move a volume to another storage node, live"),
            Entry("volume delete", "volumes", "delete a volume"),
            Entry("image build", "volumes", "build a guest's root filesystem into a volume"),
            Entry("target list", "volumes", "show the iSCSI targets as tgtadm tells them"),
            Entry("network list", "nodes", "list the bridges of a node"),
        ),
    ),
    (
        "Nodes",
        (
            Entry("node list", "nodes", "list the nodes of the cluster"),
            Entry("node show", "nodes", "show one node"),
            Entry("node token", "nodes", "make a token with which a new node may join"),
            Entry("token list", "nodes", "list the tokens that are not used yet"),
            Entry("token revoke", "nodes", "take a token back"),
            Entry("node drain", "maintenance", "empty a node for maintenance"),
            Entry("node resume", "maintenance", "put a drained node to use again"),
            Entry("node health", "nodehealth", "show what the sensors say of nodes"),
            Entry("node well", "nodehealth", "say that a node is well"),
            Entry("node vote", "recovery", "give a node a vote in the store, or take it"),
            Entry("node storage", "readdress", "make a node a storage node, or none any more"),
            Entry("node readdress", "readdress", "change the address of a node"),
            Entry("node restart", "upkeep", "restart a node's etcd"),
            Entry("node renew", "certificates", "give a node a new certificate"),
            Entry("node leave", "nodes", "put a node out of the cluster"),
            Entry("node forget", "nodes", "put a dead node out of the cluster"),
            Entry("simulate", "simulate", "play what would happen to a cluster, in virtual time"),
            Entry("doctor", "doctor", "look at all that a cluster needs, and say what to do"),
            Entry("sensors", "sensors", "judge what this machine's hardware says of itself"),
            Entry("selftest kvm", "selftest", "try on this machine what a domain goes through"),
            Entry("report", "report", "collect what somebody who helps needs, without secrets"),
            Entry("alarm list", "alarms", "show how a node calls somebody"),
            Entry("alarm test", "alarms", "send a test message"),
            Entry("fence list", "fences", "list the nodes that are kept from the disks"),
            Entry("fence show", "fences", "show the fence of a node"),
            Entry("fence test", "fences", "ask whether a node could be fenced"),
            Entry("fence confirm", "fences", "give your word that a lost node is off"),
            Entry("fence lift", "fences", "let a fenced node in again"),
            Entry("cluster status", "ha", "show the quorum, the leader and each node's state"),
            Entry("cluster roll", "roll", "drain, run a command, resume: one node after the other"),
            Entry("cluster adopt", "adoption", "go on with a store that was restored"),
            Entry("cluster recover", "recovery", "make a store again where most voters are gone"),
            Entry("cluster defrag", "upkeep", "make room in the store, also in one that is full"),
            Entry("cluster backup", "upkeep", "copy the store to a file"),
            Entry("cluster ca", "certificates", "show the cluster's CA, or roll a new one out"),
            Entry("cluster cpu", "plan", "show the processor that new domains get"),
            Entry("setup", "setup", "look at what this machine lacks to be a node, and install it"),
            Entry("init", "nodes", "begin a cluster, with this machine as its first node"),
            Entry("join", "nodes", "make this machine a node of a cluster"),
            Entry("version", "nodes", "print the version"),
            Entry("completion", "completion", "print a shell's completion script"),
        ),
    ),
)


def entries() -> dict[str, Entry]:
    """Every verb by name."""
    return {entry.name: entry for _, group in GROUPS for entry in group}
