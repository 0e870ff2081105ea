"""Compares the answers of `veery selftest kvm` on two nodes: what a move between them would meet. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veery.errors import Refused

TSC_SLACK = 250 / 1_000_000
"""Relative difference of two frequencies that KVM treats as equal (Linux, arch/x86/kvm/x86.c, tsc_tolerance_ppm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference. `bars`: because of it domains cannot move between the two."""

    what: str
    here: str
    there: str
    bars: bool
    told: str


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Return the differences that matter. Raises Refused if an answer is incomplete."""
    try:
        return tuple(_differences(here, there))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Refused(
            "not a complete answer of a self-test", hint="repeat it: veery selftest kvm --output FILE"
        ) from error


def newest_machine(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Return the newest machine type that both QEMUs have, "" if there is none."""
    common = set(here["qemu"]["machines"]) & set(there["qemu"]["machines"])
    return max(common, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], default="")


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    found: list[Difference] = []

    def note(what: str, one: Any, other: Any, *, bars: bool, told: str) -> None:
        if one != other:
            found.append(Difference(what=what, here=str(one), there=str(other), bars=bars, told=told))

    mine, theirs = here["qemu"], there["qemu"]
    accel = here["accelerator"]["is"], there["accelerator"]["is"]
    note("accelerator", *accel, bars=True, told="domains cannot move between KVM and TCG")
    under_kvm = accel == ("kvm", "kvm")
    if under_kvm:
        note(
            "vendor", mine["vendor"], theirs["vendor"], bars=True, told="domains cannot move between vendors under KVM"
        )
        told = "new domains get the smaller width; a domain that was started with the larger cannot move there"
        note("phys_bits", mine["phys_bits"], theirs["phys_bits"], bars=False, told=told)
        slow, fast = sorted((mine["tsc_khz"], theirs["tsc_khz"]))
        scaled = mine["tsc_scales"] and theirs["tsc_scales"]
        if slow and fast - slow > slow * TSC_SLACK and not scaled:
            told = "one processor cannot scale its counter: the clock of a guest that uses the tsc changes its speed"
            note("tsc_khz", mine["tsc_khz"], theirs["tsc_khz"], bars=False, told=told)
        told = "new domains get what both support (veery cluster cpu)"
        note("models", len(mine["models"]), len(theirs["models"]), bars=False, told=told)
    note("qemu", mine["version"], theirs["version"], bars=False, told="run the same version if you can")
    if not newest_machine(here, there):
        note("machines", mine["machines"], theirs["machines"], bars=True, told="no machine type exists on both")
    note("kernel", here["host"]["kernel"], there["host"]["kernel"], bars=False, told="as above")
    note(
        "post_copy",
        mine["post_copy"],
        theirs["post_copy"],
        bars=False,
        told="post-copy works only to nodes that support it",
    )
    return found
