"""Run on a node of the lab, `take_domain.py SETTINGS DOMAIN NODE`: take DOMAIN from fenced NODE, as the one transaction
that a leader would send. Prints whether it held."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from veery.cluster import fencing, identity, keys, members, owner
from veery.cluster.store import Delete, Unchanged
from veery.config.settings import load


async def take(settings_file: str, domain: str, node: str) -> bool:
    settings = load(Path(settings_file))
    store = members.open_store(settings, identity.load(Path(settings.state)))
    try:
        fence = await fencing.require(store, node)
        current = await owner.read(store, domain)
        assert current is not None
        assert current.node == node
        key = keys.OWNERS.key(domain)
        done = await store.commit([fencing.standing(fence), Unchanged(key, current.revision)], [Delete(key)])
        return done.held
    finally:
        await store.close()


if __name__ == "__main__":
    print(asyncio.run(take(*sys.argv[1:])))
