"""What this node's QEMU can build: machine types and processor features, asked of a QEMU without a machine.

Two nodes can move a domain to and fro as long as both know its machine type and can provide its processor's
features."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veery.errors import VeeryError
from veery.host.owner import Owner
from veery.host.run import run
from veery.hypervisor.qemu import build, postcopy, tsc
from veery.hypervisor.qemu.build import Build
from veery.hypervisor.qemu.machine import CPUINFO, OLDEST, Hypervisor, address_bits
from veery.model.domain import DomainSpec
from veery.model.plan import LEVELS, Abilities, Blocker, Obstacle

log = logging.getLogger(__name__)

ANSWER_DEADLINE_S = 10.0
BASE = "qemu64"
MODELS: Mapping[str, tuple[str, ...]] = {
    "GenuineIntel": (
        *("Nehalem-v1", "Nehalem-v2", "Westmere-v1", "Westmere-v2", "SandyBridge-v1", "SandyBridge-v2"),
        *("IvyBridge-v1", "IvyBridge-v2", "Haswell-v2", "Haswell-v4", "Broadwell-v2", "Broadwell-v4"),
        *("Skylake-Client-v3", "Skylake-Client-v4", "Skylake-Server-v3", "Skylake-Server-v4", "Skylake-Server-v5"),
        *("Cascadelake-Server-v3", "Cascadelake-Server-v4", "Cascadelake-Server-v5", "Icelake-Server-v3"),
        *("Icelake-Server-v4", "Icelake-Server-v5", "Icelake-Server-v6", "SapphireRapids-v2", "SapphireRapids-v3"),
        "GraniteRapids-v2",
    ),
    "AuthenticAMD": (
        *("Opteron_G3-v1", "EPYC-v2", "EPYC-v3", "EPYC-v4", "EPYC-Rome-v2", "EPYC-Rome-v3", "EPYC-Rome-v4"),
        *("EPYC-Milan-v1", "EPYC-Milan-v2", "EPYC-Genoa-v1"),
    ),
}
"""QEMU's processor models by vendor, the oldest first (target/i386/cpu.c): the versions with the bits by which a guest
protects itself from its processor's faults, and without those that microcode removes (TSX). A guest chooses its
protections by family and model; under qemu64, an old AMD, it leaves most of them out."""
HYPERCALLS = frozenset({"kvm-pv-ipi", "kvm-pv-sched-yield", "kvm-pv-tlb-flush", "kvm-pv-unhalt"})
WORTH = frozenset().union(
    *LEVELS[1:],
    {"adx", "aes", "clflushopt", "erms", "fsgsbase", "invpcid", "pclmulqdq", "pcid", "pdpe1gb", "rdrand", "rdseed"},
    {"rdtscp", "sha-ni", "smap", "smep", "xsavec", "xsaveopt"},
    {"amd-ssbd", "ibpb", "md-clear", "spec-ctrl", "ssbd", "stibp", "virt-ssbd"},
    {"amd-no-ssb", "amd-psfd", "amd-stibp", "arat", "auto-ibrs", "fsrm", "gfni", "ibrs", "tsc-adjust", "tsc-deadline"},
    {"avx512-vnni", "umip", "vaes", "vpclmulqdq", "xsaves"},
    HYPERCALLS,
)
"""Features worth giving to guests where every node has them: speed, random numbers, and what mitigations need."""
WORTH_BY_VENDOR: Mapping[str, frozenset[str]] = {
    "GenuineIntel": frozenset(
        {"arch-capabilities", "fb-clear", "fbsdp-no", "gds-no", "ibrs-all", "mds-no", "psdp-no", "pschange-mc-no"}
    )
    | {"rdctl-no", "rfds-clear", "rfds-no", "sbdr-ssdp-no", "skip-l1dfl-vmentry", "taa-no"},
}
"""Features that tell a guest from which faults its processor is free. Not on AMD: KVM emulates arch-capabilities there,
and from QEMU 10.1 on QEMU leaves them out."""


_VERSIONED = frozenset().union(*MODELS.values())


async def ask(hypervisor: Hypervisor, owner: Owner | None = None) -> Abilities:
    """Return machine types and features; `owner` runs the domains (None: root). Where QEMU does not say, they stay
    empty, and nothing is refused for them.

    QMP: query-machines; query-cpu-model-expansion of `max`: all that the accelerator can provide on this processor;
    query-cpu-definitions: the models, and what the accelerator lacks for each."""
    commands: list[dict[str, Any]] = [
        {"execute": "qmp_capabilities"},
        {"execute": "query-machines"},
        {"execute": "query-cpu-model-expansion", "arguments": {"type": "full", "model": {"name": "max"}}},
        {"execute": "query-cpu-definitions"},
        {"execute": "quit"},
    ]
    words = [hypervisor.binary, "-no-user-config", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    words += ["-machine", "none", "-accel", hypervisor.accel]
    told = Told()
    try:
        said = await run(
            words, deadline=ANSWER_DEADLINE_S, stdin="".join(f"{json.dumps(one)}\n" for one in commands).encode()
        )
        told = read(said.out)
    except (VeeryError, ValueError, KeyError) as error:
        log.warning("QEMU did not say what it can build: %s", error)
    counter = await asyncio.to_thread(tsc.ask) if hypervisor.accel == "kvm" else tsc.Tsc()
    return Abilities(
        driver="qemu",
        version=hypervisor.version,
        accelerator=hypervisor.accel,
        machines=told.machines,
        features=told.features,
        models=told.models,
        vendor=told.vendor,
        tsc_khz=counter.khz,
        tsc_scales=counter.scales,
        phys_bits=address_bits(CPUINFO.read_text()) if hypervisor.accel == "kvm" else 0,
        post_copy=postcopy.obstacle(owner),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The answers of a QEMU without a machine; empty: it did not answer."""

    machines: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    vendor: str = ""


