"""Hotplug scripts of veery, next to Xen's own. A domain is paused while they run at the end of a move, and Debian's
bash scripts take 2.6 s for a disk and 2.2 s for an interface in software emulation.

For a block device and a bridge they do what Xen's `block` and `vif-bridge` do (tools/hotplug/Linux of Xen 4.17). They
leave everything else to those: files, which need a loop device; interfaces with a name, an address or a rate of their
own. They do not check whether another domain uses the disk, because the owner key does that."""

from __future__ import annotations

import logging
from pathlib import Path

from veery.host.files import write_atomic

log = logging.getLogger(__name__)

FOLDER = Path("/etc/xen/scripts")
BLOCK, VIF = "veery-block", "veery-vif"

# block-common.sh, write_dev: physical-device is major:minor in hex
_BLOCK = """\
#!/bin/sh
# A block device for blkback, by veery. Anything else is Xen's own script's.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
device=$(xenstore-read "$XENBUS_PATH/params") && [ -b "$device" ] || exec "${0%/*}/block" "$@"
case "$1" in
    add) ;;
    remove) exit 0 ;;
    *) exec "${0%/*}/block" "$@" ;;
esac
number=$(stat -L -c %t:%T "$device") || exec "${0%/*}/block" "$@"
exec xenstore-write "$XENBUS_PATH/physical-device" "$number" "$XENBUS_PATH/physical-device-path" "$device" \\
    "$XENBUS_PATH/hotplug-status" connected
"""

# xen-network-common.sh, setup_virtual_bridge_port and add_to_bridge; vif-common.sh for what an interface may have
_VIF = """\
#!/bin/sh
# An interface on a bridge, by veery. Anything else is Xen's own script's.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
theirs() { exec "${0%/*}/vif-bridge" "$@"; }
[ "$2" = type_if=vif ] || theirs "$@"
bridge=
rows=$(xenstore-ls "$XENBUS_PATH") || theirs "$@"
while read -r key _ value; do
    value=${value#\\"}
    value=${value%\\"}
    case "$key" in
        bridge) bridge=$value ;;
        vifname | ip | rate | mtu) theirs "$@" ;;
    esac
done <<END
$rows
END
[ -n "$bridge" ] && [ -d "/sys/class/net/$bridge/bridge" ] || theirs "$@"
case "$1" in
    online) ;;
    offline) exit 0 ;; # it leaves its bridge with its end
    *) theirs "$@" ;;
esac
read -r mtu <"/sys/class/net/$bridge/mtu"
echo 1 >"/proc/sys/net/ipv6/conf/$vif/disable_ipv6" 2>/dev/null
ip -batch - <<END || theirs "$@"
link set dev $vif down
link set dev $vif arp off
link set dev $vif multicast off
link set dev $vif address fe:ff:ff:ff:ff:ff
link set dev $vif mtu $mtu
link set dev $vif master $bridge
link set dev $vif up
END
exec xenstore-write "$XENBUS_PATH/hotplug-status" connected
"""


def install(folder: Path = FOLDER) -> dict[str, str]:
    """Write the scripts into the folder of Xen's scripts; return {"disk": PATH, "nic": PATH}. Return {} where there is
    no such folder or it is not writable: then Xen's own scripts are used."""
    if not folder.is_dir():
        return {}
    try:
        for name, text in ((BLOCK, _BLOCK), (VIF, _VIF)):
            path = folder / name
            if not path.exists() or path.read_text() != text:
                write_atomic(path, text, mode=0o755)
    except OSError as error:
        log.warning("hotplug scripts: %s: Xen's own are used, and moves take longer", error)
        return {}
    return {"disk": str(folder / BLOCK), "nic": str(folder / VIF)}
