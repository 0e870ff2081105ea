"""Random schedules of faults for the simulated cluster, and what must be true of each that was played."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from veery.ha.simulation.play import Told
from veery.ha.simulation.scenario import DomainSetup, NodeSetup, Scenario, Step
from veery.model.ha import Policy, Rules
from veery.model.node import Role

FROM, UNTIL, BOUND = 15.0, 80.0, 100.0  # faults begin and end between these; so long afterwards everything runs
RULES = Rules(backoff_max=15.0, retry=10.0)

HARMLESS = ("etcd", "etcd-one", "cluster-net", "clock", "announced", "lost-answer")  # nobody may be fenced for these
GRAVE = ("power", "freeze", "all-nets", "storage-net", "daemon", "target", "crash", "disk-full", "reboot")
FAILING = ("storage", "power")
METHODS = (("storage",), ("storage", "power"), ("storage", "watchdog"), ("power",), ("watchdog",))


@dataclass(frozen=True)
class Fault:
    """One fault: what, on which node or domain, from when, for how long."""

    kind: str
    node: str
    domain: str
    begin: float
    lasts: float


@dataclass(frozen=True)
class Schedule:
    """A cluster and its faults."""

    nodes: dict[str, NodeSetup]
    domains: dict[str, DomainSetup]
    faults: tuple[Fault, ...]
    drains: tuple[tuple[float, str], ...]

    def scenario(self) -> Scenario:
        """As the simulator plays it: every fault is over at UNTIL, drains are resumed."""
        steps = [step for fault in self.faults for step in _steps(fault)]
        steps += [Step(at=at, do="drain", node=node, force=True) for at, node in self.drains]
        for name, setup in self.nodes.items():
            for do in ("thaw", "heal", "power-on", "daemon-start", "disk-freed"):
                steps.append(Step(at=UNTIL, do=do, node=name))
            if Role.STORAGE in setup.roles:
                steps.append(Step(at=UNTIL, do="target-start", node=name))
        steps.append(Step(at=UNTIL, do="etcd-start"))
        steps += [Step(at=UNTIL + 1, do="resume", node=node) for _, node in self.drains]
        return Scenario(
            about="random",
            seconds=UNTIL + BOUND,
            nodes=self.nodes,
            domains=self.domains,
            rules=RULES,
            steps=tuple(sorted(steps, key=lambda step: step.at)),
        )

    @property
    def harmless(self) -> bool:
        """Whether nothing may be fenced, started or moved because of it."""
        return not self.drains and all(fault.kind in HARMLESS for fault in self.faults)


def _steps(fault: Fault) -> list[Step]:
    node, end = fault.node, min(UNTIL, fault.begin + fault.lasts)

    def pair(begin: str, over: str, net: str = "all") -> list[Step]:
        return [Step(at=fault.begin, do=begin, node=node, net=net), Step(at=end, do=over, node=node, net=net)]

    if fault.kind in ("freeze", "all-nets") and int(fault.lasts) % 2:  # and whoever fences it fails at first
        broken = [Step(at=fault.begin, do="break-fence", node=node, method=each, count=2) for each in FAILING]
        return broken + (pair("freeze", "thaw") if fault.kind == "freeze" else pair("cut", "heal"))
    match fault.kind:
        case "power":
            return pair("power-off", "power-on")
        case "reboot":
            return [Step(at=fault.begin, do="power-off", node=node), Step(at=fault.begin + 4, do="power-on", node=node)]
        case "freeze":
            return pair("freeze", "thaw")
        case "all-nets":
            return pair("cut", "heal")
        case "cluster-net":
            return pair("cut", "heal", "cluster")
        case "storage-net":
            return pair("cut", "heal", "storage")
        case "daemon":
            return pair("daemon-stop", "daemon-start")
        case "announced":
            return [Step(at=fault.begin - 1, do="away", node=node, seconds=UNTIL), *pair("daemon-stop", "daemon-start")]
        case "etcd":
            return [Step(at=fault.begin, do="etcd-stop"), Step(at=end, do="etcd-start")]
        case "etcd-one":
            return pair("etcd-stop", "etcd-start")
        case "disk-full":
            return pair("disk-full", "disk-freed")
        case "target":
            return [Step(at=fault.begin, do="target-stop", node="stor"), Step(at=end, do="target-start", node="stor")]
        case "clock":
            return [Step(at=fault.begin, do="clock-step", node=node, seconds=(fault.lasts - 20) * 100)]
        case "crash":
            return [Step(at=fault.begin, do="crash", domain=fault.domain)]
        case "lost-answer":
            done = int(fault.lasts) % 2 == 0
            text = ("fence/", "owner/", "run/")[int(fault.begin) % 3]
            return [Step(at=fault.begin, do="lose-answer", node=node, done=done, text=text)]
    raise AssertionError(fault.kind)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Two to four hypervisors, one storage node, one to six domains, one to six faults, now and then a drain."""
    count = draw(st.integers(2, 4))
    names = [f"n{number}" for number in range(1, count + 1)]
    nodes = {}
    for name in names:
        methods = draw(st.sampled_from(METHODS))
        nodes[name] = NodeSetup(methods=methods, watchdog=30.0 if "watchdog" in methods else 0.0)
    nodes["stor"] = NodeSetup(roles=(Role.STORAGE, Role.VOTER), room=0)
    domains = {}
    for number in range(draw(st.integers(1, 6))):
        domains[f"d{number}"] = DomainSetup(
            on=draw(st.sampled_from(names)),
            policy=draw(st.sampled_from((Policy.RESTART, Policy.RESTART, Policy.RESTART, Policy.MIGRATE_ONLY))),
            priority=draw(st.integers(0, 2)),
            max_restarts=50,
            copy=draw(st.sampled_from((1.0, 6.0))),
        )
    kinds = HARMLESS if draw(st.integers(0, 3)) == 0 else HARMLESS + GRAVE + GRAVE
    fault = st.builds(
        Fault,
        kind=st.sampled_from(kinds),
        node=st.sampled_from([*names, "stor"]),
        domain=st.sampled_from(sorted(domains)),
        begin=st.integers(int(FROM), int(UNTIL) - 10).map(float),
        lasts=st.integers(2, 60).map(float),
    )
    faults = draw(st.lists(fault, min_size=1, max_size=6))
    drains = draw(st.lists(st.tuples(st.integers(20, 60).map(float), st.sampled_from(names)), max_size=1))
    return Schedule(nodes, domains, tuple(faults), tuple(drains) if kinds is not HARMLESS else ())


def check(schedule: Schedule, told: Told) -> None:
    """What must be true, whatever happened."""
    assert not told.broken, told.text
    for name, domain in schedule.domains.items():
        if domain.policy is Policy.RESTART:
            assert name in told.running, f"{name} does not run, {BOUND:g} s after all faults have ended\n{told.text}"
    hurt = {fault.node for fault in schedule.faults if fault.kind not in HARMLESS}
    hurt |= {fault.node for fault in schedule.faults if fault.kind in ("cluster-net", "announced")} if hurt else set()
    unfounded = [(at, node) for at, node, _ in told.fences if node not in hurt]
    assert not unfounded, f"fenced without a reason: {unfounded}\n{told.text}"
    if not schedule.drains:
        assert not told.moves, f"moved without a reason: {told.moves}\n{told.text}"
    if schedule.harmless:
        assert not told.fences and not told.starts, f"something was done without a reason\n{told.text}"
