"""A volume's LUN as a block device of a nested node, by the kernel's initiator (open-iscsi) and plain iscsiadm.

This is for tests and measurements without the driver, which logs in by itself. `python -m veery.lab.xen.login SETTINGS
VOLUME NODE` prints iscsiadm's parameters, read from the store on the voter with `SETTINGS`."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from veery.cluster.identity import load as load_identity
from veery.cluster.initiators import open_secret
from veery.cluster.keys import CHAP_SECRETS, INITIATORS, VOLUMES
from veery.cluster.members import open_store
from veery.cluster.vault import CHAP, Vault
from veery.config.settings import load as load_settings
from veery.errors import Refused, VeeryError
from veery.lab.services import Lab

_CALL_TIMEOUT_S = 90.0

# iscsiadm(8); the device by sysfs, as there is no udev. $1 portal, $2 target, $3 user, $4 password, $5 initiator,
# $6 the name of the interface record and of the link
_LOGIN = """\
set -e
iscsiadm -m iface -I "$6" >/dev/null 2>&1 || iscsiadm -m iface -I "$6" -o new
iscsiadm -m iface -I "$6" -o update -n iface.initiatorname -v "$5"
iscsiadm -m node -T "$2" -p "$1" -I "$6" -o new
set_() { iscsiadm -m node -T "$target" -p "$portal" -I "$face" -o update -n "$1" -v "$2"; }
portal=$1 target=$2 face=$6
set_ node.session.auth.authmethod CHAP
set_ node.session.auth.username "$3"
set_ node.session.auth.password "$4"
iscsiadm -m node -T "$2" -p "$1" -I "$6" --login
tries=200
while [ $tries -gt 0 ]; do
    for session in /sys/class/iscsi_session/session*; do
        [ "$(cat $session/targetname 2>/dev/null)" = "$2" ] || continue
        for disk in $session/device/target*/*:1/block/*; do
            [ -b "/dev/${disk##*/}" ] || continue
            mkdir -p /dev/lab
            ln -sfn "/dev/${disk##*/}" "/dev/lab/$6"
            echo "/dev/lab/$6"
            exit 0
        done
    done
    tries=$((tries - 1))
    sleep 0.1
done
echo "no disk came with the session" >&2
exit 1
"""

_LOGOUT = """\
rm -f "/dev/lab/$3"
iscsiadm -m node -T "$2" -p "$1" -I "$3" --logout
iscsiadm -m node -T "$2" -p "$1" -I "$3" -o delete || [ $? = 21 ] # ISCSI_ERR_NO_OBJS_FOUND, iscsiadm(8)
"""


async def login(lab: Lab, node: str, volume: str) -> str:
    """Log `node` in to `volume`'s LUN; return the device, which has the same path on every node. Raises Failed."""
    found = await _parameters(lab, node, volume)
    words = [found[key] for key in ("portal", "target", "user", "password", "initiator")]
    out = await lab.nested(node).run(["sh", "-c", _LOGIN, "login", *words, volume], deadline=_CALL_TIMEOUT_S)
    return out.split()[-1]


async def logout(lab: Lab, node: str, volume: str) -> None:
    """End that session, if there is one. Raises Failed."""
    found = await _parameters(lab, node, volume)
    words = [found["portal"], found["target"], volume]
    await lab.nested(node).run(["sh", "-c", _LOGOUT, "logout", *words], deadline=_CALL_TIMEOUT_S)


async def _parameters(lab: Lab, node: str, volume: str) -> dict[str, str]:
    first = lab.plan.nodes[0].name
    argv: list[str | Path] = [sys.executable, "-m", "veery.lab.xen.login", lab.plan.settings(first), volume, node]
    found: dict[str, str] = json.loads((await lab.run(first, argv)).out)
    return found


async def _read(settings_file: Path, volume: str, node: str) -> dict[str, str]:
    settings = load_settings(settings_file)
    store = open_store(settings, load_identity(Path(settings.state)))
    try:
        found, own = await VOLUMES.get(store, volume), await INITIATORS.get(store, node)
        secret = await CHAP_SECRETS.get(store, node)
    finally:
        await store.close()
    if own is not None and secret is not None:
        own = replace(own, password=open_secret(Vault(Path(settings.state), CHAP), node, secret))
    if found is None or own is None:
        raise Refused(f"no volume {volume}, or no credentials for {node}")
    names = {"portal": found.portal, "target": found.iqn}
    return {**names, "user": own.user, "password": own.password, "initiator": own.iqn}


if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(_read(Path(sys.argv[1]), *sys.argv[2:]))))
    except VeeryError as error:
        sys.exit(error.message)
