"""When all is whole again after the nemesis, and whether it had a right to what it cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from proof import keys_of, logged_in
from stage import Stage

from veery.errors import VeeryError
from veery.host.run import NotInstalled
from veery.lab.services import Lab

SETTLE = 240.0  # seconds: tries of a fence and back-offs are in it, on a busy machine


@dataclass(frozen=True)
class Whole:
    """All is well: domain -> its node, and its boot."""

    where: dict[str, str]
    boots: dict[str, str]


async def whole(stage: Stage, hypervisors: Sequence[str]) -> Whole:
    """Wait until every domain runs on exactly its owner, nothing is left anywhere, and each acknowledges records anew.
    Raises AssertionError with what is not so."""
    ends, why = time.monotonic() + SETTLE, "not looked at"
    await stage.lab.healthy()
    while why:
        if time.monotonic() > ends:
            raise AssertionError(f"not whole within {SETTLE:g} s: {why}")
        try:
            why = await ailing(stage, hypervisors)
        except NotInstalled:
            raise
        except VeeryError as error:
            why = error.message
        if why:
            await asyncio.sleep(0.5)
    owners = await keys_of(stage.lab, "owner/")
    records = await asyncio.gather(*(stage.collector.next(name, deadline=SETTLE) for name in stage.ledgers))
    return Whole(
        {name: owners[f"owner/{name}"]["node"] for name in stage.ledgers},
        {name: record.boot for name, record in zip(stage.ledgers, records, strict=True)},
    )


async def ailing(stage: Stage, hypervisors: Sequence[str]) -> str:
    """What is not yet as it must be; "" when all is. Raises VeeryError where a node does not answer."""
    status, fences, owners, half, guests = await asyncio.gather(
        stage.get("/v1/cluster"),
        stage.get("/v1/fences"),
        keys_of(stage.lab, "owner/"),
        keys_of(stage.lab, "reservation/"),
        logged_in(stage.lab),
    )
    for row in status["nodes"]:
        if row["state"] == "damped":  # fenced three times within an hour: held back until somebody says so
            await stage.post(f"/v1/nodes/{row['name']}/resume")
        if row["state"] != "present":
            return f"{row['name']} is {row['state']}"
    if fences or half:
        return f"fences {fences}, reservations {half}"
    found = await readings(stage.lab, hypervisors)
    for name in stage.ledgers:
        owner = owners.get(f"owner/{name}", {}).get("node", "nobody")
        where = {node: row["state"] for node, rows in found.items() for row in rows if row["name"] == name}
        if list(where) != [owner] or where[owner] not in ("running", "blocked"):
            return f"{name}: owner {owner}, it is on {where}"
        if guests.get(name, set()) != {owner}:
            return f"{name}: logged in at its volume {guests.get(name)}, owner {owner}"
    counts = {node: sum(owner["node"] == node for owner in owners.values()) for node in hypervisors}
    for node, wanted in counts.items():
        if left := await _left(stage, node, wanted):
            return left
    return ""


async def readings(lab: Lab, hypervisors: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Node -> its domains, each node asked itself."""
    told = await asyncio.gather(
        *(asyncio.to_thread(lab.client(node, deadline=10).get, "/v1/domains") for node in hypervisors)
    )
    return {node: rows["domains"] for node, rows in zip(hypervisors, told, strict=True)}


async def _left(stage: Stage, node: str, wanted: int) -> str:
    """What is on `node` beside what belongs to its `wanted` domains."""
    if (there := stage.copies(node)) != wanted:
        return f"{there} QEMUs on {node}, which owns {wanted}"
    taps = (await stage.lab.run(node, ["ip", "-o", "link", "show", "type", "tun"])).out.splitlines()
    homes = list((stage.lab.plan.home(node) / "run" / "domains").glob("[0-9]*"))
    if len(taps) != wanted or len(homes) != wanted:
        return f"{len(taps)} taps and {len(homes)} domain folders on {node}, which owns {wanted}"
    if journal := list((stage.lab.plan.home(node) / "lib" / "journal").glob("*")):
        return f"journal on {node}: {[path.name for path in journal]}"
    guard = await stage.get("/v1/guard", node)
    return f"{node} holds {guard['held']}" if guard["held"] else ""


def needless(before: Whole, after: Whole, *, touched: dict[str, set[str]], bootable: Collection[str]) -> list[str]:
    """What was restarted without a reason: domain -> the nodes it may have been on meanwhile is `touched`."""
    return [
        f"{name} was booted anew on {after.where[name]}; it had been on {', '.join(sorted(touched[name]))}"
        for name, boot in before.boots.items()
        if after.boots[name] != boot and not touched[name] & set(bootable)
    ]
