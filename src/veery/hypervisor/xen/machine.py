"""The node as the xen driver sees it: Xen's version and abilities, memory, processors; obstacles to a move."""

from __future__ import annotations

import os
from pathlib import Path

from veery.errors import Refused
from veery.hypervisor.xen.parse import Info, Row
from veery.hypervisor.xen.statedir import Build
from veery.model.domain import DomainReading, DomainSpec, DomainType, HostReading
from veery.model.plan import Abilities, Blocker, Obstacle, no_room

OLDEST = (4, 14)
"""The oldest Xen whose xl prints what parse.py reads."""
OVERHEAD = 16
"""MiB that a domain needs besides its memory: page tables, grant frames (libxl__get_required_paging_memory and kin)."""
POST_COPY = "not on Xen, because xl has no post-copy"
LOG_DIRTY_HINT = "XSA-495: Debian 12's 4.17.5 has it; or run the domain as pvh, which moves under every Xen"


def check(info: Info) -> None:
    """Raise Refused for a Xen that is too old."""
    if (info.major, info.minor) < OLDEST:
        raise Refused(
            f"Xen {info.version} is too old: {OLDEST[0]}.{OLDEST[1]} or newer is needed",
            hint="upgrade it: Debian 12 has 4.17",
        )


def abilities(info: Info) -> Abilities:
    """Return what can be built here. `machines` are the types of domain. Features are not listed, because veery cannot
    select them in Xen: each domain has those of its node, and `obstacles` compares the processors themselves."""
    kinds = tuple(kind.value for kind in (DomainType.PV, DomainType.PVH) if _runs(info, kind))
    return Abilities(driver="xen", version=info.version, accelerator="xen", machines=kinds, post_copy=POST_COPY)


def build(spec: DomainSpec, info: Info, started: float) -> Build:
    """Return what a move's target must know about a domain that starts here."""
    return Build(
        xen=f"{info.major}.{info.minor}",
        type=spec.type,
        memory=max(spec.memory, spec.maxmem),
        started=started,
        processor=info.processor,
        dirty_log=info.logs_dirty_pv(),
    )


def refuse_unfit(spec: DomainSpec, info: Info) -> None:
    """Raise Refused for a domain that cannot start here: its type, or lack of memory."""
    if not _runs(info, spec.type):
        raise Refused(f"{spec.name}: this Xen runs no {spec.type} domains", hint=_type_hint(spec.type))
    wanted = max(spec.memory, spec.maxmem) + OVERHEAD
    if wanted > info.memory_free:
        raise Refused(
            f"{spec.name}: not enough memory: {wanted} MiB are needed, {info.memory_free} are free",
            hint="give it less memory=, or end another domain",
        )


def obstacles(spec: DomainSpec, plan: Build, info: Info) -> tuple[Blocker, ...]:
    """Return every reason why a domain, built like this elsewhere, cannot move here."""
    found: list[Blocker] = []
    if not _runs(info, plan.type):
        reason = f"its Xen runs no {plan.type} domains"
        found.append(Blocker(kind=Obstacle.DRIVER, reason=reason, hint=_type_hint(plan.type)))
    there = tuple(int(part) for part in plan.xen.split("."))
    if there > (info.major, info.minor):
        reason = f"its Xen {info.major}.{info.minor} is older than {plan.xen}, on which the domain runs"
        found.append(Blocker(kind=Obstacle.VERSION, reason=reason, hint="Xen moves domains to the same or a newer one"))
    if plan.type is DomainType.PV and not plan.dirty_log:
        reason = f"the Xen of {spec.name}'s node cannot move PV domains live: it was built without shadow paging"
        found.append(Blocker(kind=Obstacle.VERSION, reason=reason, hint=LOG_DIRTY_HINT))
    if missing := lacking(plan.processor, info.processor):
        reason = f"its processor lacks features that {spec.name} was started with: {', '.join(missing)}"
        found.append(
            Blocker(kind=Obstacle.CPU, reason=reason, hint="start the domain on this node first, or mask them")
        )
    for what, path in (("kernel", spec.kernel), ("ramdisk", spec.ramdisk)):
        if path and not Path(path).is_file():
            found.append(Blocker(kind=Obstacle.KERNEL, reason=f"it has no {what} {path}", hint=f"copy {path} there"))
    return (*found, *no_room(plan.memory + OVERHEAD, info.memory_free))


def lacking(wanted: tuple[int, ...], have: tuple[int, ...]) -> tuple[str, ...]:
    """Return the feature bits of `wanted` that `have` lacks, as WORD.BIT of xl info's hw_caps (Xen's featureset words,
    xen/include/public/arch-x86/cpufeatureset.h)."""
    return tuple(
        f"{word}.{bit}"
        for word, mask in enumerate(wanted)
        for bit in range(32)
        if mask & ~(have[word] if word < len(have) else 0) & 1 << bit
    )


def reading(info: Info | None, zero: Row | None) -> HostReading:
    """Return this machine's current reading; `facts` are all rows that `xl info` prints, in its order."""
    system = os.uname()
    rows = info.rows if info else {}
    return HostReading(
        host=system.nodename,
        release=system.release,
        version=system.version,
        machine=system.machine,
        cpus=info.cpus if info else os.cpu_count() or 1,
        cpu_mhz=info.cpu_mhz if info else 0.0,
        cpu_model=_model(),
        memory_total=info.memory_total if info else 0,
        memory_free=info.memory_free if info else 0,
        accelerator="xen",
        software={"xen": info.version, "kernel": system.release} if info else {"kernel": system.release},
        facts=dict(rows),
        domain0=_zero(zero),
    )


def _zero(row: Row | None) -> DomainReading | None:
    if row is None:
        return None
    return DomainReading(
        name=row.name,
        uuid=row.uuid,
        domid=row.domid,
        state=row.state,
        memory=row.memory,
        vcpus=row.vcpus,
        cpu_seconds=row.cpu_seconds,
        started=_booted(),
    )


def _runs(info: Info, kind: DomainType) -> bool:
    if kind is DomainType.PV:
        return any(word.startswith("xen-") for word in info.capabilities)
    return any(word.startswith("hvm-") for word in info.capabilities)


def _type_hint(kind: DomainType) -> str:
    if kind is DomainType.PV:
        return 'write type = "pvh"'
    return 'the processor has no VT-x or SVM, or the firmware disables it; write type = "pv"'


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def _booted() -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0
