"""Every outside program that veery, its tests, its bench and its documents start, with its Debian package.

`tests/unit/lab/test_programs.py` compares this table with the sources, and each package with those that the set-up
installs. This module uses only the standard library: the set-up calls `absent` before there is a virtual environment.
The optional programs of the sensors are listed in `veery/health/live.py`, each with its package."""

from __future__ import annotations

import shutil

from veery.lab import packages

# The packages in a root of `mmdebstrap --variant=minbase`: essential, or of priority required.
MINIMAL = frozenset({"apt", "bash", "coreutils", "dash", "dpkg", "libc-bin", "mount", "passwd", "tar", "util-linux"})
# The additional packages that the README requires in such a root.
ASKED_FOR = frozenset({"ca-certificates", "git", "make", "python3"})
# Programs that only documents mention; each page names the package too.
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
    "nice": "coreutils",
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
    """Return what this machine lacks of the set-up's packages: "PACKAGE", or "PROGRAM (of PACKAGE)" if dpkg has the
    package but PATH lacks the program. Raises Refused without dpkg."""
    packaged = packages.missing()
    wanted = {*packages.QEMU, *packages.OTHERS} - set(packaged)
    missing = [
        f"{name} (of {package})" for name, package in PACKAGE_OF.items() if package in wanted and not _found(name)
    ]
    return (*packaged, *missing)


def _found(program: str) -> bool:
    return shutil.which(program) is not None
