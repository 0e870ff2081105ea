"""`veery ha list` right after `veery ha set`: what it says does not come from an older look of the brain."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

from bench.brain import cluster

from veery.cluster.keys import OWNERS, POLICIES
from veery.cluster.memory import MemoryStore
from veery.host.clock import RealClock
from veery.model.ha import Policy, Rules
from veery.node.ha_service import HaService


async def test_a_domain_that_is_wanted_again_is_listed_so_at_once() -> None:
    clock = RealClock()
    store, view = MemoryStore(clock), cluster(2, 2)
    name, domain = next(iter(view.domains.items()))
    unwanted = dataclasses.replace(domain, ha=dataclasses.replace(domain.ha, policy=Policy.RESTART, wanted=False))
    seen = dataclasses.replace(view, domains={**view.domains, name: unwanted})
    brain = SimpleNamespace(view_now=lambda: seen, found=lambda subject: None)
    ha_service = HaService("a", store, records=store, brain=brain, rules=Rules(), peers=SimpleNamespace(), clock=clock)
    assert domain.owner is not None
    await store.commit([], [OWNERS.put(name, domain.owner), POLICIES.put(name, unwanted.ha)])
    (row,) = await ha_service.policies()
    assert "is not restarted" in row.now
    again = dataclasses.replace(unwanted.ha, wanted=True)
    await store.commit([], [POLICIES.put(name, again)])
    (row,) = await ha_service.policies()
    assert row.policy.wanted
    assert row.now == ""
