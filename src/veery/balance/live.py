"""Describe the live cluster, from what its nodes report. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from veery.balance.model import Cluster, Domain, Group, Node
from veery.errors import Refused
from veery.model.domain import DomainReading, DomainState, HostReading
from veery.model.ha import Group as Rule
from veery.model.ha import HaRecord, Policy

RUNNING = (DomainState.RUNNING, DomainState.BLOCKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One node. `takes`: it may receive domains. `before` and `after`: its domains, with Domain-0, at two moments that
    are `seconds` apart."""

    host: HostReading
    takes: bool
    before: Sequence[DomainReading]
    after: Sequence[DomainReading]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All nodes that answer. `owners`: each domain's node. `policies` by domain; `rules` by group."""

    reports: Mapping[str, Report]
    owners: Mapping[str, str]
    policies: Mapping[str, HaRecord] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)


def described(survey: Survey) -> Cluster:
    """Return the cluster that `survey` saw. Raises Refused if its nodes run domains in different ways."""
    kinds = {report.host.accelerator for report in survey.reports.values()}
    if len(kinds) > 1:
        raise Refused(
            f"the nodes run domains in different ways ({', '.join(sorted(kinds))}): no domain can move between them",
            hint="veery cluster cpu shows the nodes",
        )
    nodes: dict[str, Node] = {}
    domains: dict[str, Domain] = {}
    copies = Counter(each.name for report in survey.reports.values() for each in report.after if each.domid)
    for name, report in survey.reports.items():
        rates = _rates(report)
        here = [each for each in report.after if each.domid and survey.owners.get(each.name) == name]
        nodes[name] = _node(name, report, here, rates)
        for reading in here:
            domains[reading.name] = _domain(survey, name, reading, rates.get(reading.uuid, 0.0), copies)
    used = {group for domain in domains.values() for group in domain.groups}
    groups = {name: _group(survey.rules.get(name, Rule())) for name in used}
    return Cluster(nodes=nodes, domains=domains, groups=groups)


def _rates(report: Report) -> dict[str, float]:
    """Return the cores that each domain used between the two moments, by UUID."""
    before = {each.uuid: each.cpu_seconds for each in report.before}
    span = max(report.seconds, 0.001)
    return {
        each.uuid: max(0.0, each.cpu_seconds - before[each.uuid]) / span for each in report.after if each.uuid in before
    }


def _node(name: str, report: Report, here: Sequence[DomainReading], rates: Mapping[str, float]) -> Node:
    """Return the node. All memory that is neither free nor of its own domains is reserved: the host's, and that of
    domains that are arriving or leaving."""
    host = report.host
    zero = sum(rates.get(each.uuid, 0.0) for each in report.after if not each.domid)
    if host.domain0 is None:  # then Domain-0 is the whole machine, with its domains
        zero -= sum(rates.get(each.uuid, 0.0) for each in report.after if each.domid)
    memory = max(1, host.memory_total)
    room = min(memory, max(1, host.memory_free + sum(each.memory for each in here)))
    return Node(
        name=name,
        memory=memory,
        cores=max(1, host.cpus),
        reserved=memory - room,
        load=max(0.0, zero),
        in_service=report.takes,
    )


def _domain(survey: Survey, node: str, reading: DomainReading, load: float, copies: Mapping[str, int]) -> Domain:
    policy = survey.policies.get(reading.name, HaRecord())
    rule = survey.rules.get(policy.group, Rule())
    moving = copies[reading.name] > 1
    lost_rule = bool(rule.nodes) and survey.reports.keys().isdisjoint(rule.nodes)
    return Domain(
        name=reading.name,
        node=node,
        memory=max(1, reading.memory),
        vcpus=max(1, reading.vcpus),
        load=load,
        groups=(policy.group,) if policy.group else (),
        balance=reading.state in RUNNING and not moving and not lost_rule,
        restart=policy.policy is Policy.RESTART and policy.wanted,
    )


def _group(rule: Rule) -> Group:
    return Group(kind=rule.kind, nodes=rule.nodes, strict=rule.strict)