def read(text: str) -> Told:
    """Parse QEMU's answers, one a line. Raises ValueError, KeyError for anything else."""
    told = Told()
    for line in text.splitlines():
        answer = json.loads(line).get("return")
        if isinstance(answer, list) and any("unavailable-features" in one for one in answer):
            models = {one["name"] for one in answer if one.get("unavailable-features") == []}
            told = replace(told, models=tuple(sorted(models & _VERSIONED)))
        elif isinstance(answer, list):
            old = sorted(one["name"] for one in answer if one.get("deprecated") and one["name"] == build.MACHINE)
            if old:  # domains may run on it for years, and can still move to it
                log.warning("QEMU calls the machine type %s deprecated: a later version will remove it", old[0])
            told = replace(told, machines=tuple(sorted(one["name"] for one in answer)))
        elif answer and "model" in answer:
            props = answer["model"]["props"]
            features = tuple(sorted({plain(name) for name, value in props.items() if value is True}))
            told = replace(told, features=features, vendor=str(props.get("vendor", "")))
    return told


def _words(layouts: Iterable[int]) -> str:
    *first, last = (str(each) for each in sorted(layouts))
    return f"{', '.join(first)} and {last}" if first else last


def plain(name: str) -> str:
    """Return a feature's name with dashes only: QEMU writes sse4.1, sse4_1 and sse4-1 for the same."""
    return re.sub(r"[._]", "-", name)


def processor(
    features: Iterable[str], accelerator: str, models: Iterable[str] = (), vendor: str = ""
) -> tuple[str, tuple[str, ...]]:
    """Return QEMU's -cpu for a processor of `vendor` with `features`, by the newest of `models`; and the features that
    it has.

    Under TCG it is always the same: what TCG emulates does not depend on the machine, and more features would be
    slower."""
    if accelerator != "kvm":
        return build.CPU, tuple(sorted(LEVELS[0] | LEVELS[1]))
    known, wanted = set(models), WORTH | WORTH_BY_VENDOR.get(vendor, frozenset())
    if not vendor:  # a guest patches its hypercalls for the vendor that it sees at boot
        wanted -= HYPERCALLS
    base = next((name for name in reversed(MODELS.get(vendor, ())) if name in known), BASE)
    given = sorted(wanted & set(features))
    return ",".join([base, *(f"+{name}" for name in given)]), tuple(sorted(LEVELS[0].union(given)))


