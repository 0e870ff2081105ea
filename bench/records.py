"""`python bench/records.py SETTINGS`: how each node reaches the targets, asked from inside a node.

The API tells nobody the passwords; a bare QEMU needs them as much as veery's own."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from veery.cluster.identity import load as load_identity
from veery.cluster.initiators import open_secret
from veery.cluster.keys import CHAP_SECRETS, INITIATORS
from veery.cluster.members import open_store
from veery.cluster.vault import CHAP, Vault
from veery.config.settings import load as load_settings
from veery.model import codec
from veery.model.volume import Initiator


async def read(settings_file: Path) -> dict[str, Initiator]:
    """Each node's credentials. Raises StoreUnavailable."""
    settings = load_settings(settings_file)
    store = open_store(settings, load_identity(Path(settings.state)))
    try:
        found, sealed = await INITIATORS.all(store), await CHAP_SECRETS.all(store)
    finally:
        await store.close()
    vault = Vault(Path(settings.state), CHAP)  # of a storage node
    return {
        node: replace(own, password=open_secret(vault, node, sealed[node])) if node in sealed else own
        for node, own in found.items()
    }


if __name__ == "__main__":
    sys.stdout.buffer.write(codec.encode(asyncio.run(read(Path(sys.argv[1])))))
