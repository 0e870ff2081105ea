"""What every test may use: the lab, the guest kernel; and a run that leaves nothing behind.

A run that was killed is swept by the next one: its processes, mounts, loop devices, labs and files."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings

from veery.client.address import lab_folder
from veery.lab import guest as kernels
from veery.lab import hosts
from veery.lab.guest import Guest
from veery.lab.scratch import Scratch, sweep
from veery.lab.services import Lab

SCRATCH = pytest.StashKey[Scratch]()
LEFT = pytest.StashKey[list[str]]()  # what the workers of this run left behind

WARNINGS_A_NODE = 12


def pytest_configure(config: pytest.Config) -> None:
    """Sweep what dead runs left; then give this one its folder."""
    sweep()
    if os.geteuid() == 0:
        asyncio.run(hosts.sweep(lab_folder().parent))
    new = bool(os.environ.get("VEERY_EXAMPLES"))  # else the same examples in each run: a red run is a change's doing
    settings.register_profile("ours", settings(), deadline=None, derandomize=not new)  # a machine may stall
    settings.load_profile("ours")
    config.stash[SCRATCH] = Scratch()
    config.stash[LEFT] = []
    if not config.option.basetemp or hasattr(config, "workerinput"):  # a worker's would be longer than sockets like
        config.option.basetemp = str(config.stash[SCRATCH].folder / "t")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who asks for the lab is marked with it."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker("lab")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker (pytest-xdist) has ended: remember what it left behind."""
    node.config.stash[LEFT] += getattr(node, "workeroutput", {}).get("left", [])


@pytest.hookimpl(trylast=True)  # the workers have ended
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run that leaves processes behind has failed."""
    config = session.config
    left = [f"{member.process.pid} {' '.join(member.words)[:200]}" for member in config.stash[SCRATCH].close()]
    if hasattr(config, "workeroutput"):
        config.workeroutput["left"] = left
        return
    left += config.stash[LEFT]
    for each in left:
        print(f"\nleft behind: {each}")
    if left and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails in a lab shows the last warnings of the lab's nodes."""
    report = yield
    made = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(made, Lab):
        report.sections.append((f"last warnings in lab {made.plan.lab}", _warnings(made)))
    return report


def _warnings(made: Lab) -> str:
    rows: list[str] = []
    for node in made.plan.nodes:
        with contextlib.suppress(OSError):
            told = [row for row in made.log(node.name).read_text(errors="replace").splitlines() if " INFO " not in row]
            rows += [f"{node.name}: {row[:300]}" for row in told[-WARNINGS_A_NODE:]]
    return "\n".join(rows)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A lab of this run's own: stor, test1, test2 and the client, whole and healthy."""
    made: Lab = _aside(lambda: Lab.up(f"t{os.getpid()}"))
    try:
        yield made
    finally:
        _aside(made.down)


@pytest.fixture(scope="session")
def guest() -> Guest:
    """The guest kernel that the set-up unpacked."""
    found = kernels.find()
    assert found is not None, "no guest kernel: run make setup"
    return found


def _aside(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `work` in an event loop of its own, away from the tests' one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()
