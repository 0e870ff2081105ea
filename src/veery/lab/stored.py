"""The records in a lab's store, read by veery's own client in this process."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from veery.cluster.identity import load as load_identity
from veery.cluster.members import open_store
from veery.config.settings import load as load_settings
from veery.lab.plan import NAMESPACES, Plan
from veery.lab.setns import within


async def records(plan: Plan, prefix: str = "", *, node: str = "stor") -> dict[str, Any]:
    """Return the decoded JSON of each record whose key begins with `prefix`, for example "owner/", by key. A value that
    is no JSON (ca/key) is its text. `node` sends the request: to its own etcd member first, then to the others.

    Raises StoreUnavailable if no member answers within the node's own deadline, Failed."""
    settings = load_settings(plan.settings(node))
    identity = load_identity(Path(settings.state))

    async def scan() -> dict[str, Any]:
        store = open_store(settings, identity)
        try:
            return {entry.key: _decoded(entry.value) for entry in (await store.scan(prefix)).entries}
        finally:
            await store.close()

    namespace = NAMESPACES / plan.namespace(node)
    return await asyncio.to_thread(within, namespace, lambda: asyncio.run(scan()))


def _decoded(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value.decode(errors="replace")
