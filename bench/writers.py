"""Domains that write: Debian's cloud kernel and a busybox in memory, whose shell fills a tmpfs over and over.

What is written, how much of it, and how often a MiB is written are words of the kernel's command line:
bench=ADDRESS set=MIB chunk=MIB pause=MICROSECONDS (0: flat out) fill=random|text. Without set= it is idle. In place of
pause=, rate=MIB a second may be given: it then writes so much by the clock, if it can. After each pass over the whole
set it says on its console when that was, in seconds since it booted: "written 3 at 12.34"."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path

from veery.lab.guest import Guest

MODULES = (
    "virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover "
    "virtio_net virtio_blk"
)
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
# Twice: which of virtio and virtio_ring needs the other has changed within one kernel series.
for module in MODULES MODULES; do insmod /modules/$module.ko 2>/dev/null; done
for word in $(cat /proc/cmdline); do
    case $word in
    bench=*) ifconfig eth0 ${word#bench=} netmask 255.255.0.0 up;;
    set=*|chunk=*|pause=*|rate=*|fill=*) eval $word;;
    esac
done
if [ -n "$set" ]; then
    mkdir /w; mount -t tmpfs -o size=90% tmpfs /w
    size=8; [ $chunk -gt 4 ] && [ "$fill" = random ] && size=16
    if [ "$fill" = text ]; then
        awk 'BEGIN { for (n = 0; n < 200000; n++) print n, "a veery sings in the woods at dusk", n * 7 }' >/w/page
        head -c 8388608 /w/page >/w/pattern; rm /w/page
    else
        dd if=/dev/urandom of=/w/pattern bs=1M count=$size 2>/dev/null
    fi
    # Each pass puts another part of the pattern at each place: a page that is written is also changed.
    pass=0 due=0 # hundredths of seconds since boot
    while :; do
        place=0
        while [ $place -lt $set ]; do
            from=$(((place + pass) % (size + 1 - chunk)))
            dd if=/w/pattern of=/w/set bs=1M count=$chunk skip=$from seek=$place conv=notrunc 2>/dev/null
            place=$((place + chunk))
            [ $pass -gt 0 ] && [ "${pause:-0}" -gt 0 ] && usleep $pause
            [ $pass -gt 0 ] && [ -n "$rate" ] || continue
            read up rest </proc/uptime
            now=${up%.*}${up#*.} due=$((due + chunk * 100 / rate))
            [ $due -lt $((now - 50)) ] && due=$now # it was away, or held up: that is not made up for
            [ $due -gt $now ] && usleep $(((due - now) * 10000))
        done
        pass=$((pass + 1))
        read up rest </proc/uptime
        echo "written $pass at $up"
    done
fi
while :; do sleep 1000; done
""".replace("MODULES", MODULES)


def initramfs(guest: Guest, path: Path) -> Path:
    """Write the domain's root, a cpio archive (newc, the kernel's early-userspace/buffer-format.rst), to `path`."""
    directory, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    entries = [(name, directory, b"") for name in ("bin", "dev", "proc", "sys", "modules")]
    entries.append(("bin/busybox", program, Path("/bin/busybox").read_bytes()))
    entries.append(("init", program, INIT.encode()))
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b""))
    for module in MODULES.split():
        found = next(guest.modules.rglob(f"{module}.ko"), None)
        if found is not None:  # else it is built in
            entries.append((f"modules/{module}.ko", program, found.read_bytes()))
    archive = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        device = (5, 1) if stat.S_ISCHR(mode) else (0, 0)
        words = [number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name) + 1, 0]
        archive += b"070701" + b"".join(b"%08X" % word for word in words) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    path.write_bytes(gzip.compress(bytes(archive), 6))
    return path


def domain_file(guest: Guest, ramdisk: Path, *, name: str, address: str, memory: int, words: str) -> str:
    """The domain file of such a domain, without a disk."""
    return "\n".join(
        [
            f'name = "{name}"',
            f'kernel = "{guest.kernel}"',
            f'ramdisk = "{ramdisk}"',
            f'extra = "console=ttyS0 quiet panic=-1 bench={address} {words}"',
            f"memory = {memory}",
            "vif = ['bridge=xenbr0']",
            "",
        ]
    )
