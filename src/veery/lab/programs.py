"""Every outside program that veery, its tests, its bench and its documents start, and the Debian package that has it.

`tests/unit/lab/test_programs.py` holds this table against the sources, and each package against what the set-up
installs. Only the standard library here: the set-up asks `absent` before there is a virtual environment. The programs
that sensors read where a machine has them stand in `veery/health/live.py`, each with its package."""

from __future__ import annotations

import shutil

from veery.lab import packages

# A Debian root made with `mmdebstrap --variant=minbase` has these: essential, or of priority required.
MINIMAL = frozenset({"apt", "bash", "coreutils", "dash", "dpkg", "libc-bin", "mount", "passwd", "tar", "util-linux"})
# What the README asks for beside such a root.
ASKED_FOR = frozenset({"ca-certificates", "git", "make", "python3"})
# Only documents name their programs; each page that does names the package too.
DOCUMENTED: frozenset[str] = frozenset()

PACKAGE_OF = {
    "/sbin/ldconfig": "libc-bin",
    "apt-get": "apt",
    "bash": "bash",
    "blkdiscard": "util-linux",
    "blockdev": "util-linux",
    "bridge": "iproute2",
    "busybox": "busybox-static",
    "cat": "coreutils",
    "chroot": "coreutils",
    "cp": "coreutils",
    "date": "coreutils",
    "dd": "coreutils",
    "debugfs": "e2fsprogs",
    "dpkg": "dpkg",
    "dpkg-query": "dpkg",
    "e2fsck": "e2fsprogs",
    "env": "coreutils",
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "git": "git",
    "ip": "iproute2",
    "iscsiadm": "open-iscsi",
    "ldd": "libc-bin",
    "losetup": "mount",
    "lvm": "lvm2",
    "make": "make",
    "mkdir": "coreutils",
    "mke2fs": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "nft": "nftables",
    "nsenter": "util-linux",
    "prlimit": "util-linux",
    "python3": "python3",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "rm": "coreutils",
    "setpriv": "util-linux",
    "sh": "dash",
    "sleep": "coreutils",
    "ss": "iproute2",
    "ssh": "openssh-client",
    "tar": "tar",
    "tc": "iproute2",
    "tee": "coreutils",
    "test": "coreutils",
    "tgtadm": "tgt",
    "tgtd": "tgt",
    "timeout": "coreutils",
    "true": "coreutils",
    "umount": "mount",
    "unshare": "util-linux",
    "useradd": "passwd",
    "xl": "xen-utils-common",
}


def absent() -> tuple[str, ...]:
    """What the set-up has to install and this machine lacks: "PACKAGE", or "PROGRAM (of PACKAGE)" where dpkg has the
    package and PATH has not the program. Raises Refused where there is no dpkg."""
    packaged = packages.missing()
    wanted = {*packages.QEMU, *packages.OTHERS} - set(packaged)
    lost = [f"{name} (of {package})" for name, package in PACKAGE_OF.items() if package in wanted and not _found(name)]
    return (*packaged, *lost)


def _found(program: str) -> bool:
    return shutil.which(program) is not None
