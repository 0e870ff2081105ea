"""The spec of a running domain after mem-max, vcpu-set, vcpu-pin and sched-*. Pure functions."""

from __future__ import annotations

from dataclasses import replace

from veery.config import xlcfg
from veery.config.check import MOST_MEMORY, check_number, check_spec
from veery.config.cpus import check_range, processors, read_cpus, write_cpus
from veery.errors import Refused
from veery.model.domain import Adjustment, DomainSpec

WEIGHT_MAX = 65535
"""The largest weight that Xen's schedulers accept (xen/include/public/domctl.h, xen_domctl_sched_credit)."""
CAP_MAX = 100
"""The largest cap per virtual processor, in percent of one processor."""


def most_vcpus(spec: DomainSpec) -> int:
    """Return how many virtual processors the domain can have online."""
    return max(spec.vcpus, spec.maxvcpus)


def most_memory(spec: DomainSpec) -> int:
    """Return the maximum memory of the domain in MiB."""
    return max(spec.memory, spec.maxmem)


def affinity(spec: DomainSpec, key: str) -> tuple[str, ...]:
    """Return the processors of each virtual processor from `cpus` or `cpus_soft`; "all" if unset."""
    return read_cpus(key, dict(spec.xl).get(key, '"all"'), most_vcpus(spec))


def fitting(spec: DomainSpec, cpus: int) -> DomainSpec:
    """Return `spec` for a host with `cpus` processors. An affinity without any processor of the host becomes "all"."""
    for key in ("cpus", "cpus_soft"):
        if key not in dict(spec.xl):
            continue
        before = affinity(spec, key)
        found = tuple("all" if (named := processors(text)) and named[0] >= cpus else text for text in before)
        if found != before:
            spec = _kept(spec, key, write_cpus(found))
    return spec


def share(spec: DomainSpec, key: str) -> int | None:
    """Return `cpu_weight` or `cap`; None if the domain has no such setting."""
    return xlcfg.whole(dict(spec.xl).get(key, "").strip("'\""))


def adjusted(spec: DomainSpec, change: Adjustment) -> DomainSpec:
    """Return `spec` after `change`. Raises Refused for an impossible value, and names the command or key that works."""
    name = spec.name
    if change.maxmem is not None:
        check_number("maxmem", change.maxmem, 1, MOST_MEMORY)
        if change.maxmem < spec.memory:
            raise Refused(
                f"{name} has {spec.memory} MiB: its maximum cannot be {change.maxmem}",
                hint=f"veery mem-set {name} {change.maxmem}",
            )
        spec = replace(spec, maxmem=change.maxmem)
    if change.vcpus is not None:
        most = most_vcpus(spec)
        if not 1 <= change.vcpus <= most:
            hint = f"set maxvcpus = {change.vcpus} in its file; it applies from the next veery create on"
            if change.vcpus < 1:
                hint = f"veery vcpu-set {name} 1"
            raise Refused(f"{name} can have 1 to {most} processors, not {change.vcpus}", hint=hint)
        spec = replace(spec, vcpus=change.vcpus, maxvcpus=most)
    spec = _pinned(spec, change)
    for key, number, high in (
        ("cpu_weight", change.weight, WEIGHT_MAX),
        ("cap", change.cap, CAP_MAX * most_vcpus(spec)),
    ):
        if number is not None:
            check_number(key, number, 0 if key == "cap" else 1, high)
            spec = _kept(spec, key, str(number))
    return check_spec(spec)


def _pinned(spec: DomainSpec, change: Adjustment) -> DomainSpec:
    most = most_vcpus(spec)
    if change.vcpu is not None and not 0 <= change.vcpu < most:
        raise Refused(
            f"{spec.name} has no virtual processor {change.vcpu}", hint=f"veery vcpu-list {spec.name} shows them"
        )
    for key, text in (("cpus", change.hard), ("cpus_soft", change.soft)):
        if text is None:
            continue
        check_range(key, text)
        found = list(affinity(spec, key))
        for number in range(most) if change.vcpu is None else (change.vcpu,):
            found[number] = text
        spec = _kept(spec, key, write_cpus(tuple(found)))
    return spec


def _kept(spec: DomainSpec, key: str, value: str) -> DomainSpec:
    return replace(spec, xl=(*((name, text) for name, text in spec.xl if name != key), (key, value)))
