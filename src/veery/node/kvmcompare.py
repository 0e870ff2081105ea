"""Two answers of `veery selftest kvm`, of two nodes: what a move between them would meet. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from veery.errors import Refused

TSC_SLACK = 250 / 1_000_000
"""Difference of two frequencies that KVM takes for the same (Linux, arch/x86/kvm/x86.c, tsc_tolerance_ppm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One line. `bars`: domains do not move between the two because of it."""

    what: str
    here: str
    there: str
    bars: bool
    told: str


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> tuple[Difference, ...]:
    """What differs and matters. Raises Refused for what is no whole answer."""
    try:
        return tuple(_differences(here, there))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Refused(
            "not a whole answer of a self-test", hint="make it anew: veery selftest kvm --output FILE"
        ) from error


def newest_machine(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """The newest machine type that both QEMUs have, "" for none."""
    common = set(here["qemu"]["machines"]) & set(there["qemu"]["machines"])
    return max(common, key=lambda name: [int(part) for part in re.findall(r"\d+", name)], default="")


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    found: list[Difference] = []

    def note(what: str, one: Any, other: Any, *, bars: bool, told: str) -> None:
        if one != other:
            found.append(Difference(what=what, here=str(one), there=str(other), bars=bars, told=told))

    mine, theirs = here["qemu"], there["qemu"]
    accel = here["accelerator"]["is"], there["accelerator"]["is"]
    note("accelerator", *accel, bars=True, told="no domain moves between KVM and TCG")
    under_kvm = accel == ("kvm", "kvm")
    if under_kvm:
        note("vendor", mine["vendor"], theirs["vendor"], bars=True, told="no domain moves between vendors under KVM")
        told = "new domains get the narrower; one that was started with more does not go there"
        note("phys_bits", mine["phys_bits"], theirs["phys_bits"], bars=False, told=told)
        slow, fast = sorted((mine["tsc_khz"], theirs["tsc_khz"]))
        scaled = mine["tsc_scales"] and theirs["tsc_scales"]
        if slow and fast - slow > slow * TSC_SLACK and not scaled:
            told = "a processor cannot scale its counter: a guest with clocksource=tsc runs at another speed"
            note("tsc_khz", mine["tsc_khz"], theirs["tsc_khz"], bars=False, told=told)
        told = "new domains get what both give (veery cluster cpu)"
        note("models", len(mine["models"]), len(theirs["models"]), bars=False, told=told)
    note("qemu", mine["version"], theirs["version"], bars=False, told="run the same version where you can")
    if not newest_machine(here, there):
        note("machines", mine["machines"], theirs["machines"], bars=True, told="no machine type is known to both")
    note("kernel", here["host"]["kernel"], there["host"]["kernel"], bars=False, told="as above")
    note("post_copy", mine["post_copy"], theirs["post_copy"], bars=False, told="post-copy goes to those that can")
    return found
