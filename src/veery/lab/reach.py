"""`python -m veery.lab.reach SETTINGS VOLUME [PASSWORD]`: log in to a volume's LUN from inside a node.

As its domains do: through QEMU's own initiator with the node's own credentials, which are in the store; prints the
LUN's size in bytes. With PASSWORD that one is used instead. Exit 1, with QEMU's words, where it is turned away."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from veery.cluster.identity import load as load_identity
from veery.cluster.keys import INITIATORS, VOLUMES
from veery.cluster.members import open_store
from veery.config.settings import load as load_settings
from veery.errors import Refused, VeeryError
from veery.host.run import run
from veery.model.volume import Initiator, Volume


async def size(settings_file: Path, volume: str, password: str = "") -> int:
    """The size of `volume` in bytes, as this node's initiator sees it. Raises Refused, Failed."""
    settings = load_settings(settings_file)
    node = load_identity(Path(settings.state)).node.name
    store = open_store(settings, load_identity(Path(settings.state)))
    try:
        found, own = await VOLUMES.get(store, volume), await INITIATORS.get(store, node)
    finally:
        await store.close()
    if found is None or own is None:
        raise Refused(f"no volume {volume}, or no credentials for {node}")
    shown = await run(["qemu-img", "info", "--output=json", *_login(found, own, password or own.password)], deadline=30)
    return int(json.loads(shown.out)["virtual-size"])


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
