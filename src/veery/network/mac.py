"""MAC addresses of domains: 00:16:3e is Xen's own prefix (XenSource's OUI), xl-network-configuration(5)."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

PREFIX = "00:16:3e"


def generate(rng: Random, taken: Collection[str] = ()) -> str:
    """Return a MAC that is not in `taken` (lower case), in the range of xend and libxl: fourth byte below 0x80."""
    while True:
        mac = f"{PREFIX}:{rng.randrange(0x80):02x}:{rng.randrange(0x100):02x}:{rng.randrange(0x100):02x}"
        if mac not in taken:
            return mac