def needs(cpu: str) -> frozenset[str]:
    """Return the features that a -cpu adds to its model."""
    return frozenset(plain(word[1:]) for word in cpu.split(",") if word.startswith("+"))


def _unlike(able: Abilities, spec: DomainSpec, plan: Build) -> tuple[Blocker, ...]:
    """Return why a processor under KVM cannot replace the one that the guest has seen, as far as vendor and model
    show."""
    if plan.accel != "kvm" or able.accelerator != "kvm":
        return ()
    if plan.vendor and able.vendor and plan.vendor != able.vendor:
        reason = f"{spec.name} runs on a processor of {plan.vendor}, it has one of {able.vendor}"
        hint = f"move it between processors of one vendor; to change that, end {spec.name} and start it there"
        return (Blocker(kind=Obstacle.CPU, reason=reason, hint=hint),)
    bits = plan.phys_bits or (build.bits_for(plan.memory) if build.bits_for(plan.memory) > build.PHYS_BITS else 0)
    if able.phys_bits and bits > able.phys_bits:
        reason = f"its processor has {able.phys_bits} bits of physical addresses, {spec.name} was given {bits}"
        hint = f"end {spec.name} and start it there: new domains get what all nodes have (veery cluster cpu)"
        return (Blocker(kind=Obstacle.CPU, reason=reason, hint=hint),)
    model = plan.cpu.split(",")[0]
    if able.models and model in _VERSIONED and model not in able.models:
        reason = f"its processor or QEMU {able.version} cannot give the processor model {model}"
        hint = f"stop and start {spec.name}: it then gets the cluster's baseline (veery cluster cpu)"
        return (Blocker(kind=Obstacle.CPU, reason=reason, hint=hint),)
    return ()


def obstacles(able: Abilities, spec: DomainSpec, plan: Build) -> tuple[Blocker, ...]:
    """Return every reason why a node with the abilities `able` cannot build the domain `spec` as `plan` says."""
    found: list[Blocker] = []
    version = tuple(int(part) for part in re.findall(r"\d+", able.version)[:2])
    if plan.accel != able.accelerator:
        found.append(
            Blocker(
                kind=Obstacle.DRIVER,
                reason=f"{spec.name} runs under {plan.accel}, it has {able.accelerator}",
                hint="move it to a node with the same accelerator, or set qemu.accel alike, then stop and start it",
            )
        )
    if plan.accel == "tcg" and version < OLDEST:
        found.append(
            Blocker(
                kind=Obstacle.VERSION,
                reason=f"its QEMU {able.version} corrupts memory on a move under TCG: 9.0 or newer is needed",
                hint="install a newer QEMU there (on Debian 12 from bookworm-backports)",
            )
        )
    if plan.layout not in build.LAYOUTS:
        found.append(
            Blocker(
                kind=Obstacle.VERSION,
                reason=f"{spec.name} is built by layout {plan.layout}, the node knows {_words(build.LAYOUTS)}",
                hint="install the same version of veery on both nodes",
            )
        )
    if able.machines and plan.machine not in able.machines:
        found.append(
            Blocker(
                kind=Obstacle.VERSION,
                reason=f"its QEMU {able.version} does not know the machine type {plan.machine}",
                hint="install the same version of QEMU on both nodes, or start it again with qemu.machine set",
            )
        )
    found += _unlike(able, spec, plan)
    missing = sorted(needs(plan.cpu) - set(able.features)) if able.features else []
    if missing:
        found.append(
            Blocker(
                kind=Obstacle.CPU,
                reason=f"it cannot give the processor features {', '.join(missing)}",
                hint=f"stop and start {spec.name}: it then gets the cluster's baseline (veery cluster cpu)",
            )
        )
    for what, path in (("kernel", spec.kernel), ("ramdisk", spec.ramdisk)):
        if path and not Path(path).is_file():
            found.append(Blocker(kind=Obstacle.KERNEL, reason=f"it has no {what} {path}", hint=f"copy {path} there"))
    return tuple(found)
