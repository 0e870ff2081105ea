"""The small text files in the busybox image and in the initramfs."""

from __future__ import annotations

INITTAB = """\
# busybox init, see its examples/inittab
::sysinit:/etc/rc.d/rcS
::respawn:/bin/cttyhack /bin/sh -l
::ctrlaltdel:/sbin/reboot
::shutdown:/bin/sync
::shutdown:/bin/umount -a -r
"""

RCS = """\
#!/bin/sh
# Everything that the initramfs has not done already, or all of it where there is none.
PATH=/sbin:/bin:/usr/sbin:/usr/bin
[ -e /proc/mounts ] || mount -t proc proc /proc
[ -e /sys/kernel ] || mount -t sysfs sysfs /sys
[ -e /dev/null ] || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts 2>/dev/null
mount -o remount,rw /
[ -s /etc/hostname ] && hostname -F /etc/hostname
modprobe -aq virtio_net virtio_balloon xen-netfront button evdev pvpanic-mmio 2>/dev/null
ifconfig lo 127.0.0.1 up
[ -x /etc/rc.d/rc.local ] && /etc/rc.d/rc.local
pidof acpid >/dev/null || acpid -l /dev/null -p /dev/null
"""

POWER_BUTTON = """\
#!/bin/sh
# acpid runs this when the power button is pressed: a clean end, also with init=/bin/sh
PATH=/sbin:/bin:/usr/sbin:/usr/bin
[ "$(cat /proc/1/comm)" = init ] && exec poweroff
sync
mount -o remount,ro /
exec poweroff -f
"""

WRITER = """\
#!/bin/sh
# writer FILE [SECONDS]: append "number boot-id uptime time" to FILE, each line synced, for ever. A second copy of
# this machine on the same disk shows as a second boot-id, a lost write as a hole in the numbers.
file=${1:?usage: writer FILE [SECONDS]}
boot=$(cat /proc/sys/kernel/random/boot_id)
number=$(tail -n 1 "$file" 2>/dev/null | cut -d ' ' -f 1)
number=${number:-0}
while :; do
    number=$((number + 1))
    read -r uptime _ < /proc/uptime
    echo "$number $boot $uptime $(date +%s)" >> "$file" || exit 1
    sync
    sleep "${2:-1}"
done
"""

PROFILE = """\
export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root
PS1='\\w # '
"""

FSTAB = """\
proc /proc proc defaults 0 0
sysfs /sys sysfs defaults 0 0
devtmpfs /dev devtmpfs defaults 0 0
"""

PASSWD = "root::0:0:root:/root:/bin/sh\n"
GROUP = "root:x:0:\n"
HOSTS = "127.0.0.1 localhost\n"

INIT = """\
#!/bin/sh
# veery's initramfs: load what the root disk and the network need, mount root=, hand over to init=.
export PATH=/bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
root= mode=ro init=/sbin/init type=ext4 flags= wait=20
for word in $(cat /proc/cmdline); do
    case $word in
        root=*) root=${word#root=} ;;
        ro | rw) mode=$word ;;
        init=*) init=${word#init=} ;;
        rootfstype=*) type=${word#rootfstype=} ;;
        rootflags=*) flags=,${word#rootflags=} ;;
        rootdelay=*) wait=${word#rootdelay=} ;;
    esac
done
while read -r module; do
    insmod "/modules/$module.ko" 2>/dev/null  # half of them are for the other hypervisor
done < /modules/order
fail() {
    echo "initramfs: $1; the kernel's command line was: $(cat /proc/cmdline)"
    exec sh
}
[ -n "$root" ] || fail "no root= given"
tries=$((wait * 20))
while :; do
    case $root in
        LABEL=* | UUID=*) device=$(findfs "$root" 2>/dev/null) ;;
        *) device=$root ;;
    esac
    [ -b "$device" ] && break
    [ $tries -gt 0 ] || fail "no disk $root; there are: $(ls /sys/class/block | tr '\\n' ' ')"
    tries=$((tries - 1))
    usleep 50000
done
mount -t "$type" -o "$mode$flags" "$device" /root || fail "$device cannot be mounted"
[ -x "/root$init" ] || [ -L "/root$init" ] || fail "there is no $init on $device"
for folder in dev proc sys; do
    [ -d "/root/$folder" ] && mount -o move "/$folder" "/root/$folder"
done
# the power button works also where init= is a shell: acpid outlives this script
if [ -x /root/etc/acpi/PWRF/00000080 ] && [ -c /root/dev/null ]; then
    chroot /root /sbin/acpid -l /dev/null -p /dev/null </root/dev/null >/root/dev/null 2>&1
fi
exec switch_root /root "$init"
"""

# The guest of `veery selftest kvm`: it reports what it sees, then repeatedly writes 1 MiB of memory and prints a line.
SELFTEST_INIT = """#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read -r module; do insmod /modules/$module.ko; done </modules/order
source=/sys/devices/system/clocksource/clocksource0/current_clocksource
for name in vendor_id 'cpu family' model microcode 'address sizes'; do
  echo "fact $(echo $name | tr ' ' _) $(sed -n "s/^$name[[:space:]]*: //p" /proc/cpuinfo | head -n 1)"
done
for each in /sys/devices/system/cpu/vulnerabilities/*; do echo "fact ${each##*/} $(cat $each)"; done
count=0
while :; do
  count=$((count + 1))
  dd if=/dev/urandom of=/written bs=64k count=16 seek=$((count % 16 * 16)) conv=notrunc 2>/dev/null
  read -r up rest </proc/uptime
  echo "tick $count $up $(date +%s) $(ls /sys/block | grep -c vd) $(cat $source)"
  sleep 0.1
done
"""
