"""The contents of a nested node's dom0: Debian's packages, the kept kernel modules, and small text files.

No maintainer script of Debian's packages runs, so this module has the files of theirs that the lab needs."""

from __future__ import annotations

from pathlib import Path

from veery.lab.xen.agent import THERE
from veery.storage.modules import WANTED

# Only Debian 12's own suite: live moves of PV domains need a hypervisor with shadow paging. main's 4.17.5
# has it; bookworm-security's 4.17.7 (XSA-495) and Debian 13's 4.20 are built without.
SUITE = "bookworm"
HYPERVISOR_NEEDS = "CONFIG_SHADOW_PAGING=y"
PACKAGES = (
    *(
        "base-files",
        "bash",
        "dash",
        "coreutils",
        "findutils",
        "gawk",
        "grep",
        "sed",
        "procps",
        "psmisc",
        "kmod",
        "udev",
    ),
    *("mount", "util-linux", "e2fsprogs", "iproute2", "busybox-static", "open-iscsi", "python3"),
    *("openssh-client", "openssh-server"),  # for plain `xl migrate`, with which veery is compared
    *("linux-image-amd64", "xen-hypervisor-4.17-amd64", "xen-utils-4.17", "xen-utils-common", "xenstore-utils"),
)

BOOT_MODULES = (*WANTED, "crc32c_generic", "ext4")
_XEN = ("xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs", "xen-netback", "xen-blkback")
LOADED = (*_XEN, "bridge", "iscsi_tcp", "sd_mod", "loop", "tun")
MODULES = (*BOOT_MODULES, *LOADED, "veth", "softdog", "sch_netem", "nfsv4", "ext3", "dm_mod")

# See xen-command-line.html. spec-ctrl and xpti are slow in software emulation and protect nothing here.
XEN_LINE = "console=com1 com1=115200,8n1 dom0_mem=384M,max:384M dom0_max_vcpus=1 spec-ctrl=no xpti=0 sched=credit"
LINUX_LINE = "console=hvc0 root=/dev/vda rw init=/sbin/init mitigations=off nokaslr quiet"

LAB = "opt/lab"  # the lab's folder in the image
STATE = Path("/state")  # the mount point of the second disk, the node's own
SITE, SOURCE, GUEST = "/opt/veery/site", str(STATE / "source"), str(STATE / "guest")

_RC = f"""\
#!/bin/sh
# Everything up to the moment in which the golden snapshot is taken: nothing here knows which node this will be.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /tmp
mkdir -p /run/lock /run/xen /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
# Xen's block script, without these, looks for its own descriptor for 40 s
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin; ln -sf fd/1 /dev/stdout; ln -sf fd/2 /dev/stderr
modprobe -a {" ".join(LOADED)}
mount -t xenfs xenfs /proc/xen
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
ip link set lo up
ip link add xenbr0 type bridge
ip link set eth0 master xenbr0
ip link set eth0 up
ip link set xenbr0 up
ip addr add {THERE}/30 dev eth1
ip link set eth1 up
/usr/lib/xen-4.17/bin/xenstored --pid-file=/run/xen/xenstored.pid
/usr/lib/xen-4.17/bin/xen-init-dom0
/usr/lib/xen-4.17/bin/xenconsoled --log=guest --log-dir=/var/log/xen/console --pid-file=/run/xen/xenconsoled.pid
xl list
sync
"""

# Turns a copy of the snapshot into a node: its name, addresses and disk. $1 name, $2 address/prefix, $3 MAC.
BECOME = f"""\
set -e
echo "$1" >/proc/sys/kernel/hostname
echo "$1" >/etc/hostname
ip link set eth0 address "$3"
ip link set xenbr0 address "$3"
ip addr add "$2" brd + dev xenbr0
blockdev --flushbufs /dev/vdb
mount -t ext4 /dev/vdb {STATE}
cd {STATE}
[ -d iscsi ] || cp -a /etc/iscsi iscsi
[ -e iscsi/initiatorname.iscsi ] || echo "InitiatorName=iqn.2015-02.lab.nested:$1" >iscsi/initiatorname.iscsi
mkdir -p lib xen
mount --bind lib /var/lib/veery
mount --bind etc /etc/veery
mount --bind iscsi /etc/iscsi
mount --bind xen /var/lib/xen
iscsid
"""

_INITTAB = f"""\
::sysinit:/{LAB}/rc
::respawn:/usr/bin/python3 /{LAB}/agent.py {"-" * 600}
"""

_PROGRAM = """\
#!/usr/bin/python3
import sys
from {module} import {name}
sys.exit({name}())
"""

_USERS = """\
root:x:0:0:root:/root:/bin/bash
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""

# The files written into the image, path: (mode, text)
FILES: dict[str, tuple[int, str]] = {
    f"{LAB}/rc": (0o755, _RC),
    "etc/inittab": (0o644, _INITTAB),
    "etc/passwd": (0o644, _USERS),
    "etc/group": (0o644, "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nhosts: files\n"),
    "etc/hosts": (0o644, "127.0.0.1 localhost\n"),
    "etc/hostname": (0o644, "dom0\n"),
    "usr/local/lib/python3.11/dist-packages/veery.pth": (0o644, f"{SITE}\n{SOURCE}\n"),
    "usr/local/bin/veery": (0o755, _PROGRAM.format(module="veery.__main__", name="run")),
    "usr/local/bin/veeryd": (0o755, _PROGRAM.format(module="veery.daemon.main", name="main")),
}

LINKS: dict[str, str] = {
    "sbin/init": "/bin/busybox",
    "usr/bin/awk": "gawk",
    "usr/local/bin/xm": "veery",
    "var/run": "/run",
    "var/lock": "/run/lock",
    "etc/mtab": "/proc/mounts",
}

FOLDERS = (
    "state/source",
    "root",
    "tmp",
    "proc/xen",
    "var/log/xen/console",
    "var/lib/xen",
    "var/lib/veery",
    "etc/veery",
    "opt",
)
