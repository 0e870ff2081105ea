"""`python -m veery.lab.reach SETTINGS VOLUME [PASSWORD]`: log in to a volume's LUN from inside a node.

It logs in like the node's domains: through QEMU's own initiator, or on a Xen node through the kernel's, with the node's
credentials from its state folder. It prints the LUN's size in bytes. PASSWORD replaces the node's password. If the
target refuses the login, it prints the initiator's message and exits with 1."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from veery.cluster.identity import load as load_identity
from veery.cluster.initiators import load as load_initiator
from veery.cluster.keys import VOLUMES
from veery.cluster.members import open_store
from veery.config.settings import load as load_settings
from veery.errors import Refused, VeeryError
from veery.host.run import run
from veery.model.volume import Initiator, IscsiLun, Volume
from veery.storage.iscsiadm import KernelInitiator


async def size(settings_file: Path, volume: str, password: str = "") -> int:
    """Return the size of `volume` in bytes, seen by this node's initiator. Raises Refused, Failed."""
    settings = load_settings(settings_file)
    mine = load_identity(Path(settings.state)).node
    node = mine.name
    store = open_store(settings, load_identity(Path(settings.state)))
    try:
        found, own = await VOLUMES.get(store, volume), load_initiator(Path(settings.state))
    finally:
        await store.close()
    if found is None or own is None:
        raise Refused(f"no volume {volume}, or no credentials for {node}")
    if mine.driver == "xen":
        return await _by_kernel(found, own, password or own.password)
    shown = await run(["qemu-img", "info", "--output=json", *_login(found, own, password or own.password)], deadline=30)
    return int(json.loads(shown.out)["virtual-size"])


async def _by_kernel(volume: Volume, own: Initiator, password: str) -> int:
    lun = IscsiLun(portal=volume.portal, iqn=volume.iqn, lun=1, initiator=own.iqn, user=own.user, password=password)
    initiator = KernelInitiator()
    try:
        device = await initiator.login(lun)
        return int((await run(["blockdev", "--getsize64", device], deadline=30)).out)
    finally:
        await initiator.logout(lun)


def _login(volume: Volume, own: Initiator, password: str) -> list[str]:
    address = (
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={volume.portal},file.target={volume.iqn},"
        f"file.lun=1,file.user={own.user},file.password-secret=chap,file.initiator-name={own.iqn}"
    )
    return ["--object", f"secret,id=chap,data={password}", "--image-opts", address]


if __name__ == "__main__":
    try:
        print(asyncio.run(size(Path(sys.argv[1]), *sys.argv[2:])))
    except VeeryError as error:
        sys.exit(error.message)
