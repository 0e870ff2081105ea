"""A domain that its disk has stopped is told by the leader, as an alarm with the way back."""

from __future__ import annotations

import dataclasses

import pytest
from bench.brain import EPOCH, cluster

from veery.ha.decide import decide
from veery.ha.why import why
from veery.model.domain import DomainReading, DomainState
from veery.model.ha import ClusterView, Level, Note, Rules, RunningCopy
from veery.node.recovery import why_still

RULES = Rules()


def stopped(*, fresh: bool = True, elsewhere: bool = False) -> tuple[ClusterView, str, str]:
    """A healthy cluster in which a disk has stopped one domain; the domain's name, and the sentence of its node.
    `elsewhere`: the copy is on a node that does not own the domain."""
    view = cluster(4, 24)
    domain = next(each for each in view.domains.values() if each.owner is not None)
    assert domain.owner is not None
    hosts = [name for name, each in view.nodes.items() if each.reading is not None]
    place = next(name for name in hosts if (name == domain.owner.node) is not elsewhere)
    reading = DomainReading(
        name=domain.name,
        uuid="u",
        domid=1,
        state=DomainState.PAUSED,
        memory=64,
        vcpus=1,
        cpu_seconds=0,
        started=0,
        reason="virtio0: No space left on device",
    )
    said = why_still(reading, place, guarded=False, at_work="", theirs=False)
    node = view.nodes[place]
    assert node.reading is not None
    copy = RunningCopy(domain=domain.name, boot=domain.owner.boot, said=said, faulty=reading.faulty)
    copies = (*(each for each in node.reading.copies if each.domain != domain.name), copy)
    node = dataclasses.replace(node, reading=dataclasses.replace(node.reading, copies=copies), fresh=fresh)
    return dataclasses.replace(view, nodes={**view.nodes, place: node}), domain.name, said


def alarms(view: ClusterView) -> list[Note]:
    return [each for each in decide(view, EPOCH, RULES) if isinstance(each, Note) and each.subject.startswith("disk/")]


def test_it_is_an_alarm_that_names_the_disk_and_the_way_back() -> None:
    view, name, _ = stopped()
    (found,) = alarms(view)
    assert (found.subject, found.state, found.level) == (f"disk/{name}", "disk-error", Level.ALARM)
    owner = view.domains[name].owner
    assert owner is not None
    assert found.reason == (
        f"{name} is stopped by an error of its disk (virtio0: No space left on device): to try again: "
        f"veery --node {owner.node} unpause {name}"
    )


def test_why_says_it_once() -> None:
    view, name, said = stopped()
    assert sum(said in line for line in why(view, name, EPOCH, RULES)) == 1


@pytest.mark.parametrize("how", [{"fresh": False}, {"elsewhere": True}])
def test_what_a_node_said_long_ago_or_of_a_copy_is_not_told(how: dict[str, bool]) -> None:
    assert not alarms(stopped(**how)[0])
