"""Finds signs that many nodes show at once: their cause lies outside the nodes. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from veery.model.ha import ClusterView
from veery.model.node import Role
from veery.model.verdict import NodeVerdict

COMMON_S = 600.0  # the same sign on many nodes within this time has one common cause


def hypervisors(view: ClusterView) -> list[str]:
    """Return the nodes that run domains."""
    return [name for name, node in view.nodes.items() if node.record.has(Role.HYPERVISOR)]


def common_signs(view: ClusterView) -> dict[str, frozenset[str]]:
    """Return for each sensor the nodes on which it found something within COMMON_S of one another, if they are at least
    half of all hypervisors."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name in hypervisors(view):
        for sign in view.nodes[name].health.signs:
            if sign.asks is not NodeVerdict.WELL:
                first = found[sign.sensor].get(name, math.inf)
                found[sign.sensor][name] = min(first, sign.since)
    least = max(2, math.ceil(len(hypervisors(view)) / 2))
    common: dict[str, frozenset[str]] = {}
    for sensor, since in found.items():
        groups = (frozenset(other for other in since if _together(view, since, name, other)) for name in since)
        common[sensor] = frozenset().union(*(each for each in groups if len(each) >= least))
    return common


def _together(view: ClusterView, since: dict[str, float], name: str, other: str) -> bool:
    """Return True if the sign began on both nodes at about the same time, by their clocks or by this leader's: one of
    the clocks may be wrong."""
    ages = view.ages.get(f"health/{name}", math.inf), view.ages.get(f"health/{other}", -math.inf)
    return abs(since[name] - since[other]) <= COMMON_S or abs(ages[0] - ages[1]) <= COMMON_S


def is_common(view: ClusterView, name: str, common: Mapping[str, frozenset[str]]) -> bool:
    """Return True if node `name` is in quarantine only for states that have a common cause. `common`: as common_signs
    returns it. If such nodes were given no domains, a cluster with one fault of its power could restart none."""
    health = view.nodes[name].health
    asking = [each for each in health.signs if each.asks is NodeVerdict.QUARANTINE]
    return (
        health.verdict is NodeVerdict.QUARANTINE
        and bool(asking)
        and all(each.shared and name in common.get(each.sensor, ()) for each in asking)
    )
