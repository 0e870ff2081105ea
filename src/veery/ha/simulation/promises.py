"""The second judge: what the brain promises beside whole disks, looked at with each of its orders and between them.

It reads the records and the machines as they truly are, which no brain can. Where an order was right by what could be
known when it was decided, and the world has changed since, it is forgiven: LATE seconds, and what the store is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from veery.cluster.memory import MemoryStore
from veery.cluster.store import Snapshot
from veery.cluster.trust import LOOK_INTERVAL_S
from veery.ha.simulation.records import Records
from veery.ha.simulation.world import Machine, World
from veery.model.ha import WATCHDOG, FenceRecord, FenceState, GroupKind, Policy, Ticket
from veery.model.node import Role
from veery.model.verdict import NodeVerdict

LATE = 3.0  # seconds by which an order may come after the look that it was decided on
TICK = 0.25
PATIENCE = 9.0  # seconds within which what can be done is done
ORDER = 20.0  # and so many more where an order about the same domain may wait for a node that stands frozen
NOTICED = LOOK_INTERVAL_S + 2.0  # seconds within which everybody who reaches a restored store knows that it is one
HAND = 30.0  # seconds for which a user's command about a domain may change where it is
HOLD = 30.0  # seconds for which a start under way holds those of lower priority back


class Promises:
    """One a world; `run` is a task of the play, the rest is called by the brains' doors as orders are given."""

    def __init__(self, world: World, data: MemoryStore) -> None:
        self._world, self._data = world, data
        self._records = Records(Snapshot((), 0))
        self._since: dict[str, float] = {}  # since when each fact holds without break
        self._was: dict[str, tuple[float, float]] = {}  # from when to when it held before
        self._fences: dict[str, int] = {}  # the revision at which the last fence of each node was begun
        self._last_owner: dict[str, str] = {}
        self._starting: dict[str, tuple[str, str, float]] = {}  # domain: leader, node, ordered at
        self._moving: dict[str, tuple[str, str, str]] = {}  # domain: who ordered it, source, target
        self._tries: dict[str, list[float]] = {}  # orders to start in a row
        self._policies: dict[str, int] = {}
        self._placed: dict[str, tuple[tuple[str, str], float]] = {}  # owner and target of each domain, and since when
        self._ruled: dict[str, tuple[tuple[Policy, int, str], float]] = {}  # what `ha set` says of each, and since when

    async def run(self) -> None:
        """For ever: look four times a second."""
        while True:
            await self._look()
            await asyncio.sleep(TICK)

    async def _look(self) -> None:
        snapshot = await self._data.scan("")
        if snapshot.revision != self._records.revision or self._world.went_back is not None:
            self._records = Records(snapshot, self._records)
        records = self._records
        gone_back = self._world.went_back is not None  # to the brain a store that it does not trust is none
        facts = {"quorum"} if self._world.members() and not gone_back else set()
        facts |= {"disarmed"} if records.disarmed else set()
        facts |= {"doubted"} if records.doubted else {f"knows/{name}" for name in self._know_better(records)}
        machines = self._world.machines.items()
        hypervisors = [name for name, machine in machines if Role.HYPERVISOR in machine.roles]
        for name, machine in machines:
            facts |= {f"gone/{name}"} if not records.alive(name) else {f"there/{name}"}
            facts |= {f"drain/{name}"} if records.drained(name) else set()
            facts |= {f"resume/{name}"} if records.resumed(name) else set()
            facts |= {f"sick/{name}"} if machine.health.verdict is NodeVerdict.EVACUATE else set()
            facts |= {f"severe/{name}"} if machine.health.severe else set()
            facts |= {f"unsound/{name}"} if records.unsound(name, hypervisors) else set()
            for storage in self._world.storages():
                at, stopped = storage.signs.get(name, (-1e9, False))
                young = self._world.now() - at < self._world.scenario.rules.sign
                facts |= {f"beats/{name}/{storage.name}"} if young and not stopped else set()
                facts |= {f"deaf/{name}/{storage.name}"} if not self._asks(name, storage) else set()
            facts |= {f"alone/{name}"} if self._alone(records, machine) else set()
            facts |= {f"gains/{name}"} if f"gone/{name}" in facts and self._gains(records, name) else set()
        targets = {each.domain: each.target for each in records.moves()}
        for domain in self._world.scenario.domains:
            owner = records.owner(domain)
            if owner:
                self._last_owner[domain] = owner.node
            facts |= {f"lies/{domain}"} if owner else set()
            facts |= {f"waits/{domain}"} if owner is None and records.restarts(domain) else set()
            facts |= {f"restarts/{domain}"} if records.restarts(domain) else set()
            policy = records.policy(domain)
            rule, revision = (policy.policy, policy.priority, policy.group), policy.revision
            place = (records.on(domain), targets.get(domain, ""))
            if self._placed.setdefault(domain, (place, -1e9))[0] != place:
                self._placed[domain] = (place, self._world.now())
            if self._ruled.setdefault(domain, (rule, -1e9))[0] != rule:
                self._ruled[domain] = (rule, self._world.now())
            if self._policies.setdefault(domain, revision) != revision:
                self._policies[domain] = revision
                self._tries.pop(domain, None)
        facts |= self._undone(records)
        self._follow(facts)
        self._owners_hold(records)
        for fact in facts:
            what, _, name = fact.partition("/")
            if what == "provable" and self._lasted(fact) > self._world.scenario.rules.retry + PATIENCE:
                self._world.breaks(f"{name.rpartition('/')[2]} can be fenced, and is not")
            if what == "knows" and self._lasted(fact) > NOTICED + 2 * self._world.machines[name].slow:
                self._world.breaks(f"{name} knows that the store went back, and does not doubt it")
            if what == "alone" and self._lasted(fact) > self._world.machines[name].stop + LATE:
                self._world.breaks(f"{name} is alone, and has not ended its domains")
            if what == "startable" and self._lasted(fact) > PATIENCE + ORDER:
                self._world.breaks(f"{name.partition('/')[2]} can be started, and is not")

    def _follow(self, facts: set[str]) -> None:
        now = self._world.now()
        for fact in self._since.keys() - facts:
            self._was[fact] = (self._since[fact], now)
        since = {fact: self._since.get(fact, now) for fact in facts}
        begun, ended = self._was.get("quorum", (now, -1e9))
        if since.get("quorum") == now and now - ended < self._world.scenario.rules.blind:
            since["quorum"] = begun  # so short that a brain may have looked before and after it
        self._since = since

    def _know_better(self, records: Records) -> set[str]:
        """The nodes that reach a store which went back, and have seen more on their disks than is in it."""
        if self._world.went_back is None:
            return set()
        return {
            name
            for name, machine in self._world.machines.items()
            if machine.seen and machine.seen.revision > records.revision and self._world.linked(name, name)
            if self._world.reaches_store(name)
        }

    def _asks(self, node: str, storage: Machine) -> bool:
        """Whether `storage` tells `node` of heartbeats."""
        return storage.target and storage.knows and self._world.linked(node, storage.name)

    def _alone(self, records: Records, machine: Machine) -> bool:
        """Whether the cluster goes on without a node, which has no storage either: it ends its domains by itself."""
        here = machine.well and machine.daemon and any(not copy.incoming for copy in machine.copies.values())
        if not here or records.alive(machine.name) or not self._world.members():
            return False
        if self._world.went_back is not None and self._world.reaches_store(machine.name):
            return False  # nobody acts on the store: it runs on
        return not any(self._world.reaches_storage(machine.name, each) for each in self._world.storages())

    def _undone(self, records: Records) -> set[str]:
        """What the one that leads could do at this moment, and nothing stands in its way."""
        leader, world = records.leader, self._world
        if world.went_back is not None:
            return set()
        if not leader or not world.members() or records.disarmed or not world.linked(leader, leader):
            return set()
        if any(machine.slow for machine in world.machines.values()) or not world.reaches_store(leader):
            return set()
        facts = set()
        asked = [each for each in world.storages() if self._asks(leader, each)]
        for name, machine in world.machines.items():
            fence = records.fence(name)
            begun = fence is not None and fence.state in (FenceState.FENCING, FenceState.FAILED)
            if (
                fence and begun and not records.alive(name) and "storage" in machine.methods
            ):  # each try changes the record
                all_asked = len(asked) == len(world.storages())
                facts |= {f"provable/{leader}/{fence.revision}/{name}"} if all_asked else set()
        waiting = [name for name in world.scenario.domains if f"waits/{name}" in self._since]
        if self._starting or any(world.scenario.domains[name].priority for name in waiting) or len(waiting) != 1:
            return facts  # who waits for whom is told elsewhere
        for name in waiting:
            setup, run = world.scenario.domains[name], records.run(name)
            free = not (setup.local or records.policy(name).group or (run and (run.tries or run.failed)))
            places = (each for each in world.machines if self._welcomes(records, leader, each))
            if free and any(self._free(records, each) >= setup.memory for each in places):
                facts.add(f"startable/{leader}/{name}")
        return facts

    def _welcomes(self, records: Records, leader: str, node: str) -> bool:
        """Whether nothing keeps the leader from giving domains to `node`."""
        well = self._world.machines[node].sound and not records.unsound(node, ()) and not records.fences_of(node)
        hears = self._world.linked(leader, node) and self._lasted(f"there/{node}") > 0
        return well and hears and self._may_take(records, node) and self._keeps_storage(node)

    def _keeps_storage(self, node: str) -> bool:
        machine = self._world.machines[node]
        return all(self._world.reaches_storage(machine.name, each) for each in self._world.storages())

    def _owners_hold(self, records: Records) -> None:
        """Every copy that may write has the owner key, or its record says that no other may start meanwhile."""
        if self._world.went_back is not None:
            return
        for machine in self._world.machines.values():
            for copy in machine.copies.values():
                owner = records.owner(copy.domain)
                mine = owner is not None and (owner.node, owner.boot) == (machine.name, copy.boot)
                kept = owner is None and records.left(copy.domain) == machine.name
                if not (mine or kept) and self._world.may_write_yet(machine, copy):
                    whose = f"is {owner.node}'s" if owner else "is nobody's"
                    self._world.breaks(f"{copy.domain} may write on {machine.name}, and its owner key {whose}")

    def _lasted(self, fact: str) -> float:
        """Seconds for which `fact` has held; -1 where it does not."""
        return self._world.now() - self._since[fact] if fact in self._since else -1.0

    def _lately(self, fact: str, leader: str) -> bool:
        """Whether `fact` holds, or did when the order may have been decided."""
        _, ended = self._was.get(fact, (0.0, -1e9))
        return fact in self._since or self._world.now() - ended <= self._late(leader)

    def _had(self, beats: str) -> bool:
        """Whether heartbeats go on, or did until a moment ago: for how long one may be late nobody can know."""
        begun, ended = self._was.get(beats, (0.0, -1e9))
        lately = self._world.now() - ended < 2 * self._world.scenario.rules.sign and ended - begun > LATE
        return lately or self._lasted(beats) > LATE

    def _late(self, leader: str) -> float:
        return LATE + 2 * self._world.machines[leader].slow

    async def _order(self, leader: str, what: str) -> Records:
        """The records as they are now; `what` is ordered, which is not to be while disarmed."""
        await self._look()
        if self._lasted("disarmed") > self._late(leader):
            self._world.breaks(f"{what}, while disarmed")
        if self._lasted("doubted") > NOTICED + self._late(leader):
            self._world.breaks(f"{what}, by a store that went back")
        return self._records

    # ---- fences
    async def fence(self, leader: str, node: str, method: str) -> None:
        """`leader` begins to fence `node` by `method`."""
        records = await self._order(leader, f"{node} was fenced")
        rules, record = self._world.scenario.rules, records.fence(node)
        if record is None or record.state is not FenceState.FENCING:
            return  # overtaken meanwhile: what is done now proves nothing to anyone
        self._method_in_turn(node, method, record)
        begun = records.fence_since(node)
        if record.round > 1 or record.tried or self._fences.get(node) == begun:
            return  # the judgement was another leader's, or is older than what can be seen now
        self._fences[node] = begun
        if records.alive(node) and records.alive_since(node) < record.revision:
            self._world.breaks(f"{node} was fenced while its lease stood")
        if 0 <= self._lasted(f"gone/{node}") < rules.silence - TICK:
            self._world.breaks(f"{node} was fenced at its first silence")
        if self._lasted("quorum") < rules.grace - TICK:
            self._world.breaks(f"{node} was fenced when the store had only just come back")
        if 0 <= self._lasted(f"gone/{node}") < records.away(node, before=record.revision) - TICK:
            self._world.breaks(f"{node} was fenced while its daemon was restarted, as announced")
        storages = self._world.storages()
        if all(self._lasted(f"deaf/{leader}/{storage.name}") > self._late(leader) for storage in storages):
            self._world.breaks(f"{node} was fenced, and no storage node could tell of it")
        for storage in storages:
            if self._asks(leader, storage) and self._lasted(f"beats/{node}/{storage.name}") > self._late(leader):
                self._world.breaks(f"{node} was fenced, and writes heartbeats to {storage.name}")
        if not self._lately(f"gains/{node}", leader):
            self._world.breaks(f"{node} was fenced, and nothing is gained by it")

    def _method_in_turn(self, node: str, method: str, record: FenceRecord) -> None:
        tried = {each for each, _ in record.tried}
        left = [each for each in self._world.machines[node].methods if each not in tried and each != WATCHDOG]
        if method != WATCHDOG and left and method != left[0]:
            self._world.breaks(f"{node} was fenced by {method} before {left[0]}")

    def _gains(self, records: Records, node: str) -> bool:
        """Whether a domain of `node` would find a place elsewhere."""
        mine = [name for name in self._world.scenario.domains if records.restarts(name) and records.on(name) == node]
        places = [name for name in self._world.machines if name != node and self._may_take(records, name)]
        return any(self._free(records, place) >= self._memory(name) for name in mine for place in places)

    def _may_take(self, records: Records, node: str) -> bool:
        there = Role.HYPERVISOR in self._world.machines[node].roles and records.alive(node)
        return there and records.fence(node) is None and not records.drained(node)

    async def admit(self, leader: str, node: str) -> None:
        """`leader` lets `node` in again."""
        records = await self._order(leader, f"{node} was let in")
        for copy in self._world.machines[node].copies.values():
            owner = records.owner(copy.domain)
            mine = owner is not None and (owner.node, owner.boot) == (node, copy.boot)
            if copy.running and not copy.incoming and not mine:
                self._world.breaks(f"{node} was let in with its old copy of {copy.domain}")

    # ---- starts
    async def start(self, leader: str, ticket: Ticket) -> None:
        """`leader` orders a start."""
        name, node = ticket.domain, ticket.node
        records = await self._order(leader, f"{name} was started")
        owner, fence = records.owner(name), records.fence(node)
        if owner is not None and owner.revision < ticket.revision:
            self._world.breaks(f"{name} was started, and {owner.node} owns it")
        if not records.restarts(name) and records.policy(name).revision < ticket.revision:
            self._world.breaks(f"{name} was started, and is not to be")
        if fence is not None and fence.revision < ticket.revision:
            self._world.breaks(f"{name} was started on {node}, which is fenced")
        if self._lasted(f"gone/{node}") > self._late(leader):
            self._world.breaks(f"{name} was started on {node}, which is not there")
        if 0 <= self._lasted(f"there/{node}") < self._world.scenario.rules.use - 2 * TICK:
            self._world.breaks(f"{name} was started on {node}, which has only just come")
        self._place_fits(leader, records, name, node)
        if not any(machine.offset for machine in self._world.machines.values()):
            self._paced(name, records.policy(name).max_restarts)
        self._in_turn(leader, records, name, node)
        self._starting[name] = (leader, node, self._world.now())

    def started(self, ticket: Ticket) -> None:
        """The order has an answer, or is given up."""
        self._starting.pop(ticket.domain, None)

    def _place_fits(self, leader: str, records: Records, name: str, node: str) -> None:
        setup = self._world.scenario.domains[name]
        if self._lasted(f"unsound/{node}") > self._late(leader):
            self._world.breaks(f"{name} was given to {node}, which is sick or in quarantine")
        if self._lasted(f"drain/{node}") > self._late(leader):
            self._world.breaks(f"{name} was given to {node}, which is drained")
        if self._world.lacks_disk(node, name):
            self._world.breaks(f"{name} was given to {node}, which has not its disk")
        self._group_fits(leader, records, name, node)
        starting = sum(self._memory(each) for each, (_, where, _) in self._starting.items() if where == node)
        unseen = {each for each in self._world.scenario.domains if self._by_hand(leader, each)}  # has it come just now?
        if self._free(records, node, without=unseen.union(self._starting)) - starting < setup.memory:
            self._world.breaks(f"{name} was given to {node}, which has no room")

    def _group_fits(self, leader: str, records: Records, name: str, node: str) -> None:
        wish = records.policy(name).group
        group = self._world.scenario.groups.get(wish)
        if group is None or self._ruled_lately(leader, name):
            return
        if group.nodes and node not in group.nodes:
            self._world.breaks(f"{name} was given to {node}, which its group does not allow")
        if not group.strict:
            return
        touched = [
            each
            for each in self._world.scenario.domains
            if each != name and (self._by_hand(leader, each) or self._ruled_lately(leader, each))
        ]
        others = [
            each
            for each in self._world.scenario.domains
            if records.policy(each).group == wish and each not in (name, *touched)
        ]
        if group.kind is GroupKind.APART:
            if any(records.on(each) == node for each in others):
                self._world.breaks(f"{name} was given to {node}, which has another of its group")
            return
        moving = {each.domain: each.target for each in records.moves()}
        where = [moving.get(each) or records.on(each) for each in others if self._lasted(f"lies/{each}") > LATE]
        there = sum(
            moving.get(each, records.on(each)) == node or self._starting.get(each, ("", ""))[1] == node
            for each in others
        )
        for place in set(where):
            if self._stays(leader, records, place) and where.count(place) > there + len(touched):
                self._world.breaks(f"{name} was given to {node}, and most of its group is on {place}")

    def _stays(self, leader: str, records: Records, node: str) -> bool:
        """Whether what runs on `node` is to stay there."""
        machine = self._world.machines.get(node)
        well = machine is not None and machine.sound and self._welcomes(records, leader, node)
        return well and self._lasted(f"there/{node}") > self._world.scenario.rules.use + self._late(leader)

    def _by_hand(self, leader: str, name: str) -> bool:
        """Whether a user's command changed where `name` is so lately that it may not be seen yet."""
        now = self._world.now()
        changed = now - self._placed[name][1] <= self._late(leader)
        return changed and now - self._world.touched.get(name, -1e9) <= HAND

    def _ruled_lately(self, leader: str, *names: str) -> bool:
        """Whether `ha set` changed the rules for one of the domains so lately that it may not be seen yet."""
        return any(self._world.now() - self._ruled[name][1] <= self._late(leader) for name in names)

    def _paced(self, name: str, most: int) -> None:
        """Crash loops are damped: the pauses grow, and the tries end. A run that ended with its node is no try,
        nor is a start that was cut short because the store did not answer."""
        rules, now = self._world.scenario.rules, self._world.now()
        tries = self._tries.get(name, [])
        if tries and (self._lost_its_node(name, tries[-1]) or self._cut_short(name, tries[-1])):
            tries = tries[:-1]
        if tries and now - tries[-1] >= rules.stable:
            tries = []
        pause = min(rules.backoff * 2 ** (len(tries) - 1), rules.backoff_max) if tries else 0.0
        if tries and now - tries[-1] < pause - LATE:  # a slow store hears of a try later than it was decided
            self._world.breaks(f"{name} was started again after {now - tries[-1]:.1f} s, not {pause:g} s")
        if len(tries) >= most:
            self._world.breaks(f"{name} was started more often than {most} times in a row")
        self._tries[name] = [*tries, now]

    def _lost_its_node(self, name: str, since: float) -> bool:
        """Whether the start that was ordered at `since` went well, and its node was fenced or lost the storage after
        that."""
        runs = [(at, node) for at, domain, node in self._world.starts if domain == name and at >= since]
        return any(node == lost and when >= at for at, node in runs for when, lost in self._world.losses)

    def _cut_short(self, name: str, since: float) -> bool:
        """Whether the start that was ordered at `since` did not come about because the store did not answer."""
        return any(domain == name and at >= since for at, domain in self._world.unstarted)

    def _in_turn(self, leader: str, records: Records, name: str, node: str) -> None:
        """Those of higher priority are first."""
        now, mine = self._world.now(), records.policy(name).priority
        for other, setup in self._world.scenario.domains.items():
            if records.policy(other).priority <= mine:
                continue
            who, _, at = self._starting.get(other, ("", "", 0.0))
            if who == leader and now - at < HOLD - LATE:
                self._world.breaks(f"{name} was started while {other}, which is before it, is starting")
            run = records.run(other)
            kept = who or setup.local or records.policy(other).group or (run and (run.tries or run.failed))
            free = not (kept or self._ruled_lately(leader, name, other))  # nothing keeps it from being started
            room = self._free(records, node) - sum(
                self._memory(each) for each, (_, where, _) in self._starting.items() if where == node
            )
            if free and self._lasted(f"waits/{other}") > self._late(leader) and room >= setup.memory:
                self._world.breaks(f"{name} was started before {other}, which is before it and waits")
            if free and self._lost_together(records, name, other) and room >= setup.memory:
                self._keeps_room(records, name, node, other)

    def _lost_together(self, records: Records, name: str, other: str) -> bool:
        """Whether both were taken, or are about to be, from one node that is fenced: who knows of one knows of both."""
        last = self._last_owner.get(name, "")
        fence = records.fence(last)
        if fence is None or fence.state is not FenceState.FENCED or not records.restarts(other):
            return False
        return self._last_owner.get(other) == last and records.on(other) in ("", last)

    def _keeps_room(self, records: Records, name: str, node: str, other: str) -> None:
        """A start of `name` on `node` leaves room for `other` somewhere: room is the higher priority's first."""
        taken = {each: where for each, (_, where, _) in self._starting.items()} | {name: node}
        for place in (each for each in self._world.machines if self._may_take(records, each)):
            mine = sum(self._memory(each) for each, where in taken.items() if where == place)
            if self._free(records, place, without=taken) - mine >= self._memory(other):
                return
        self._world.breaks(f"{name} has the room that {other}, which is before it, was to have")

    # ---- moves and ends
    async def move(self, leader: str, domain: str, source: str, target: str) -> None:
        """`leader` orders a move."""
        records = await self._order(leader, f"{domain} was moved")
        drained = self._lately(f"drain/{source}", leader)
        homeward = self._lately(f"resume/{target}", leader)
        if not (drained or self._lately(f"sick/{source}", leader) or homeward):
            self._world.breaks(f"{domain} was moved from {source} needlessly")
        off = records.policy(domain).policy is Policy.OFF and not self._ruled_lately(leader, domain)
        if off and not (drained or homeward):
            self._world.breaks(f"{domain} was moved, and its policy is off")
        if records.fence(target) is not None and self._lasted(f"gone/{target}") > self._late(leader):
            self._world.breaks(f"{domain} was moved to {target}, which is fenced")
        self._place_fits(leader, records, domain, target)
        under_way = {each.domain: (each.source, each.target) for each in records.moves()}
        for each, (by, *way) in self._moving.items():  # what another ordered, and nobody wrote down, cannot be known
            if by == leader and records.on(each) == way[0]:
                under_way[each] = (way[0], way[1])
        under_way.pop(domain, None)
        under_way = {each: way for each, way in under_way.items() if not self._by_hand(leader, each)}
        out, into = self._limits(leader, source, under_way)
        if sum(each == source for each, _ in under_way.values()) >= out:
            self._world.breaks(f"more than {out} moves out of {source}")
        if sum(each == target for _, each in under_way.values()) >= into:
            self._world.breaks(f"more than {into} moves into {target}")
        if not (drained or homeward):
            self._one_after_another(records, source)
        self._moving[domain] = (leader, source, target)

    def _limits(self, leader: str, source: str, under_way: Mapping[str, tuple[str, str]]) -> tuple[int, int]:
        """How many moves there may be out of a node, and into one: more where a node may die at any moment."""
        rules, sources = self._world.scenario.rules, {source, *(each for each, _ in under_way.values())}
        if not any(self._lately(f"severe/{each}", leader) for each in sources):
            return rules.out, rules.into
        return max(rules.out, rules.severe), max(rules.into, rules.severe)

    def _one_after_another(self, records: Records, source: str) -> None:
        """No more nodes than one, or a quarter of many, are emptied for their sensors at a time."""
        hypervisors = sum(Role.HYPERVISOR in each.roles for each in self._world.machines.values())
        others = {
            each
            for each in {way[1] for way in self._moving.values()} - {source}
            if f"sick/{each}" in self._since and not records.drained(each)
        }
        if len(others) >= max(1, hypervisors // 4):
            self._world.breaks(f"{source} is emptied while {', '.join(sorted(others))} is")

    def moved(self, domain: str) -> None:
        """The order has an answer, or is given up."""
        self._moving.pop(domain, None)

    async def end(self, leader: str, node: str, domain: str) -> None:
        """`leader` orders the end of a copy."""
        records = await self._order(leader, f"{domain} was ended")
        if records.on(domain) != node:
            return  # an old copy
        if not self._lately(f"restarts/{domain}", leader):
            self._world.breaks(f"{domain} was ended on {node}, and is not to be started elsewhere")
        rules = self._world.scenario.rules
        for storage in self._world.storages():
            at, _ = storage.signs.get(node, (-1e9, False))
            if self._world.now() - at < rules.cutoff - LATE:
                self._world.breaks(f"{domain} was ended on {node}, which writes heartbeats to {storage.name}")
        hypervisors = (each.name for each in self._world.machines.values() if Role.HYPERVISOR in each.roles)
        others = [name for name in hypervisors if name != node]
        if not any(self._had(f"beats/{name}/{each.name}") for name in others for each in self._world.storages()):
            self._world.breaks(f"{domain} was ended on {node}, and nobody has the storage")
        self._world.losses.append((self._world.now(), node))

    # ---- figures
    def _memory(self, domain: str) -> int:
        return self._world.scenario.domains[domain].memory

    def _free(self, records: Records, node: str, *, without: Collection[str] = ()) -> int:
        """MiB left on `node`, by the owner keys and the promises of moves."""
        held = [name for name in self._world.scenario.domains if records.on(name) == node and name not in without]
        coming = [
            each.domain for each in records.moves() if each.target == node and each.domain not in (*held, *without)
        ]
        return self._world.machines[node].room - sum(self._memory(name) for name in (*held, *coming))
