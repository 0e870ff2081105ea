"""The simulated world: machines, networks, storage, and the judge, who sees everything and tells nobody.

A copy of a domain writes when its machine has power and is not frozen, its storage can be reached, and the storage lets
the node in. Two copies that write, or an old one that writes after a newer, is what must never be."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from veery.cluster.trust import Seen
from veery.errors import Failed, OutcomeUnknown
from veery.ha.simulation.clock import BEGIN
from veery.ha.simulation.paths import Paths
from veery.ha.simulation.scenario import Scenario
from veery.health.sign import Sign
from veery.health.verdict import History
from veery.model.ha import StorageHeartbeat
from veery.model.node import Role
from veery.model.verdict import HealthRecord, NodeVerdict

T = TypeVar("T")

ANSWER = 1.5  # seconds after which who does not answer is given up


@dataclass(slots=True)
class Copy:
    """One run of a domain on a machine. `number` counts all runs of the domain; `incoming`: half a copy of a move."""

    domain: str
    boot: str
    number: int
    running: bool = True
    incoming: bool = False
    since: float = 0.0
    flows: bool = True  # of half a copy: its source still sends


@dataclass(slots=True)
class Machine:
    """A node's machine, and what its processes hold."""

    name: str
    roles: tuple[Role, ...]
    room: int
    methods: tuple[str, ...]
    watchdog: float
    stop: float
    power: bool = True
    daemon: bool = True
    etcd: bool = True
    target: bool = True  # its storage service, on a storage node
    knows: bool = True  # the storage service has whom it lets in; after a restart it lets nobody in at first
    board: bool = True  # the board that switches its power can be reached
    slow: float = 0.0  # seconds by which each answer of the store comes later
    cluster_net: bool = True
    storage_net: bool = True
    disk_full: bool = False
    boots: int = 1  # how often it was started
    booted: int = 1  # the same, when its daemon started last
    shown: dict[tuple[str, str], Sign] = field(default_factory=dict)  # by sensor and part: what sensors read now
    hung: set[str] = field(default_factory=set)  # sensors that give no answer
    history: History = field(default_factory=History)  # what its disk has of its health
    health: HealthRecord = field(default_factory=HealthRecord)  # the verdict as its daemon has it
    offset: float = 0.0  # of its wall clock
    fed: float = 0.0  # when its watchdog was last fed
    went_off: float = float("-inf")  # when it last lost power
    copies: dict[str, Copy] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)  # a storage node's: whom it does not let in
    signs: dict[str, tuple[float, bool]] = field(default_factory=dict)  # a storage node's: heartbeats
    seen: Seen | None = None  # what its disk has of the store that it knows
    thawed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def frozen(self) -> bool:
        """Whether all its processes stand still."""
        return not self.thawed.is_set()

    @property
    def sound(self) -> bool:
        """Whether no sensor speaks against it."""
        return self.health.verdict is NodeVerdict.WELL

    @property
    def well(self) -> bool:
        """Whether its processes run."""
        return self.power and not self.frozen

    def load(self) -> Seen | None:
        """As veery.cluster.trust.Memory.load."""
        return self.seen

    async def save(self, seen: Seen) -> None:
        """As veery.cluster.trust.Memory.save."""
        self.seen = seen

    async def gate(self) -> None:
        """Return when its processes run: a frozen machine's coroutines wait here."""
        await self.thawed.wait()


