"""The Debian packages that a node needs for each of its roles (docs/hosts.md). The Debian package of veery is built
from this table, and `veery setup` reads it."""

from __future__ import annotations

from collections.abc import Collection

from veery.model.node import Role

EVERY_NODE = ("iproute2", "nftables")
OF_ROLE = {
    Role.VOTER: ("etcd-server", "etcd-client"),
    Role.STORAGE: ("tgt", "lvm2", "e2fsprogs", "busybox-static"),
    Role.HYPERVISOR: ("qemu-system-x86", "qemu-block-extra", "qemu-utils"),
}
# QEMU before 9.0 corrupts a domain's memory on a move under TCG (upstream 03bfc2188f).
LEAST = {"qemu-system-x86": "1:9.0", "qemu-block-extra": "1:9.0", "qemu-utils": "1:9.0"}
# Debian's own daemons, by package: they use the ports that veery's daemons need.
UNITS = {"etcd-server": "etcd.service", "tgt": "tgt.service"}


def packages(roles: Collection[Role], driver: str = "qemu") -> tuple[str, ...]:
    """Return the packages of a node with `roles`, without duplicates. If Xen runs the domains, QEMU comes with Xen."""
    names = [*EVERY_NODE]
    for role in Role:
        if role in roles and not (role is Role.HYPERVISOR and driver == "xen"):
            names += OF_ROLE[role]
    return tuple(dict.fromkeys(names))
