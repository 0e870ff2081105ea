"""The orders of xl that give a running domain the memory, processors and share of its spec. Pure except `reapply`,
which gives them to a domain that has moved in, because xl does not migrate affinities."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from veery.config.adjust import affinity, most_memory, share
from veery.errors import VeeryError
from veery.hypervisor.xen.registry import Domain
from veery.hypervisor.xen.xl import Xl
from veery.model.domain import DomainSpec

log = logging.getLogger(__name__)

CREDIT = "sched-credit"
CREDIT2 = "sched-credit2"
Order = tuple[str, ...]


def orders(before: DomainSpec | None, after: DomainSpec, domid: int, scheduler: str) -> tuple[Order, ...]:
    """Return the verb and words of each order that changes `before` to `after`, on a host with this `scheduler` (xl
    info's xen_scheduler). Without `before`, the orders for all that `after` names."""
    found: list[Order] = []
    if (before is None and after.maxmem) or (before and most_memory(before) != most_memory(after)):
        found.append(("mem-max", str(domid), f"{most_memory(after)}m"))
    if (before is None and after.maxvcpus) or (before and before.vcpus != after.vcpus):
        found.append(("vcpu-set", "-i", str(domid), str(after.vcpus)))
    found += _pins(before, after, domid)
    words = [
        *_changed("-w", "cpu_weight", before, after),
        *_changed("-c", "cap", before, after),
    ]
    if words:
        found.append((CREDIT if scheduler == "credit" else CREDIT2, "-d", str(domid), *words))
    return tuple(found)


def _changed(option: str, key: str, before: DomainSpec | None, after: DomainSpec) -> tuple[str, ...]:
    value = share(after, key)
    if value is None or (before is not None and share(before, key) == value):
        return ()
    return (option, str(value))


def _pins(before: DomainSpec | None, after: DomainSpec, domid: int) -> Iterator[Order]:
    kept = dict(after.xl)
    if before is None and not {"cpus", "cpus_soft"} & kept.keys():
        return
    old = list(_affinities(before)) if before is not None else []
    new = list(_affinities(after))
    if old == new:
        return
    if len(set(new)) == 1:
        yield ("vcpu-pin", str(domid), "all", *new[0])
        return
    for number, pair in enumerate(new):
        if number >= len(old) or old[number] != pair:
            yield ("vcpu-pin", str(domid), str(number), *pair)


def _affinities(spec: DomainSpec) -> Iterator[tuple[str, str]]:
    yield from zip(affinity(spec, "cpus"), affinity(spec, "cpus_soft"), strict=True)


def lasting(spec: DomainSpec) -> bool:
    """Return whether a domain that moves in needs any of these orders."""
    return bool(orders(None, spec, 0, ""))


async def adjust(xl: Xl, domain: Domain, spec: DomainSpec) -> None:
    """Give a domain what `spec` names. Raises Failed with xl's words."""
    scheduler = (await xl.info()).rows.get("xen_scheduler", "")
    for verb, *words in orders(domain.record.spec, spec, domain.record.domid, scheduler):
        await xl.order(verb, *words)


async def reapply(xl: Xl, domain: Domain) -> None:
    """Give the domain all that its spec names. What this node cannot provide is logged: the domain runs without it."""
    spec = domain.record.spec
    try:
        scheduler = (await xl.info()).rows.get("xen_scheduler", "")
    except VeeryError as error:
        log.warning("domain=%s xl info: %s", spec.name, error.message)
        return
    async with domain.lock:
        for verb, *words in orders(None, spec, domain.record.domid, scheduler):
            try:
                await xl.order(verb, *words)
            except VeeryError as error:
                log.warning(
                    "domain=%s a setting was not applied: %s: %s", spec.name, " ".join((verb, *words)), error.message
                )
        domain.update(arrived=False)
