"""A start that the brain ordered fails: it counts as a try, unless it failed because the store did not answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from resting_node import PlainDevices, resting_domains

from veery.cluster import owner as owners
from veery.cluster.keys import DOMAINS, NODES, POLICIES, RUNS
from veery.cluster.memory import MemoryStore
from veery.cluster.store import StoreUnavailable
from veery.errors import Failed
from veery.host.clock import RealClock
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainSpec
from veery.model.ha import HaRecord, Policy, RunRecord, Ticket
from veery.model.node import Node, Role
from veery.model.volume import Attachments


class FailingDevices(PlainDevices):
    """Taps that cannot be made, for the reason given."""

    def __init__(self, error: Failed) -> None:
        self._error = error

    async def attach(self, spec: DomainSpec) -> Attachments:
        raise self._error


@pytest.mark.parametrize(
    ("error", "tries"), [(StoreUnavailable("the store does not answer"), 0), (Failed("no tap can be made"), 1)]
)
async def test_the_stores_absence_is_no_failed_try(tmp_path: Path, error: Failed, tries: int) -> None:
    clock = RealClock()
    store, driver, devices = MemoryStore(clock), FakeDriver("here", World(), clock), FailingDevices(error)
    node = Node(name="here", address="127.0.0.1", roles=(Role.HYPERVISOR,))
    domains = resting_domains(node, store, driver, devices, tmp_path)
    kernel = tmp_path / "vmlinuz"
    kernel.touch()
    spec = DomainSpec(name="web", kernel=str(kernel), memory=64, maxmem=64)
    await driver.open()
    try:
        put = [NODES.put("here", node), DOMAINS.put("web", DomainRecord(spec=spec))]
        await store.commit([], [*put, POLICIES.put("web", HaRecord(policy=Policy.RESTART, max_restarts=1))])
        done = await store.commit([], [RUNS.put("web", RunRecord(node="here", tries=1))])
        with pytest.raises(type(error)):
            await domains.launch(Ticket(domain="web", node="here", revision=done.revision))
        run = await RUNS.get(store, "web")
        assert run is not None
        assert run.tries == tries
        assert await owners.read(store, "web") is None
    finally:
        await driver.close()
