"""veery's balancer beside Ganeti's hbal: `make bench-balance`, or `python -m bench.balance --clusters 40`.

Both plan for the same generated clusters of 4 to 100 nodes. veery may make as many moves as hbal did, or fewer. hbal
itself scores both results. veery plans with hbal's freedoms: a copy costs nothing, and no node counts as busy or tight.
The score of either is the spread of free memory, virtual processors and load, and conflicts in groups that stay apart;
hbal knows no other groups."""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import hbal
from veery.balance import planner
from veery.balance.model import Cluster, Domain, Group, Limits, Node
from veery.balance.reserve import Reserve
from veery.balance.state import State
from veery.errors import VeeryError

CLUSTERS = 200
AIM = 0.90
SAME = 1e-6  # hbal prints eight decimals
SIZES = (4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 100)
SMALL, MIDDLE = 16, 48  # nodes: a larger cluster gets fewer moves, because hbal needs minutes for one of them
FREEDOM = Limits(payback=0, gain=1e-9, busy=math.inf, tight=1.0)


# ---- clusters
def generate(seed: int) -> Cluster:
    """Return a cluster: half of them with loads, half with groups. Some nodes are fuller than others."""
    dice = random.Random(seed)
    count = dice.choice(SIZES)
    loaded, grouped = dice.random() < 0.5, dice.random() < 0.5
    cores = dice.choice([8, 16, 32])
    nodes = {}
    for number in range(count):
        memory = dice.choice([32768, 65536]) if dice.random() < 0.5 else 65536
        size = cores if loaded else dice.choice([cores, cores * 2])  # hbal takes loads for equal nodes only
        nodes[f"n{number:03}"] = Node(name=f"n{number:03}", memory=memory, cores=size, reserved=2048)
    domains = _domains(dice, nodes, loaded=loaded)
    groups = {}
    if grouped:
        names = list(domains)
        dice.shuffle(names)
        for number in range(len(names) // 10):
            members = [names.pop() for _ in range(min(dice.choice([2, 2, 3]), len(names)))]
            groups[f"g{number}"] = Group(strict=dice.random() < 0.5)
            for name in members:
                domains[name] = dataclasses.replace(domains[name], groups=(f"g{number}",))
    return Cluster(nodes=nodes, domains=domains, groups=groups)


def _domains(dice: random.Random, nodes: Mapping[str, Node], *, loaded: bool) -> dict[str, Domain]:
    liking = {name: dice.random() + 0.2 for name in nodes}
    fill = dice.uniform(0.3, 0.75)
    left = {name: node.room for name, node in nodes.items()}
    wanted = sum(left.values()) * fill
    most = len(nodes) * (12 if len(nodes) <= SMALL else 6)
    domains: dict[str, Domain] = {}
    while wanted > 0 and len(domains) < most:
        memory = dice.choice([512, 1024, 2048, 4096, 8192])
        fit = [name for name in nodes if left[name] >= memory]
        if not fit:
            break
        node = dice.choices(fit, [liking[each] for each in fit])[0]
        left[node] -= memory
        wanted -= memory
        vcpus, name = dice.choice([1, 2, 4]), f"d{len(domains):04}"
        load = round(vcpus * dice.random() ** 2 * 0.9, 2) if loaded else 0.0
        domains[name] = Domain(name=name, node=node, memory=memory, vcpus=vcpus, load=load)
    return domains


# ---- one cluster
@dataclass(frozen=True, slots=True)
class Side:
    """One planner's result: hbal's score of it, its moves, whether a rule is broken and N+1 is worse than before."""

    score: float
    moves: int
    broken: bool
    worse: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One cluster. `before`: hbal's score of it."""

    before: float
    hbal: Side
    veery: Side

    @property
    def reached(self) -> bool:
        """Whether veery's score is not above hbal's, at no more moves."""
        return self.veery.score <= self.hbal.score + SAME and self.veery.moves <= self.hbal.moves


def most(cluster: Cluster) -> int:
    """Return how many moves either planner gets."""
    nodes = len(cluster.nodes)
    return 100 if nodes <= SMALL else 20 if nodes <= MIDDLE else 10


def compare(peer: hbal.Hbal, cluster: Cluster) -> Outcome:
    """Let both plan. Raises Failed."""
    began = time.perf_counter()
    answer = peer.plan(cluster, most(cluster))
    middle = time.perf_counter()
    limits = dataclasses.replace(FREEDOM, moves=len(answer.moves), trials=planner.affordable(cluster))
    plan = planner.plan(cluster, limits)
    end = time.perf_counter()
    ours = [(move.domain, move.target) for move in plan.moves]
    return Outcome(
        before=answer.score,
        hbal=_judge(peer, cluster, answer.moves, middle - began),
        veery=_judge(peer, cluster, ours, end - middle),
    )


def _judge(peer: hbal.Hbal, cluster: Cluster, moves: Iterable[tuple[str, str]], seconds: float) -> Side:
    state = State(cluster)
    reserve = Reserve(state)
    broken = worse = False
    count = 0
    for name, target in moves:
        before, conflicts = reserve.counts, state.conflicts()
        state.move(name, state.index[target])
        reserve.renew()
        worse |= any(new > old for new, old in zip(reserve.counts, before, strict=True))
        broken |= state.conflicts() > conflicts or min(state.free) < 0
        count += 1
    where = {name: state.nodes[place].name for name, place in state.where.items()}
    return Side(peer.score(cluster, where), count, broken, worse, seconds)


# ---- speed
def speed() -> None:
    """Print the processor time of plans without trials, for large clusters: the best of three."""
    for nodes, domains in ((100, 2_000), (1_000, 20_000)):
        dice = random.Random(nodes)
        made = {f"n{each:04}": Node(name=f"n{each:04}", memory=65536, cores=32, reserved=2048) for each in range(nodes)}
        names, liking = list(made), [dice.random() + 0.2 for _ in made]
        left = dict.fromkeys(names, 62_000)
        there = {}
        while len(there) < domains:
            memory, node = dice.choice([512, 1024, 2048, 4096]), dice.choices(names, liking)[0]
            if left[node] >= memory:
                left[node] -= memory
                vcpus, name = dice.choice([1, 2, 4]), f"d{len(there):05}"
                load = round(vcpus * dice.random() * 0.6, 2)
                there[name] = Domain(name=name, node=node, memory=memory, vcpus=vcpus, load=load)
        cluster = Cluster(nodes=made, domains=there)
        for moves in (1, 10, 20):
            times = []
            for _ in range(3):
                began = time.process_time()
                planner.plan(cluster, Limits(moves=moves))
                times.append(time.process_time() - began)
            print(f"{nodes} nodes, {domains} domains: {moves:>2} moves in {1000 * min(times):.0f} ms")


# ---- all clusters
def main() -> int:
    """Print a line for each cluster, and the sums. Returns 1 if the aim is missed or a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=CLUSTERS, help=f"how many ({CLUSTERS})")
    parser.add_argument("--first", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--speed", action="store_true", help="only measure how long plans of large clusters take")
    options = parser.parse_args()
    if options.speed:
        speed()
        return 0
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="veery-balance-") as folder:
        try:
            peer = hbal.Hbal(hbal.fetch(lambda text, _: print(text, file=sys.stderr)), Path(folder))
            for seed in range(options.first, options.first + options.clusters):
                cluster = generate(seed)
                outcomes.append(compare(peer, cluster))
                print(_line(seed, cluster, outcomes[-1]), flush=True)
        except VeeryError as error:
            print(f"error: {error.message}\n  hint: {error.hint}", file=sys.stderr)
            return 1
    print(*_sums(outcomes), sep="\n")
    reached = sum(each.reached for each in outcomes) >= AIM * len(outcomes)
    return 0 if reached and not any(each.veery.broken or each.veery.worse for each in outcomes) else 1


def _line(seed: int, cluster: Cluster, outcome: Outcome) -> str:
    sides = (
        f"{name} {side.score:.4f} in {side.moves:>2} moves, {side.seconds:.1f} s"
        f"{', N+1 worse' if side.worse else ''}{', rule broken' if side.broken else ''}"
        for name, side in (("hbal", outcome.hbal), ("veery", outcome.veery))
    )
    size = f"{len(cluster.nodes):>3} nodes, {len(cluster.domains):>3} domains, {len(cluster.groups):>2} groups"
    verdict = "" if outcome.reached else "   MISSED"
    return f"{seed:>3}: {size}: {outcome.before:.4f} -> {'; '.join(sides)}{verdict}"


def _sums(outcomes: list[Outcome]) -> Iterable[str]:
    count = len(outcomes)
    reached = sum(each.reached for each in outcomes)
    lower = sum(each.veery.score < each.hbal.score - SAME for each in outcomes)
    yield f"{count} clusters: veery's score is not above hbal's, at no more moves, in {reached} ({reached / count:.1%})"
    yield f"  lower: {lower}; fewer moves: {sum(each.veery.moves < each.hbal.moves for each in outcomes)}"
    for name, sides in (("veery", [each.veery for each in outcomes]), ("hbal", [each.hbal for each in outcomes])):
        broken, worse = sum(each.broken for each in sides), sum(each.worse for each in sides)
        yield f"  {name}: a rule broken in {broken}, N+1 worse after some move in {worse}"


if __name__ == "__main__":
    sys.exit(main())
