"""`python -m veery.lab.voters SETTINGS`: print the number of voting etcd members, asked from inside a node."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from veery.cluster.identity import load as load_identity
from veery.cluster.members import open_store
from veery.cluster.store import StoreUnavailable
from veery.config.settings import load as load_settings


async def count(settings_file: Path) -> int:
    """Return the number of voters of the cluster of the node with `settings_file`; 0 if they do not answer."""
    settings = load_settings(settings_file)
    identity = load_identity(Path(settings.state))
    store = open_store(settings, identity)
    try:
        return sum(not member.learner for member in await store.voters.all())
    except StoreUnavailable:
        return 0
    finally:
        await store.close()


if __name__ == "__main__":
    print(asyncio.run(count(Path(sys.argv[1]))))