class World:
    """All machines, the clocks, the story and the judge."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.machines: dict[str, Machine] = {}
        for name, setup in scenario.nodes.items():
            machine = Machine(name, setup.roles, setup.room, setup.methods, setup.watchdog, setup.stop)
            machine.thawed.set()
            self.machines[name] = machine
        self._voters = tuple(each for each in self.machines.values() if Role.VOTER in each.roles)
        self._storages = tuple(each for each in self.machines.values() if Role.STORAGE in each.roles)
        self.runs: dict[str, int] = dict.fromkeys(scenario.domains, 0)  # the last number of a run
        self.wrote: dict[str, int] = dict.fromkeys(scenario.domains, 0)  # the newest run that wrote
        self.broken: list[str] = []
        self.lines: list[str] = []
        self.unstarted: list[tuple[float, str]] = []  # starts that the store's absence cut short
        self.starts: list[tuple[float, str, str]] = []  # second, domain, node: orders of the brain that succeeded
        self.moves: list[tuple[float, str, str]] = []
        self.fences: list[tuple[float, str, str]] = []  # second, node, method: proofs
        self.losses: list[tuple[float, str]] = []  # second, node: what ran there is to run elsewhere
        self.failing: dict[tuple[str, str], tuple[int, str]] = {}  # (what, whom): how often still, what is said
        self.went_back: float | None = None  # since when the store is one that was restored and not yet adopted
        self.lasting: dict[str, float] = {}  # "NODE/METHOD": seconds that this fence takes
        self.touched: dict[str, float] = {}  # when a user last gave a command about each domain, or it ended
        self.homes: dict[str, str] = {}  # the node that has the disk of each local domain
        self.paths = Paths(self.machines)
        self._tasks: dict[str, dict[asyncio.Task[Any], None]] = {name: {} for name in self.machines}  # in their order

    # ---- time and story
    def now(self) -> float:
        """Virtual seconds."""
        return asyncio.get_running_loop().time()

    def say(self, who: str, text: str) -> None:
        """One line of the story."""
        self.lines.append(f"{self.now():7.1f}  {who:<9}{text}")

    def breaks(self, text: str) -> None:
        """The judge: what must never be has happened. Said once."""
        if text not in self.broken:
            self.broken.append(text)
            self.say("JUDGE", text)

    def touch(self, domain: str) -> None:
        """A command of a user about `domain` begins or ends now."""
        self.touched[domain] = self.now()

    # ---- who reaches whom
    def voters(self) -> tuple[Machine, ...]:
        """The voters' machines."""
        return self._voters

    def storages(self) -> tuple[Machine, ...]:
        """The storage nodes' machines."""
        return self._storages

    def members(self) -> list[str]:
        """The voters that take part: most of all, each in touch with one of them that leads. None without quorum."""
        voters = self.voters()
        up = [each.name for each in voters if each.well and each.etcd and each.cluster_net and not each.disk_full]
        if self.paths.whole:
            return up if 2 * len(up) > len(voters) else []
        parts = [[other for other in up if other == one or self.paths.both(one, other, "cluster")] for one in up]
        most = max(parts, key=len, default=[])
        return most if 2 * len(most) > len(voters) else []

    def reaches_store(self, node: str) -> bool:
        """Whether `node` gets answers of the store: from any member that takes part."""
        members = self.members() if self.machines[node].cluster_net else []
        return any(each == node or self.paths.both(node, each, "cluster") for each in members)

    def writes_store(self, node: str) -> bool:
        """Whether what `node` asks of the store is done, be it without an answer."""
        members = self.members() if self.machines[node].cluster_net else []
        return any(each == node or self.paths.sends(node, each, "cluster", self.now()) for each in members)

    def linked(self, one: str, other: str) -> bool:
        """Whether the daemons of two nodes hear each other."""
        return self._up(one, other) and self.paths.both(one, other, "cluster")

    def _up(self, one: str, other: str) -> bool:
        pair = (self.machines[one], self.machines[other])
        if one == other:
            return pair[0].well and pair[0].daemon
        return all(each.well and each.daemon and each.cluster_net for each in pair)

    def reaches_storage(self, node: str, storage: Machine) -> bool:
        """Whether `node` can write to `storage` and hears that it was written."""
        return self._serves(node, storage) and self.paths.both(node, storage.name, "storage")

    def _writes_storage(self, node: str, storage: Machine) -> bool:
        """Whether what `node` writes to `storage` gets there, answered or not."""
        return self._serves(node, storage) and self.paths.sends(node, storage.name, "storage", self.now())

    def _serves(self, node: str, storage: Machine) -> bool:
        machine = self.machines[node]
        path = storage.name == node or (machine.storage_net and storage.storage_net)
        return path and storage.well and storage.target and storage.knows and node not in storage.denied

    async def call(self, one: str, other: str) -> None:
        """`one` asks `other` for something: returns when it was heard. Raises Failed."""
        await asyncio.sleep(0.005)
        if not (self._up(one, other) and self.paths.sends(one, other, "cluster", self.now())):
            await asyncio.sleep(ANSWER)
            raise Failed(f"node {other} does not answer")

    def fails(self, what: str, whom: str) -> None:
        """Raise Failed where the scenario wants `what` about `whom` to fail."""
        count, said = self.failing.get((what, whom), (0, ""))
        if count > 0:
            self.failing[what, whom] = (count - 1, said)
            if said == "unknown":
                raise OutcomeUnknown("the answer was lost")
            raise Failed(said)

    # ---- copies
    def writes(self, machine: Machine, copy: Copy) -> bool:
        """Whether `copy` can write at this moment."""
        if not machine.well or not copy.running or copy.incoming:
            return False
        if self.scenario.domains[copy.domain].local:
            return True
        return any(self._writes_storage(machine.name, storage) for storage in self.storages())

    def begin(self, machine: Machine, domain: str, boot: str) -> Copy:
        """A run of `domain` begins on `machine`; the judge looks whether it may."""
        self.runs[domain] += 1
        copy = Copy(domain, boot, self.runs[domain], since=self.now())
        for other in self.machines.values():
            if other is machine:
                continue
            old = other.copies.get(domain)
            if old is not None and self.may_write_yet(other, old):
                self.breaks(f"{domain} was started on {machine.name} while its copy on {other.name} may write")
        machine.copies[domain] = copy
        if self.scenario.domains[domain].local:
            self.homes.setdefault(domain, machine.name)
        self.judge()
        return copy

    def lacks_disk(self, node: str, domain: str) -> bool:
        """Whether the disk of `domain` is a file of another node."""
        return self.homes.get(domain, node) != node

    def may_write_yet(self, machine: Machine, copy: Copy) -> bool:
        """Whether `copy` writes, or would if networks came back or its machine thawed."""
        if not (machine.power and copy.running) or copy.incoming:
            return False
        local = self.scenario.domains[copy.domain].local
        return local or any(machine.name not in storage.denied for storage in self.storages())

    def judge(self) -> None:
        """Look at every disk now."""
        writers: dict[str, list[tuple[Machine, Copy]]] = {}
        for machine in self.machines.values():
            for copy in machine.copies.values():
                if self.writes(machine, copy):
                    writers.setdefault(copy.domain, []).append((machine, copy))
        for domain, several in writers.items():
            if len(several) > 1:
                names = " and ".join(machine.name for machine, _ in several)
                self.breaks(f"{domain} is written by {names} at once")
            for machine, copy in several:
                if copy.number < self.wrote[domain]:
                    self.breaks(f"an old copy of {domain} on {machine.name} wrote after a newer one")
                self.wrote[domain] = max(self.wrote[domain], copy.number)

    # ---- what happens to machines
    def power_off(self, name: str, why: str) -> None:
        """The machine loses power: all its processes are gone."""
        machine = self.machines[name]
        if not machine.power:
            return
        self.say("world", f"{name} {why}")
        machine.power, machine.went_off = False, self.now()
        machine.copies.clear()
        self.end_daemon(name)

    def works(self, node: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Have `node`'s daemon do `work`: it ends when the daemon does."""
        task = asyncio.ensure_future(work)
        mine = self._tasks[node]
        mine[task] = None
        task.add_done_callback(lambda done: mine.pop(done, None))
        task.add_done_callback(_heard)
        return task

    def end_daemon(self, node: str) -> None:
        """All that `node`'s daemon does is over."""
        for task in list(self._tasks[node]):
            task.cancel()

    def heartbeat(self, name: str, *, stopped: bool) -> bool:
        """`name` writes its heartbeat to every storage node it reaches; whether there was one."""
        for storage in self.storages():
            if self._writes_storage(name, storage):
                storage.signs[name] = (self.now(), stopped)
        return any(self.reaches_storage(name, storage) for storage in self.storages())

    def sign(self, storage: Machine) -> dict[str, StorageHeartbeat]:
        """The heartbeats as `storage` tells them."""
        return {
            name: StorageHeartbeat(age=self.now() - at, stopped=stopped)
            for name, (at, stopped) in storage.signs.items()
        }

    def _crash(self) -> None:
        """Guests that die of themselves."""
        for machine in self.machines.values():
            for name, copy in list(machine.copies.items()):
                lasts = self.scenario.domains[name].crash
                if lasts and copy.running and not copy.incoming and machine.well and self.now() - copy.since > lasts:
                    del machine.copies[name]
                    self.say("world", f"{name} dies on {machine.name}")

    async def run(self) -> None:
        """For ever: the judge looks four times a second, and watchdogs fire."""
        while True:
            self._crash()
            self.judge()
            for machine in self.machines.values():
                if machine.watchdog and machine.power and self.now() - machine.fed > machine.watchdog:
                    self.power_off(machine.name, "is reset by its watchdog, and stays off")
            await asyncio.sleep(0.25)


def _heard(task: asyncio.Task[Any]) -> None:
    """What came of a task is asked for by whoever gave the order, if it is still there."""
    if not task.cancelled():
        task.exception()


class NodeClock:
    """A node's clocks: monotonic time is the world's, wall time can be off; a frozen machine does not wake up."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def now(self) -> float:
        """As Clock.now."""
        return asyncio.get_running_loop().time()

    def epoch(self) -> float:
        """As Clock.epoch."""
        return BEGIN + self.now() + self._machine.offset

    async def sleep(self, seconds: float) -> None:
        """As Clock.sleep."""
        await asyncio.sleep(seconds)
        await self._machine.gate()
