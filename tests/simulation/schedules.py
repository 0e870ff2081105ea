"""Random schedules of faults for the simulated cluster, and what must be true of each that was played.

What must hold at every moment the judges of the simulation say (`Told.broken`): veery.ha.simulation.world looks at the
disks, veery.ha.simulation.promises at each order of the brain. What must hold in the end `check` says."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from random import Random

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from veery.config.settings import Settings
from veery.ha.simulation.play import Told
from veery.ha.simulation.scenario import DomainSetup, HealthSetup, NodeSetup, Scenario, Step
from veery.health.verdict import Figures
from veery.model.ha import Group, GroupKind, Policy, Rules
from veery.model.node import Role

FROM, UNTIL, BOUND = 14.0, 65.0, 85.0  # faults begin and end between these; so long afterwards everything runs
ADOPTED = UNTIL + 25  # when a restored store is adopted: every node has power again
SEED, QUICK = 5, 120  # of the quick run
RULES = Rules(backoff_max=15.0, retry=10.0, stable=30.0, damp_window=45.0)
SHIPPED = dataclasses.replace(  # the figures of a node's settings as they ship, as daemon.py takes them over
    RULES,
    cycle=Settings().ha.cycle,
    leader_ttl=Settings().ha.leader_ttl,
    node_ttl=Settings().presence_ttl,
    silence=Settings().ha.silence,
    sign=Settings().ha.sign,
    grace=Settings().presence_ttl + 2.0,
)
HEALTH = HealthSetup(figures=Figures(calm_s=5.0, calm_factor=2.0, unknown_keeps_s=20.0, flap_window_s=40.0))

FAST = settings(  # one after the other, nothing remembered, nothing shrunk
    database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), print_blob=False
)

HARMLESS = (  # nobody may be fenced, started or moved for these
    "etcd", "etcd-one", "cluster-net", "clock", "announced", "lost-answer", "one-way", "pair", "slow-store", "board",
    "target-restart", "disarm", "switch",
)  # fmt: skip
GRAVE = (
    "power", "freeze", "all-nets", "storage-net", "daemon", "target", "crash", "disk-full", "reboot", "one-way-all",
    "pair-storage", "back-in-fence", "frozen-while-fenced", "sick", "start-fails", "storage-everyone",
    "cluster-then-all", "target", "power", "freeze", "blackout", "switch-all", "unwatched", "unwatched", "flicker",
)  # fmt: skip
EVERYWHERE = ("blackout", "switch", "switch-all", "storage-everyone")  # these hurt every node
METHODS = (("storage",), ("storage", "power"), ("power", "storage"), ("storage", "watchdog"), ("power",), ("watchdog",))


@dataclass(frozen=True)
class Fault:
    """One fault: what, on which node or domain, from when, for how long; `peer` and `turn` say which kind of it."""

    kind: str
    node: str
    domain: str
    begin: float
    lasts: float
    peer: str = "stor"
    turn: int = 0


@dataclass(frozen=True)
class Restore:
    """A copy of the store is put away at `copied` and put back at `begin`, after `lasts` seconds without any store;
    `moves` are ordered between the two. It is adopted when all faults are over."""

    copied: float
    begin: float
    lasts: float
    cluster: str
    moves: tuple[tuple[float, str, str], ...]

    def steps(self) -> list[Step]:
        """As the simulator plays it."""
        return [
            Step(at=self.copied, do="snapshot-store"),
            *(Step(at=at, do="migrate", domain=domain, node=node) for at, domain, node in self.moves),
            Step(at=self.begin, do="restore-store", seconds=self.lasts, text=self.cluster),
            Step(at=ADOPTED, do="adopt", force=True),
        ]


@dataclass(frozen=True)
class Schedule:
    """A cluster and its faults."""

    nodes: dict[str, NodeSetup]
    domains: dict[str, DomainSetup]
    faults: tuple[Fault, ...]
    drains: tuple[tuple[float, str], ...] = ()
    commands: tuple[Step, ...] = ()  # of users, at any time
    groups: dict[str, Group] = field(default_factory=dict)
    rules: Rules = RULES
    restore: Restore | None = None

    def scenario(self) -> Scenario:
        """As the simulator plays it: every fault is over at UNTIL, drains are resumed."""
        names = tuple(self.nodes)
        drained = dict.fromkeys([node for _, node in self.drains] + [e.node for e in self.commands if e.do == "drain"])
        steps = [step for fault in self.faults for step in (_of_all(fault, names) or _of_store(fault) or _steps(fault))]
        steps += [Step(at=at, do="drain", node=node, force=True) for at, node in self.drains]
        sick = [fault for fault in self.faults if fault.kind == "sick"]
        facts = {fault.node for fault in sick if _sickness(fault) in ("fact", "severe")}
        for name, setup in self.nodes.items():
            over = ["thaw", "heal", "power-on", "daemon-start", "disk-freed", "board-back"]
            over += ["well"] if name in facts else []
            over += ["target-start"] if Role.STORAGE in setup.roles else []
            steps += [Step(at=UNTIL, do=do, node=name) for do in over]
            steps += [Step(at=UNTIL, do="heal", node=name, way=way) for way in ("in", "out")]
        # a watchdog, or a fence that was decided already, may still switch a node off
        steps += [Step(at=UNTIL + 15, do="power-on", node=name) for name in self.nodes]
        steps += [Step(at=UNTIL, do="etcd-start"), Step(at=UNTIL, do="slow-store"), Step(at=UNTIL, do="arm")]
        steps += self.commands
        steps += [Step(at=UNTIL + 1, do="resume", node=node, home=place % 2 == 1) for place, node in enumerate(drained)]
        if self.restore is not None:
            steps += self.restore.steps()
        return Scenario(
            about="random",
            seconds=(ADOPTED if self.restore else UNTIL) + BOUND,
            nodes=self.nodes,
            domains=self.domains,
            groups=self.groups,
            rules=self.rules,
            health=HEALTH,
            steps=tuple(sorted(steps, key=lambda step: step.at)),
        )

    @property
    def harmless(self) -> bool:
        """Whether nothing may be fenced, started or moved because of it."""
        calm = all(not domain.crash for domain in self.domains.values())
        if any(fault.kind == "announced" and self.nodes[fault.node].watchdog for fault in self.faults):
            return False  # nobody feeds its watchdog meanwhile
        if any(self._locked(fault) for fault in self.faults if fault.kind == "target-restart"):
            return False  # who then loses the cluster for as long as `stop` ends its domains, and is right
        return (
            calm
            and not self.drains
            and not self.commands
            and not self.restore
            and all(fault.kind in HARMLESS for fault in self.faults)
        )

    def _locked(self, restart: Fault) -> bool:
        """Whether a storage service that starts anew, knowing nobody, is told by nobody whom it may let in: then
        there is no storage path for a node to be seen by, or to live by, when it has lost the cluster."""
        silent = [fault for fault in self.faults if fault.kind == "announced" and fault.node == "stor"]
        return any(fault.kind == "switch" for fault in self.faults) or any(
            fault.begin <= restart.begin + 5 and restart.begin <= fault.begin + fault.lasts for fault in silent
        )


def _of_all(fault: Fault, names: tuple[str, ...]) -> list[Step]:
    """Those that strike every node at once, and are over for one after the other."""
    begin, turn = fault.begin, fault.turn

    def each(begins: str, over: str, first: float, net: str = "all") -> list[Step]:
        ends = {name: min(UNTIL, begin + first + turn * (number + 2) % 19) for number, name in enumerate(names)}
        if turn % 2 and fault.node != "stor":
            ends[fault.node] = UNTIL  # it does not come back by itself
        return [
            *(Step(at=begin, do=begins, node=name, net=net) for name in names),
            *(Step(at=end, do=over, node=name, net=net) for name, end in ends.items()),
            *(Step(at=ends["stor"], do="target-restart", node="stor") for _ in range(over == "power-on" and turn % 2)),
        ]

    match fault.kind:
        case "blackout":
            return each("power-off", "power-on", 4)
        case "switch":
            return each("cut", "heal", 1 + fault.lasts // 2, "cluster")
        case "switch-all":
            return each("cut", "heal", 1 + fault.lasts // 2)
        case "storage-everyone":  # long enough for everyone to miss it
            begin = min(begin, UNTIL - 45)
            return each("cut", "heal", 22, "storage")
    return []


def _of_store(fault: Fault) -> list[Step]:
    """Those for which it matters what the store, or who tells of heartbeats, does meanwhile."""
    node, begin, turn, end = fault.node, fault.begin, fault.turn, min(UNTIL, fault.begin + fault.lasts)
    match fault.kind:
        case "unwatched":  # nobody can tell of the node that is lost a little later
            deaf = (("daemon-stop", "daemon-start"), ("target-stop", "target-start"), ("cut", "heal"))[turn % 3]
            lost = (("power-off", "power-on"), ("daemon-stop", "daemon-start"), ("cut", "heal"))[turn // 3 % 3]
            later = min(UNTIL, begin + turn % 5)
            peer = fault.peer if fault.peer != "stor" else ""
            silent = [
                Step(at=begin, do=deaf[0], node="stor", net="cluster", peer=peer),
                Step(at=end, do=deaf[1], node="stor", net="cluster", peer=peer),
            ]
            if node == "stor":
                return silent
            return [
                *silent,
                Step(at=later, do=lost[0], node=node, net="cluster"),
                Step(at=min(UNTIL, later + 12 + fault.lasts), do=lost[1], node=node, net="cluster"),
            ]
        case "flicker":  # away for about as long as its lease lasts, while the store answers late
            late, whom = ((0.4, ""), (0.9, ""), (2.0, fault.peer))[turn % 3]
            away = (("freeze", "thaw"), ("cut", "heal"))[turn // 3 % 2]
            back = min(UNTIL, begin + 8 + fault.lasts % 12 / 2)
            return [
                Step(at=begin, do="slow-store", node=whom, seconds=late),
                Step(at=begin, do=away[0], node=node),
                Step(at=back, do=away[1], node=node),
                Step(at=min(UNTIL, back + 6), do="slow-store", node=whom),
            ]
    return []


def _steps(fault: Fault) -> list[Step]:
    node, peer, begin, end = fault.node, fault.peer, fault.begin, min(UNTIL, fault.begin + fault.lasts)
    seconds = fault.lasts

    def pair(begins: str, over: str, net: str = "all", to: str = "", way: str = "both") -> list[Step]:
        return [
            Step(at=begin, do=begins, node=node, net=net, peer=to, way=way),
            Step(at=end, do=over, node=node, net=net, peer=to, way=way),
        ]

    way = ("in", "out")[fault.turn % 2]
    often = 1 + fault.turn // 2 % 2
    broken = [Step(at=begin, do="break-fence", node=node, method=each, count=often) for each in ("storage", "power")]
    match fault.kind:
        case "power":
            return pair("power-off", "power-on")
        case "reboot":
            return [Step(at=begin, do="power-off", node=node), Step(at=begin + 4, do="power-on", node=node)]
        case "freeze":
            return [*(broken if fault.turn % 2 else []), *pair("freeze", "thaw")]
        case "frozen-while-fenced":  # the fences fail for ever
            forever = [
                Step(at=begin, do="break-fence", node=node, method=each, count=99) for each in ("storage", "power")
            ]
            mended = [Step(at=end, do="break-fence", node=node, method=each, count=0) for each in ("storage", "power")]
            return [*forever, *mended, *pair("freeze", "thaw")]
        case "all-nets":
            return [*(broken if fault.turn % 2 else []), *pair("cut", "heal")]
        case "back-in-fence":  # it is heard again while the fence is being carried out
            slow = [Step(at=begin, do="slow-fence", node=node, method=each, seconds=6) for each in ("storage", "power")]
            return [
                *slow,
                Step(at=begin, do=("cut", "freeze")[fault.turn % 2], node=node),
                Step(at=min(UNTIL, begin + 9 + fault.turn), do=("heal", "thaw")[fault.turn % 2], node=node),
            ]
        case "cluster-net":
            return pair("cut", "heal", "cluster")
        case "storage-net":
            return pair("cut", "heal", "storage")
        case "cluster-then-all":  # the storage feeds its watchdog for longer than the lease
            later = min(UNTIL, FROM + 15 + fault.turn)
            return [
                Step(at=FROM, do="cut", node=node, net="cluster"),
                Step(at=later, do="cut", node=node, net="storage"),
                Step(at=UNTIL, do="heal", node=node),
            ]
        case "one-way":
            return pair("cut", "heal", "cluster", way=way)
        case "one-way-all":
            return pair("cut", "heal", ("all", "storage")[fault.turn // 2 % 2], way=way)
        case "pair":
            return pair("cut", "heal", "cluster", peer if peer != node else "stor") if node != "stor" else []
        case "pair-storage":
            return pair("cut", "heal", "storage", "stor") if node != "stor" else []
        case "daemon":
            return pair("daemon-stop", "daemon-start")
        case "announced":
            return [Step(at=begin - 1, do="away", node=node, seconds=UNTIL), *pair("daemon-stop", "daemon-start")]
        case "etcd":
            return [Step(at=begin, do="etcd-stop"), Step(at=end, do="etcd-start")]
        case "etcd-one":
            return pair("etcd-stop", "etcd-start")
        case "slow-store":
            late = (0.4, 0.9, 2.0, 5.0)[fault.turn % 4]
            whom = "" if fault.turn // 4 % 2 else node
            return [Step(at=begin, do="slow-store", node=whom, seconds=late), Step(at=end, do="slow-store", node=whom)]
        case "board":
            return pair("board-lost", "board-back")
        case "disk-full":
            return pair("disk-full", "disk-freed")
        case "target":
            return [Step(at=begin, do="target-stop", node="stor"), Step(at=end, do="target-start", node="stor")]
        case "target-restart":
            return [Step(at=begin, do="target-restart", node="stor")]
        case "clock":
            return [Step(at=begin, do="clock-step", node=node, seconds=(seconds - 20) * 100 or 60.0)]
        case "crash":
            return [
                Step(at=begin + 3 * number, do="crash", domain=fault.domain) for number in range(1 + fault.turn % 3)
            ]
        case "start-fails":
            dies = Step(at=begin, do="crash", domain=fault.domain)
            return [Step(at=begin, do="break-start", domain=fault.domain, count=1 + fault.turn % 4), dies]
        case "sick":
            return _signs(fault, node, begin, end)
        case "disarm":
            return [Step(at=begin, do="disarm"), Step(at=end, do="arm")]
        case "lost-answer":
            text = ("fence/", "owner/", "run/", "reservation/", "leader")[fault.turn % 5]
            return [Step(at=begin, do="lose-answer", node=node, done=seconds % 2 == 0, text=text)]
    raise AssertionError(fault.kind)


SICKNESSES = ("fact", "state", "severe", "flap", "hang", "counter")


def _sickness(fault: Fault) -> str:
    """How a node falls sick in `fault`."""
    return SICKNESSES[fault.turn % len(SICKNESSES)]


def _signs(fault: Fault, node: str, begin: float, end: float) -> list[Step]:
    """What the sensors of `node` show. Facts end when an operator says so, all else by itself."""

    def shows(at: float, sensor: str, level: str, *, counter: bool = False) -> Step:
        return Step(at=at, do="sign", node=node, sensor=sensor, level=level, counter=counter)

    match _sickness(fault):
        case "fact":
            return [Step(at=begin, do="sick", node=node), Step(at=end, do="well", node=node)]
        case "severe":
            return [shows(begin, "ecc", "bad"), Step(at=end, do="well", node=node)]
        case "counter":
            return [shows(begin, "ecc", "bad", counter=True), shows(end, "ecc", "ok")]
        case "flap":
            third = (end - begin) / 3
            times = [begin + number * third for number in range(3)]
            return [step for at in times for step in (shows(at, "nic", "bad"), shows(at + third / 2, "nic", "ok"))]
        case "hang":
            hangs = Step(at=(begin + end) / 2, do="sensor-hangs", node=node, sensor="rootfs")
            back = Step(at=end, do="sensor-back", node=node, sensor="rootfs")
            return [shows(begin, "rootfs", "bad"), hangs, shows(end, "rootfs", "ok"), back]
    return [shows(begin, "rootfs", "bad"), shows(end, "rootfs", "ok")]


def schedules() -> st.SearchStrategy[Schedule]:
    """Schedules as they come, not drawn bit by bit: hypothesis likes to vary what it drew before, and most kinds of
    faults then hardly come up."""
    return st.randoms(use_true_random=True).map(_drawn)


def restored_schedules() -> st.SearchStrategy[Schedule]:
    """The same, and in each the store is restored from a copy."""
    return st.randoms(use_true_random=True).map(lambda dice: _restored(dice, _drawn(dice)))


def _restored(dice: Random, schedule: Schedule) -> Schedule:
    copied = float(dice.randint(2, 45))
    begin = copied + dice.randint(2, 40) / 2
    nodes = [name for name, setup in schedule.nodes.items() if Role.HYPERVISOR in setup.roles]
    moves = tuple(
        (copied + dice.random() * (begin - copied), dice.choice(sorted(schedule.domains)), dice.choice(nodes))
        for _ in range(dice.randint(0, 4))
    )
    restore = Restore(copied, begin, dice.choice((0.0, 3.0, 15.0)), dice.choice(("", "", "another")), moves)
    return dataclasses.replace(schedule, restore=restore, commands=())  # a store in doubt takes none


def _drawn(dice: Random) -> Schedule:
    """Two to four hypervisors, one storage node, three voters or all, domains that nearly fill them, faults that
    overlap, now and then a drain. One in five has nothing but what nobody may be touched for."""
    names = [f"n{number}" for number in range(1, dice.choice((2, 3, 3, 4)) + 1)]
    few = dice.random() < 0.5
    tight = dice.random() < 0.25  # two domains fill a node; all are of one size, so that what fitted once fits again
    nodes = {}
    for name in names:
        methods = dice.choice(METHODS)
        watchdog = dice.choice((30.0, 12.0)) if "watchdog" in methods else 0.0
        roles = (Role.HYPERVISOR,) if few and name in names[2:] else (Role.HYPERVISOR, Role.VOTER)
        nodes[name] = NodeSetup(roles=roles, methods=methods, room=512 if tight else 1024, watchdog=watchdog)
    nodes["stor"] = NodeSetup(roles=(Role.STORAGE, Role.VOTER), room=0)
    domains = _domains(dice, names, tight=tight)
    groups = {"pair": Group(strict=True)} if any(domain.group for domain in domains.values()) else {}
    harmless = dice.random() < 0.2
    if crowded := not groups and dice.random() < 0.5:
        groups = _groups(dice, names, domains)
    if dice.random() < 0.3:
        domains = _restless(dice, domains)
    base = dice.randint(int(FROM), 30)
    faults = tuple(
        Fault(
            kind=dice.choice(HARMLESS if harmless else GRAVE + HARMLESS),
            node=dice.choice([*names, *names, "stor"]),
            domain=dice.choice(sorted(domains)),
            begin=dice.choice((base + dice.randint(0, 56) / 4, float(dice.randint(int(FROM), 50)))),
            lasts=float(dice.randint(2, 50)),
            peer=dice.choice([*names, "stor"]),
            turn=dice.randrange(20),
        )
        for _ in range(dice.randint(1, 6))
    )
    drained = not harmless and dice.random() < 0.3
    drains = ((float(dice.randint(15, 50)), dice.choice(names)),) if drained else ()
    commands = (
        () if harmless or dice.random() < 0.4 else _commands(dice, names, domains, list(groups) if crowded else [])
    )
    return Schedule(nodes, domains, faults, drains, commands, groups, dice.choice((SHIPPED, RULES)))


def _groups(dice: Random, names: list[str], domains: dict[str, DomainSetup]) -> dict[str, Group]:
    """Up to three groups of every kind; those of `domains` that lie so that a strict one holds are put into one."""
    groups = {}
    for number in range(dice.randint(1, 3)):
        nodes = tuple(dice.sample(names, len(names) - 1)) if dice.random() < 0.3 and len(names) > 2 else ()
        kind = dice.choice((GroupKind.APART, GroupKind.TOGETHER))
        groups[f"g{number}"] = Group(kind=kind, strict=dice.random() < 0.5, nodes=nodes)
    for name, domain in list(domains.items()):
        fit = [group for group, rule in groups.items() if _fits(domains, domain, group, rule, names)]
        if fit and not domain.local and dice.random() < 0.6:
            domains[name] = dataclasses.replace(domain, group=dice.choice(fit))
    return groups


def _fits(domains: dict[str, DomainSetup], domain: DomainSetup, group: str, rule: Group, names: list[str]) -> bool:
    others = [each.on for each in domains.values() if each.group == group]
    if rule.nodes and domain.on not in rule.nodes:
        return False
    if not rule.strict:
        return True
    if rule.kind is GroupKind.TOGETHER:
        return all(on == domain.on for on in others)
    return domain.on not in others and len(others) < len(rule.nodes or names)


def _restless(dice: Random, domains: dict[str, DomainSetup]) -> dict[str, DomainSetup]:
    """Some may be tried a few times only."""
    return {
        name: dataclasses.replace(each, max_restarts=dice.choice((1, 2, 3))) if dice.random() < 0.5 else each
        for name, each in domains.items()
    }


def _commands(dice: Random, names: list[str], domains: dict[str, DomainSetup], groups: list[str]) -> tuple[Step, ...]:
    """What users ask for at any time, now and then the same of one domain again and again."""
    favourite = dice.choice(sorted(domains)) if dice.random() < 0.3 else ""
    kinds = ("create", "destroy", "migrate", "ha-set", "drain", "resume", "destroy-create")
    steps: list[Step] = []
    for _ in range(dice.randint(1, 8)):
        at = dice.choice((float(dice.randint(int(FROM), int(UNTIL))), int(FROM) + dice.randint(0, 200) / 4))
        domain, node, kind = favourite or dice.choice(sorted(domains)), dice.choice(names), dice.choice(kinds)
        match kind:
            case "destroy-create":
                steps += [
                    Step(at=at, do="destroy", domain=domain),
                    Step(at=at + dice.choice((0.1, 1.5, 6.0)), do="create", domain=domain, node=node),
                ]
            case "drain":
                steps.append(Step(at=at, do="drain", node=node, force=dice.random() < 0.5))
            case "resume":
                steps.append(Step(at=at, do="resume", node=node, home=dice.random() < 0.5))
            case "ha-set":
                policy = dice.choice((Policy.RESTART, Policy.RESTART, Policy.OFF, Policy.MIGRATE_ONLY))
                group = dice.choice(["", *groups]) if groups and dice.random() < 0.3 else None
                group = None if domains[domain].local else group
                priority = dice.choice((None, 0, 3))
                steps.append(Step(at=at, do="ha-set", domain=domain, policy=policy, priority=priority, group=group))
            case _:
                steps.append(Step(at=at, do=kind, domain=domain, node="" if kind == "destroy" else node))
    return tuple(sorted(steps, key=lambda step: step.at))


def _domains(dice: Random, names: list[str], *, tight: bool) -> dict[str, DomainSetup]:
    crowd = 0 if tight else dice.choice((0, 0, 0, 1, 2))  # 1: a group that must lie apart; 2: one disk is a file
    most = min(6, 2 * len(names) - 1) if tight else 6
    domains: dict[str, DomainSetup] = {}
    for number in range(dice.randint(2, most)):
        free = [name for name in names if sum(each.on == name for each in domains.values()) < (2 if tight else 9)]
        domains[f"d{number}"] = DomainSetup(
            on=dice.choice(free),
            memory=256 if tight else dice.choice((128, 256, 320)),
            policy=dice.choice((Policy.RESTART,) * 4 + (Policy.MIGRATE_ONLY, Policy.OFF)),
            priority=dice.randint(0, 2),
            group="pair" if crowd == 1 and number < 2 else "",
            local=crowd == 2 and number == 0,
            max_restarts=50,
            copy=dice.choice((1.0, 6.0)),
            crash=dice.choice((0.0,) * 12 + (4.0,)),
        )
    for name, domain in list(domains.items()):
        if sum(each.memory for each in domains.values() if each.on == domain.on) > 1024:
            domains[name] = dataclasses.replace(domain, memory=128)
    if crowd == 1:
        domains["d1"] = _elsewhere(domains["d1"], domains["d0"], names)
    return domains


def _elsewhere(domain: DomainSetup, other: DomainSetup, names: list[str]) -> DomainSetup:
    """`domain` on another node than `other`."""
    on = domain.on if domain.on != other.on else names[(names.index(other.on) + 1) % len(names)]
    return DomainSetup(on=on, memory=domain.memory, policy=domain.policy, group=domain.group, max_restarts=50)


def check(schedule: Schedule, told: Told) -> None:
    """What must be true, whatever happened."""
    if schedule.restore and "doubts the store" not in told.text:
        return  # nothing went back, or nobody reached the store before it had got further than anybody knew
    assert not told.broken, told.text
    for name, domain in schedule.domains.items():
        if schedule.restore and domain.local:
            continue  # which node has its disk by now is for a person to say
        asked = any(step.domain == name for step in schedule.commands)
        wanted = name in told.wanted if asked else domain.policy is Policy.RESTART
        if not wanted or domain.crash or name in told.running or _given_up(domain, name, told):
            continue
        if _has_a_place(schedule, name, told):
            raise AssertionError(f"{name} does not run, {BOUND:g} s after all faults have ended\n{told.text}")
    assert not told.left, f"{', '.join(told.left)}: left at the end\n{told.text}"
    if schedule.restore:
        return  # the copy may say anything of who was fenced, drained or ended
    grave = not schedule.harmless
    hurt = {name for fault in schedule.faults for name in (fault.node, fault.peer)} if grave else set()
    if any(fault.kind in EVERYWHERE for fault in schedule.faults):
        hurt |= set(schedule.nodes)
    unfounded = [(at, node) for at, node, _ in told.fences if node not in hurt]
    assert not unfounded, f"fenced without a reason: {unfounded}\n{told.text}"
    drains = schedule.drains or any(step.do in ("drain", "resume") for step in schedule.commands)
    if not drains and all(fault.kind != "sick" for fault in schedule.faults):
        assert not told.moves, f"moved without a reason: {told.moves}\n{told.text}"
    if schedule.harmless:
        assert not told.fences and not told.starts, f"something was done without a reason\n{told.text}"


def _given_up(domain: DomainSetup, name: str, told: Told) -> bool:
    """Whether it was given up, after as many ends of its own and failed starts as that takes."""
    failed = sum(
        f"start.failed domain/{name}:" in line or f"start.unknown domain/{name}:" in line or f" {name} dies on " in line
        for line in told.lines
    )
    last = next((line for line in reversed(told.lines) if f" domain/{name}:" in line or f"ha set {name} " in line), "")
    return f"given-up domain/{name}:" in last and failed >= domain.max_restarts


def _has_a_place(schedule: Schedule, name: str, told: Told) -> bool:
    """Whether a node could take it in the end. Where there are neither groups nor commands what fitted once fits again,
    and another answer would be a fault."""
    if not schedule.commands and set(schedule.groups) <= {"pair"}:
        return True
    return any(
        _takes(schedule, name, node, told) for node, setup in schedule.nodes.items() if Role.HYPERVISOR in setup.roles
    )


def _takes(schedule: Schedule, name: str, node: str, told: Told) -> bool:
    domain = schedule.domains[name]
    there = [each for each, on in told.running.items() if on == node]
    if schedule.nodes[node].room < domain.memory + sum(schedule.domains[each].memory for each in there):
        return False
    if domain.local and node != domain.on:
        return False
    group = schedule.groups.get(told.groups.get(name, ""))
    if group is None:
        return True
    if group.nodes and node not in group.nodes:
        return False
    if not group.strict:
        return True
    mine = [told.running[each] for each, of in told.groups.items() if of == told.groups[name] and each in told.running]
    if group.kind is GroupKind.APART:
        return node not in mine
    return mine.count(node) == max((mine.count(each) for each in mine), default=0)
