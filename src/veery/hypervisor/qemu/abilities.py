"""What this node's QEMU can build: machine types and processor features, asked of a QEMU without a machine.

Two nodes may hand a domain to and fro as long as both know its machine type and can give its processor's features."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from veery.errors import VeeryError
from veery.host.run import run
from veery.hypervisor.qemu import build, postcopy
from veery.hypervisor.qemu.build import Build
from veery.hypervisor.qemu.machine import OLDEST, Hypervisor
from veery.model.domain import DomainSpec
from veery.model.plan import LEVELS, Abilities, Blocker, Obstacle

log = logging.getLogger(__name__)

DEADLINE = 10.0
BASE = "qemu64"
WORTH = frozenset().union(
    *LEVELS[1:],
    {"adx", "aes", "clflushopt", "erms", "fsgsbase", "invpcid", "pclmulqdq", "pcid", "pdpe1gb", "rdrand", "rdseed"},
    {"rdtscp", "sha-ni", "smap", "smep", "xsavec", "xsaveopt"},
    {"amd-ssbd", "ibpb", "md-clear", "spec-ctrl", "ssbd", "stibp", "virt-ssbd"},
)
"""Features worth giving to guests where every node has them: speed, random numbers, and what mitigations ask for."""


async def ask(hypervisor: Hypervisor) -> Abilities:
    """Machine types and features. Where QEMU does not tell, they are left empty: nothing is refused for them.

    QMP: query-machines, and query-cpu-model-expansion of `max`: all that the accelerator can give on this processor."""
    commands: list[dict[str, Any]] = [
        {"execute": "qmp_capabilities"},
        {"execute": "query-machines"},
        {"execute": "query-cpu-model-expansion", "arguments": {"type": "full", "model": {"name": "max"}}},
        {"execute": "quit"},
    ]
    words = [hypervisor.binary, "-no-user-config", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    words += ["-machine", "none", "-accel", hypervisor.accel]
    machines: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    try:
        said = await run(words, deadline=DEADLINE, stdin="".join(f"{json.dumps(one)}\n" for one in commands).encode())
        machines, features = _read(said.out)
    except (VeeryError, ValueError, KeyError) as error:
        log.warning("QEMU does not tell what it can build: %s", error)
    return Abilities(
        driver="qemu",
        version=hypervisor.version,
        accelerator=hypervisor.accel,
        machines=machines,
        features=features,
        post_copy=postcopy.obstacle(),
    )


def _read(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    machines: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    for line in text.splitlines():
        answer = json.loads(line).get("return")
        if isinstance(answer, list):
            old = sorted(one["name"] for one in answer if one.get("deprecated") and one["name"] == build.MACHINE)
            if old:  # domains run on it for years; they may still move to it
                log.warning("QEMU calls the machine type %s deprecated: it will go in a later version", old[0])
            machines = tuple(sorted(one["name"] for one in answer))
        elif answer and "model" in answer:
            features = tuple(sorted({plain(name) for name, value in answer["model"]["props"].items() if value is True}))
    return machines, features


def plain(name: str) -> str:
    """A feature's name with dashes only: QEMU writes sse4.1, sse4_1 and sse4-1 for the same."""
    return re.sub(r"[._]", "-", name)


def processor(features: Iterable[str], accelerator: str) -> tuple[str, tuple[str, ...]]:
    """QEMU's -cpu for a processor with `features`, and those that it has.

    Under TCG it is always the same: what TCG emulates does not depend on the machine, and more would be slower."""
    if accelerator != "kvm":
        return build.CPU, tuple(sorted(LEVELS[0] | LEVELS[1]))
    given = sorted(WORTH & set(features))
    return ",".join([BASE, *(f"+{name}" for name in given)]), tuple(sorted(LEVELS[0].union(given)))


def needs(cpu: str) -> frozenset[str]:
    """The features that a -cpu adds to its model."""
    return frozenset(plain(word[1:]) for word in cpu.split(",") if word.startswith("+"))


def obstacles(able: Abilities, spec: DomainSpec, plan: Build) -> tuple[Blocker, ...]:
    """Why a node that is `able` so far cannot build the domain `spec` as `plan` says; every reason."""
    found: list[Blocker] = []
    version = tuple(int(part) for part in re.findall(r"\d+", able.version)[:2])
    if plan.accel != able.accelerator:
        found.append(
            Blocker(
                kind=Obstacle.DRIVER,
                reason=f"{spec.name} runs under {plan.accel}, it has {able.accelerator}",
                hint="move it to a node with the same accelerator, or set qemu.accel alike and start it anew",
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
    if plan.layout != build.LAYOUT:
        found.append(
            Blocker(
                kind=Obstacle.VERSION,
                reason=f"{spec.name} is built by layout {plan.layout}, it knows {build.LAYOUT}",
                hint="bring veery to the same version on both nodes",
            )
        )
    if able.machines and plan.machine not in able.machines:
        found.append(
            Blocker(
                kind=Obstacle.VERSION,
                reason=f"its QEMU {able.version} does not know the machine type {plan.machine}",
                hint="bring QEMU to the same version on both nodes, or start the domain anew with qemu.machine set",
            )
        )
    missing = sorted(needs(plan.cpu) - set(able.features)) if able.features else []
    if missing:
        found.append(
            Blocker(
                kind=Obstacle.CPU,
                reason=f"it cannot give the processor features {', '.join(missing)}",
                hint=f"start {spec.name} anew: it then gets the cluster's baseline (veery cluster cpu)",
            )
        )
    for what, path in (("kernel", spec.kernel), ("ramdisk", spec.ramdisk)):
        if path and not Path(path).is_file():
            found.append(Blocker(kind=Obstacle.KERNEL, reason=f"it has no {what} {path}", hint=f"copy {path} there"))
    return tuple(found)
