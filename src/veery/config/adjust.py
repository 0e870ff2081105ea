"""What a running domain's record keeps of mem-max, vcpu-set, vcpu-pin and sched-*: the new spec. Pure."""

from __future__ import annotations

from dataclasses import replace

from veery.config import xlcfg
from veery.config.check import MOST_MEMORY, check_number, check_spec
from veery.config.cpus import check_range, processors, read_cpus, write_cpus
from veery.errors import Refused
from veery.model.domain import Adjustment, DomainSpec

WEIGHT_MAX = 65535
"""The largest weight that Xen's schedulers take (xen/include/public/domctl.h, xen_domctl_sched_credit)."""
CAP_MAX = 100
"""Percent of one processor, for each virtual one."""


def most_vcpus(spec: DomainSpec) -> int:
    """How many virtual processors the domain can have online."""
    return max(spec.vcpus, spec.maxvcpus)


def most_memory(spec: DomainSpec) -> int:
    """MiB that the domain can have."""
    return max(spec.memory, spec.maxmem)


def affinity(spec: DomainSpec, key: str) -> tuple[str, ...]:
    """The processors of each virtual processor, by `cpus` or `cpus_soft`; "all" where none is set."""
    return read_cpus(key, dict(spec.xl).get(key, '"all"'), most_vcpus(spec))


def fitting(spec: DomainSpec, cpus: int) -> DomainSpec:
    """`spec` as a host with `cpus` processors can start it: an affinity of which the host has no processor is "all"."""
    for key in ("cpus", "cpus_soft"):
        if key not in dict(spec.xl):
            continue
        before = affinity(spec, key)
        found = tuple("all" if (named := processors(text)) and named[0] >= cpus else text for text in before)
        if found != before:
            spec = _kept(spec, key, write_cpus(found))
    return spec


def share(spec: DomainSpec, key: str) -> int | None:
    """`cpu_weight` or `cap`; None where the domain has no such setting."""
    return xlcfg.whole(dict(spec.xl).get(key, "").strip("'\""))


def adjusted(spec: DomainSpec, change: Adjustment) -> DomainSpec:
    """`spec` after `change`. Raises Refused for what the domain cannot have, naming the command or key that works."""
    name = spec.name
    if change.maxmem is not None:
        check_number("maxmem", change.maxmem, 1, MOST_MEMORY)
        if change.maxmem < spec.memory:
            raise Refused(
                f"{name} has {spec.memory} MiB: it cannot have {change.maxmem} at most",
                hint=f"veery mem-set {name} {change.maxmem}",
            )
        spec = replace(spec, maxmem=change.maxmem)
    if change.vcpus is not None:
        most = most_vcpus(spec)
        if not 1 <= change.vcpus <= most:
            hint = f"set maxvcpus = {change.vcpus} in its file; it counts from the next veery create on"
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
