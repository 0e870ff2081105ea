"""Real domains under each policy, and six of them away at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from node_parts import set_up

from guest_parts import boot_domain
from veery.lab.guest import Guest
from veery.lab.services import Lab
from veery.lab.shell import Shell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

WRITING = (
    "mkdir -p /t; mount -t tmpfs -o size=120m tmpfs /t; dd if=/dev/urandom of=/t/x bs=64k count=16 2>/dev/null; "
    "(while :; do for i in 0 1 2 3 4 5 6 7; do cat /t/x /t/x /t/x /t/x /t/x /t/x /t/x /t/x /t/x /t/x >/t/y$i; "
    "echo $i >/t/turn; done; done) & echo $! >/tmp/writer.pid"
)
RATE = "48M"


async def where(lab: Lab, name: str) -> list[str]:
    """The nodes that list the domain."""
    found = []
    for node in ("test1", "test2"):
        rows = await asyncio.to_thread(lab.client(node).get, "/v1/domains")
        found += [node for row in rows["domains"] if row["name"] == name and row["state"] in ("running", "blocked")]
    return found


async def gone(lab: Lab, name: str) -> None:
    """End a domain, wherever it is, and delete its volume."""
    for node in ("test1", "test2"):
        await lab.veery(node, "destroy", name, check=False)
    async with asyncio.timeout(30):  # the name is given back a moment after the domain is gone
        while (await lab.veery("test1", "volume", "delete", name, check=False)).code:
            await asyncio.sleep(0.5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def writer(lab: Lab, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A domain that writes some 80 MiB of its memory again and again, as fast as it can."""
    await boot_domain(lab, guest, "scribe", tmp_path_factory.mktemp("scribe"), memory=224)
    async with Shell(lab.client("test1").address, "scribe") as shell:
        await shell.ready()
        await shell.run(WRITING)
    yield "scribe"
    await gone(lab, "scribe")


@pytest.mark.parametrize("policy", ["gentle", "balanced", "must-finish"])
async def test_a_domain_that_writes_faster_than_it_can_be_copied(lab: Lab, writer: str, policy: str) -> None:
    (home,) = await where(lab, writer)
    away = "test2" if home == "test1" else "test1"
    await asyncio.sleep(2)
    words = ("migrate", "-q", "--json", "--policy", policy, "--rate", RATE, writer, away)
    told = await lab.veery(home, *words, check=False, deadline=180)
    newest = (await lab.json(home, "moves", "--json"))[-1]
    report = await lab.json(home, "move", "show", "--json", newest["id"])
    if policy == "gentle":
        assert told.code == 1
        assert "no progress" in told.err
        assert await where(lab, writer) == [home]
    else:
        assert told.code == 0, told.err
        assert await where(lab, writer) == [away]
        assert report["story"], "it needed no step of its policy: is the writer writing?"
    assert len(report["samples"]) > 10
    (now,) = await where(lab, writer)
    async with Shell(lab.client(now).address, writer) as shell:  # it writes on
        before = await shell.run("stat -c %Y /t/turn; cat /proc/uptime")
        await asyncio.sleep(1.5)
        assert await shell.run("stat -c %Y /t/turn; cat /proc/uptime") != before


@pytest.mark.parametrize("copies", [0, 6])
async def test_six_domains_away_at_once(lab: Lab, guest: Guest, tmp_path: Path, copies: int) -> None:
    """By default one copies and one more prepares; or all copy, and take turns to switch over."""
    async with set_up(lab, "test1", lambda text: f"{text}\n[moves]\ncopies = {copies}\n"):
        await six_away(lab, guest, tmp_path)


async def six_away(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    names = [f"wader{number}" for number in range(6)]
    log = {node: lab.log(node).stat().st_size for node in ("test1",)}
    try:
        for name in names:
            await boot_domain(lab, guest, name, tmp_path, memory=96)
        told = await lab.veery("test1", "migrate", "--to", "test2", *names, check=False, deadline=240)
        assert told.code == 0, told.err
        assert told.out.count("moved to test2") == 6
        for name in names:
            assert await where(lab, name) == ["test2"]
        with lab.log("test1").open() as file:
            file.seek(log["test1"])
            lines = [line for line in file if "phase=LOADED" in line or "phase=CONFIRM" in line]
        kinds = ["stops" if "phase=LOADED" in line else "runs" for line in lines]
        assert kinds == ["stops", "runs"] * 6, "two switch-overs at once"
        async with Shell(lab.client("test2").address, names[-1]) as shell:
            assert "6" in await shell.run("echo $((2*3))")
    finally:
        for name in names:
            await gone(lab, name)
