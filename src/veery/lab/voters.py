"""`python -m veery.lab.voters SETTINGS`: how many etcd members have a vote, asked from inside a node."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from veery.cluster.identity import load as load_identity
from veery.cluster.members import open_store
from veery.cluster.store import StoreUnavailable
from veery.config.settings import load as load_settings


async def count(settings_file: Path) -> int:
    """The voters of the cluster whose node `settings_file` describes; 0 when they do not answer."""
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
