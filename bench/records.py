"""`python bench/records.py SETTINGS`: how each node reaches the targets, asked from inside a node.

The API tells nobody the passwords; a bare QEMU needs them as much as veery's own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from veery.cluster.identity import load as load_identity
from veery.cluster.keys import INITIATORS
from veery.cluster.members import open_store
from veery.config.settings import load as load_settings
from veery.model import codec
from veery.model.volume import Initiator


async def read(settings_file: Path) -> dict[str, Initiator]:
    """Each node's credentials. Raises StoreUnavailable."""
    settings = load_settings(settings_file)
    store = open_store(settings, load_identity(Path(settings.state)))
    try:
        return await INITIATORS.all(store)
    finally:
        await store.close()


if __name__ == "__main__":
    sys.stdout.buffer.write(codec.encode(asyncio.run(read(Path(sys.argv[1])))))
