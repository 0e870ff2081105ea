"""The live cluster as the balancer sees it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from veery.balance import planner
from veery.balance.live import Report, Survey, described
from veery.balance.model import Limits
from veery.errors import Refused
from veery.model.domain import DomainReading, DomainState, HostReading
from veery.model.ha import Group, GroupKind, HaRecord, Policy

HOST = HostReading(
    host="a",
    release="",
    version="",
    machine="x86_64",
    cpus=8,
    cpu_mhz=2000.0,
    cpu_model="",
    memory_total=8192,
    memory_free=4000,
    accelerator="kvm",
    software={},
    facts={},
)
RESTART = HaRecord(policy=Policy.RESTART)


def reading(name: str, seconds: float = 0.0, **more: Any) -> DomainReading:
    """A running domain of 1 GiB."""
    return DomainReading(
        **{
            "name": name,
            "uuid": f"uuid-{name}",
            "domid": 0 if name == "Domain-0" else 1,
            "state": DomainState.RUNNING,
            "memory": 1024,
            "vcpus": 2,
            "cpu_seconds": seconds,
            "started": 0.0,
            **more,
        }
    )


def report(*after: DomainReading, before: tuple[DomainReading, ...] = (), **more: Any) -> Report:
    """A node that has run its domains for ten seconds."""
    return Report(**{"host": HOST, "takes": True, "before": before, "after": after, "seconds": 10.0, **more})


def test_memory_that_is_neither_free_nor_given_is_reserved() -> None:
    made = described(Survey(reports={"a": report(reading("x"))}, owners={"x": "a"}))
    assert (made.nodes["a"].memory, made.nodes["a"].room, made.nodes["a"].cores) == (8192, 5024, 8)


def test_a_node_without_any_memory_left() -> None:
    full = dataclasses.replace(HOST, memory_free=0)
    made = described(Survey(reports={"a": report(reading("x", memory=0), host=full)}, owners={"x": "a"}))
    assert made.nodes["a"].room == 1
    assert planner.plan(made, Limits()).moves == ()


def test_load_is_the_time_used_between_the_two_looks() -> None:
    before = (reading("Domain-0", 100.0), reading("x", 5.0))
    after = (reading("Domain-0", 125.0), reading("x", 20.0), reading("new", 3.0))
    made = described(Survey(reports={"a": report(*after, before=before)}, owners={"x": "a", "new": "a"}))
    assert made.domains["x"].load == pytest.approx(1.5)
    assert made.domains["new"].load == 0.0
    assert made.nodes["a"].load == pytest.approx(1.0)  # the machine 2.5, its domains 1.5


def test_on_xen_domain_0_is_the_host_alone() -> None:
    host = dataclasses.replace(HOST, domain0=reading("Domain-0"), accelerator="xen")
    before, after = (reading("Domain-0", 0.0), reading("x", 0.0)), (reading("Domain-0", 5.0), reading("x", 20.0))
    made = described(Survey(reports={"a": report(*after, before=before, host=host)}, owners={"x": "a"}))
    assert made.nodes["a"].load == pytest.approx(0.5)


def test_a_domain_that_started_anew_has_no_negative_load() -> None:
    made = described(Survey(reports={"a": report(reading("x", 1.0), before=(reading("x", 50.0),))}, owners={"x": "a"}))
    assert made.domains["x"].load == 0.0


def test_a_domain_that_moves_stays_and_its_memory_is_taken_on_both_nodes() -> None:
    made = described(Survey(reports={"a": report(reading("x")), "b": report(reading("x"))}, owners={"x": "a"}))
    assert made.domains["x"].node == "a" and not made.domains["x"].balance
    assert made.nodes["b"].room == 4000


def test_only_running_domains_move() -> None:
    for state in DomainState:
        made = described(Survey(reports={"a": report(reading("x", state=state))}, owners={"x": "a"}))
        assert made.domains["x"].balance == (state in (DomainState.RUNNING, DomainState.BLOCKED))


def test_policies_and_rules() -> None:
    survey = Survey(
        reports={"a": report(reading("x"), reading("y"), reading("z")), "b": report(takes=False)},
        owners={"x": "a", "y": "a", "z": "a"},
        policies={
            "x": dataclasses.replace(RESTART, group="g"),
            "y": dataclasses.replace(RESTART, wanted=False),
            "z": HaRecord(group="h"),
        },
        rules={"g": Group(kind=GroupKind.TOGETHER, nodes=("a",), strict=True), "h": Group(nodes=("away",))},
    )
    made = described(survey)
    assert [made.domains[name].restart for name in "xyz"] == [True, False, False]
    assert made.groups["g"].kind is GroupKind.TOGETHER and made.groups["g"].strict
    assert made.domains["x"].groups == ("g",)
    assert not made.domains["z"].balance  # no node that its group allows answers
    assert not made.nodes["b"].in_service


def test_nodes_of_different_kinds_are_refused() -> None:
    other = dataclasses.replace(HOST, accelerator="tcg")
    with pytest.raises(Refused, match="different ways"):
        described(Survey(reports={"a": report(), "b": report(host=other)}, owners={}))
