"""A move that cannot be settled is told by the leader, as an alarm, and by `veery why`."""

from __future__ import annotations

import dataclasses

from bench.brain import EPOCH, cluster

from veery.ha.decide import decide
from veery.ha.why import why
from veery.model.ha import ClusterView, Level, Note, Rules

RULES = Rules()
SAID = "move m1 of web is not settled: the store does not tell who owns web"


def unsettled(*, fresh: bool = True) -> tuple[ClusterView, str]:
    """A healthy cluster in which one node cannot settle a domain's move; the domain's name."""
    view = cluster(4, 24)
    node = next(each for each in view.nodes.values() if each.reading is not None)
    name = next(iter(view.domains))
    assert node.reading is not None
    reading = dataclasses.replace(node.reading, unsettled={name: SAID})
    return dataclasses.replace(
        view, nodes={**view.nodes, node.name: dataclasses.replace(node, reading=reading, fresh=fresh)}
    ), name


def test_it_is_an_alarm_that_names_the_domain_and_the_node() -> None:
    view, name = unsettled()
    (found,) = decide(view, EPOCH, RULES)
    assert isinstance(found, Note)
    assert (found.subject, found.state, found.level) == (f"move/{name}", "unsettled", Level.ALARM)
    assert SAID in found.reason
    assert found.reason.startswith("on node")


def test_why_says_it_first() -> None:
    view, name = unsettled()
    assert SAID in why(view, name, EPOCH, RULES)[0]


def test_what_a_node_said_long_ago_is_not_told() -> None:
    view, _ = unsettled(fresh=False)
    assert not [each for each in decide(view, EPOCH, RULES) if each.subject.startswith("move/")]
