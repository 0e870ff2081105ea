"""Table of QEMU versions with a known defect in migration. Each entry names its public source.

It has only defects that affect domains of the qemu driver. Defects that the driver works around (the rekeying of TLS
before QEMU 10.1, late-block-activate) are documented at the workaround."""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """A defect of QEMU from version `first` up to but not including `fixed`, under `accelerator` ("": under each). It
    does not affect moves between two versions that both have it."""

    first: Version
    fixed: Version
    accelerator: str
    told: str
    source: str

    @property
    def hint(self) -> str:
        """The hint: what to do."""
        return f"upgrade QEMU to {'.'.join(str(part) for part in self.fixed)} or newer on all nodes"


_CPUID = "its CPU model for guests of machine types before 10.1 differs from that of other versions"
_PARITY = "https://lists.gnu.org/archive/html/qemu-devel/ (Message-ID 20251014063650.25057-1-mjt@tls.msk.ru)"
DEFECTS: tuple[Defect, ...] = (
    # QEMU commits d3a24134e3 and e68ec29809 (arch-capabilities on AMD, pdcm), fixed by e9efa4a771 and 6529f31e0d.
    Defect(first=(10, 0, 4), fixed=(10, 0, 6), accelerator="kvm", told=_CPUID, source=_PARITY),
    Defect(first=(10, 1, 0), fixed=(10, 1, 2), accelerator="kvm", told=_CPUID, source=_PARITY),
)


def parse(version: str) -> Version | None:
    """Return the numbers of "10.0.2 (Debian ...)"; None if there are none."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(match.group(1)), int(match.group(2)), int(match.group(3) or 0)) if match else None


def known(version: str, accelerator: str) -> tuple[Defect, ...]:
    """Return the defects of a QEMU of `version`."""
    number = parse(version)
    if number is None:
        return ()
    return tuple(
        each for each in DEFECTS if each.first <= number < each.fixed and each.accelerator in ("", accelerator)
    )


def between(one: str, other: str, accelerator: str) -> tuple[Defect, ...]:
    """Return the defects that can affect a move between QEMU versions `one` and `other`."""
    here, there = known(one, accelerator), known(other, accelerator)
    return tuple(each for each in DEFECTS if (each in here) != (each in there))
