"""Records as a newer version writes them: each object in them has a field that this version does not know."""

from __future__ import annotations

import json
from typing import Any

from veery.cluster.keys import KINDS
from veery.cluster.store import Put, Store

NEWER = {"made by": ["a newer version", 2]}


def planted(raw: Any) -> Any:
    """`raw`, every JSON object of it with one more field."""
    if isinstance(raw, dict):
        rest = {name: item for name, item in raw.items() if name != "from_tomorrow"}
        return {"from_tomorrow": NEWER, **{name: planted(item) for name, item in rest.items()}}
    return [planted(item) for item in raw] if isinstance(raw, list) else raw


def intact(raw: Any) -> bool:
    """Whether every object of `raw` still has that field."""
    if isinstance(raw, dict):
        rest = {name: item for name, item in raw.items() if name != "from_tomorrow"}
        return raw.get("from_tomorrow") == NEWER and all(intact(item) for item in rest.values())
    return all(intact(item) for item in raw) if isinstance(raw, list) else True


async def plant(store: Store) -> None:
    """Put such a field into every object of every record in `store`; a lease stays."""
    operations = []
    for kind in KINDS:
        for entry in (await store.scan(kind.prefix)).entries:
            value = json.dumps(planted(json.loads(entry.value)), separators=(",", ":")).encode()
            operations.append(Put(entry.key, value, entry.lease))
    await store.commit([], operations)


async def read(store: Store, key: str) -> Any:
    """The JSON at `key`."""
    entry = await store.get(key)
    assert entry is not None, f"{key} is gone"
    return json.loads(entry.value)
