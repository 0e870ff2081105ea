"""`veery doctor` on the lab: well, and with things amiss."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from node_parts import Node, until

from veery.errors import Refused
from veery.lab import faults
from veery.lab.services import Lab


async def _rows(node: Node, *words: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((await node.result("doctor", "--json", *words)).out)
    return rows


def _row(rows: list[dict[str, Any]], node: str, what: str) -> dict[str, Any]:
    (found,) = [row for row in rows if (row["node"], row["what"]) == (node, what)]
    return found


async def test_a_lab_is_well(lab: Lab, near: Node) -> None:
    async def well() -> bool:
        return all(row["level"] != "bad" for row in await _rows(near, "--all"))

    await until(well, "the lab is well")
    rows = await _rows(near, "--all")
    assert {row["node"] for row in rows} == {"stor", "test1", "test2"}
    for what in ("clock", "certificate", "cluster's CA", "store", "version", "watchdog", "disk of state"):
        assert _row(rows, "stor", what)["told"]
    for what in ("etcd", "tgtd", "pool", "pool's disk"):
        assert _row(rows, "stor", what)["told"]
    assert _row(rows, "test1", "voters")["told"].startswith("3 of 3 answer; 1 more")
    assert _row(rows, "test1", "store data")["level"] == "ok"
    for what in ("bridges", "fencing", "relocation port", "path to stor", "guard", "leftovers", "tap filter"):
        assert _row(rows, "test2", what)["level"] == "ok"
    assert _row(rows, "test2", "bridges")["told"] == "xenbr0"
    reach = _row(rows, "test2", "guests' reach")  # the lab has one network
    assert reach["level"] == "warn"
    assert reach["told"].startswith("guests on xenbr0 can reach API (port 8001), relocation (port 8002), etcd")
    assert {row["node"] for row in await _rows(near)} == {"test1"}
    assert {row["node"] for row in await _rows(near, "test2")} == {"test2"}
    assert "no node test9" in (await near.refused("doctor", "test9")).replace("'", "")
    table = (await near.veery("doctor", "--all", code=0)).splitlines()
    assert table[0].split() == ["Node", "State", "What", "Found", "What", "to", "do"]


async def test_what_is_amiss_is_told_with_what_to_do(lab: Lab, near: Node) -> None:
    (etcd,) = faults.find(lab, "test2", "etcd")
    etcd.process.send(signal.SIGSTOP)
    await faults.kill(lab, "test2", "veeryd")
    await lab.run("test1", ["ip", "link", "add", "dmz", "type", "bridge"])
    try:
        result = await near.result("doctor", "--all")
        assert result.code == 1
        rows = await _rows(near, "--all")
        daemon = _row(rows, "test2", "daemon")
        assert daemon["level"] == "bad"
        assert "not reachable" in daemon["told"]
        assert daemon["advice"]
        assert "does not answer" in _row(rows, "test2", "store")["told"]
        assert _row(rows, "test2", "relocation port")["level"] == "bad"
        assert _row(rows, "test1", "store")["level"] == "ok"
        assert _row(rows, "test1", "voters")["level"] == "bad"
        assert "without it only 1 of 3" in await near.refused("node", "restart", "etcd")
        assert "voter test2 does not answer" in await near.refused("cluster", "defrag")
    finally:
        etcd.process.send(signal.SIGCONT)
        await lab.start("test2")
        await lab.healthy()
    rows = await _rows(near, "--all")
    assert _row(rows, "test2", "bridges")["told"] == "lacks dmz"
    await lab.run("test1", ["ip", "link", "delete", "dmz"])


async def test_the_store_is_kept_up_by_order(lab: Lab, near: Node, tmp_path: Path) -> None:
    await lab.healthy()
    (before,) = faults.find(lab, "test1", "etcd")
    await near.veery("node", "restart", "etcd", code=0)
    (after,) = faults.find(lab, "test1", "etcd")
    assert after.process != before.process
    rows = json.loads((await near.result("cluster", "defrag", "--json")).out)
    assert {row["name"] for row in rows} == {"stor", "test1", "test2"}
    copy = tmp_path / "copy.db"
    settings = lab.plan.settings("test1")
    await lab.run("test1", [sys.executable, "-m", "veery", "--settings", settings, "cluster", "backup", copy])
    assert (copy.stat().st_size > 4096, copy.stat().st_mode & 0o777) == (True, 0o600)


async def test_a_program_that_ends_again_and_again_is_bad(lab: Lab, near: Node) -> None:
    async def bad() -> bool:
        return bool(_row(await _rows(near, "stor"), "stor", "tgtd")["level"] == "bad")

    async def killed() -> bool:
        try:
            await faults.kill(lab, "stor", "tgtd")
        except Refused:  # it is not back yet
            return False
        return True

    for _ in range(3):
        await until(killed, "a tgtd to kill")
        await lab.healthy()
    await until(bad, "the doctor tells of tgtd")

    async def copied() -> bool:
        return bool(_row(await _rows(near, "stor"), "stor", "copies of the store")["level"] == "ok")

    await until(copied, "the doctor tells of a copy")
