"""How long one decision takes: `python -m bench.brain`. 100 nodes and 2,000 domains, some of them in trouble."""

from __future__ import annotations

import dataclasses
import statistics
import time

from veery.ha.decide import decide
from veery.model.cluster import Owner
from veery.model.ha import (
    ClusterView,
    DomainView,
    FenceMethods,
    FenceRecord,
    FenceState,
    HaRecord,
    IntentKind,
    NodeIntent,
    NodeReading,
    NodeView,
    Policy,
    Rules,
    StorageHeartbeat,
)
from veery.model.node import Node, Role

EPOCH = 1_800_000_000.0
ROUNDS = 15


def cluster(nodes: int = 100, domains: int = 2000) -> ClusterView:
    """A healthy cluster, three quarters full, with three storage nodes besides."""
    names = [f"node{number:03}" for number in range(nodes)]
    room = 256 * domains // nodes * 4 // 3
    views = {name: _node(name, Role.HYPERVISOR, room) for name in names}
    views |= {name: _node(name, Role.STORAGE, 0) for name in ("stor1", "stor2", "stor3")}
    homes = {f"domain{number:04}": names[number % nodes] for number in range(domains)}
    ha = HaRecord(policy=Policy.RESTART, revision=1)
    return ClusterView(
        revision=1,
        quorum=True,
        settled=1000.0,
        witnesses=3,
        watched=1000.0,
        nodes=views,
        domains={
            name: DomainView(
                name=name,
                memory=256,
                ha=dataclasses.replace(ha, priority=number % 3, group=f"group{number // 4}" if number % 4 < 2 else ""),
                owner=Owner(domain=name, node=home, boot=name, revision=1),
            )
            for number, (name, home) in enumerate(homes.items())
        },
    )


def _node(name: str, role: Role, room: int) -> NodeView:
    return NodeView(
        record=Node(name=name, address=name, roles=(role,)),
        present=1000.0,
        sign=StorageHeartbeat(age=0.5),
        reading=NodeReading(started=1.0, room=room),
        fresh=True,
        means=FenceMethods(methods=("storage",)),
    )


def lose(view: ClusterView, count: int, *, fenced: bool) -> ClusterView:
    """`count` of the hypervisors do not answer any more; or are fenced already."""
    fence = FenceRecord(state=FenceState.FENCED, method="storage", proof="seen", revision=2) if fenced else None
    nodes = dict(view.nodes)
    for name in list(nodes)[:count]:
        nodes[name] = dataclasses.replace(
            nodes[name], absent=60.0, present=None, sign=StorageHeartbeat(age=60.0), fresh=False, fence=fence
        )
    return dataclasses.replace(view, nodes=nodes)


def orphan(view: ClusterView, count: int) -> ClusterView:
    """Nobody owns `count` of the domains."""
    domains = dict(view.domains)
    for name in list(domains)[:count]:
        domains[name] = dataclasses.replace(domains[name], owner=None)
    return dataclasses.replace(view, domains=domains)


def drain(view: ClusterView, count: int) -> ClusterView:
    """`count` nodes are being drained."""
    nodes = dict(view.nodes)
    for name in list(nodes)[:count]:
        nodes[name] = dataclasses.replace(nodes[name], intent=NodeIntent(kind=IntentKind.DRAIN))
    return dataclasses.replace(view, nodes=nodes)


def cases() -> dict[str, ClusterView]:
    """The views that are measured, by name."""
    whole = cluster()
    return {
        "at rest": whole,
        "1 node lost": lose(whole, 1, fenced=False),
        "1 node fenced": lose(whole, 1, fenced=True),
        "20 nodes fenced": lose(whole, 20, fenced=True),
        "5 nodes drained": drain(whole, 5),
        "400 domains wait": orphan(whole, 400),
        "all 2,000 wait": orphan(whole, 2000),
    }


def measure(view: ClusterView, rounds: int = ROUNDS) -> tuple[float, float, int]:
    """(median, worst, actions): milliseconds of processor time that one decision takes, and how many actions and notes
    it made."""
    rules, times, count = Rules(), [], 0
    for _ in range(rounds):
        begun = time.thread_time()
        count = len(decide(view, EPOCH, rules))
        times.append((time.thread_time() - begun) * 1000)
    return statistics.median(times), max(times), count


def main() -> None:
    """Print a line for each case."""
    print("100 nodes, 2,000 domains: one decision")
    for name, view in cases().items():
        middle, worst, count = measure(view)
        print(f"  {name:<18} median {middle:6.1f} ms   worst {worst:6.1f} ms   {count} actions and notes")


if __name__ == "__main__":
    main()
