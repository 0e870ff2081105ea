"""A shutdown that the guest does not hear: it is asked again while it boots, and the wish lapses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from veery.cluster.keys import DOMAINS, OWNERS, POLICIES
from veery.cluster.memory import MemoryStore
from veery.ha import orders
from veery.ha.simulation.clock import TrueClock, run
from veery.hypervisor.fake import FakeDriver
from veery.hypervisor.fakeworld import World
from veery.model.cluster import DomainRecord, Owner
from veery.model.domain import DomainEnd, DomainSpec, DomainState
from veery.model.ha import SHUTDOWN_LAPSE_S, HaRecord, Policy
from veery.model.volume import Attachments
from veery.node.stopping import BOOT_S, Stopping

LOOK_INTERVAL_S = 5.0
NAME, UUID = "web", "5d5dcb7f-1d53-4ef5-8b5c-2bd1ba31c3f6"
SPEC = DomainSpec(name=NAME, uuid=UUID, memory=64)


@dataclass
class Node:
    """One node with one domain, looked after every few seconds."""

    clock: TrueClock
    store: MemoryStore
    driver: FakeDriver
    stopping: Stopping
    busy: bool = False

    async def state(self) -> DomainState:
        return (await self.driver.list())[0].state

    async def policy(self) -> HaRecord:
        found = await POLICIES.get(self.store, NAME)
        assert found is not None
        return found

    async def ask(self) -> None:
        """As Domains.shutdown."""
        await orders.want(self.store, NAME, wanted=False, stopping=self.stopping.asked(UUID))
        await self.driver.shutdown(UUID)

    async def look_for_ever(self) -> None:
        while True:
            await self.stopping.look(lambda name: self.busy)
            await asyncio.sleep(LOOK_INTERVAL_S)


@contextlib.asynccontextmanager
async def node(policy: Policy | None = Policy.RESTART) -> AsyncIterator[Node]:
    clock = TrueClock()
    store, driver = MemoryStore(clock), FakeDriver("test1", World(), clock)
    owner = Owner(domain=NAME, node="test1", boot="b1")
    await store.commit([], [DOMAINS.put(NAME, DomainRecord(spec=SPEC)), OWNERS.put(NAME, owner)])
    if policy is not None:
        await orders.set_policy(store, NAME, policy)
    await driver.start(SPEC, Attachments())
    made = Node(clock, store, driver, Stopping(driver, store, clock))
    task = asyncio.create_task(made.look_for_ever())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait({task})


def test_a_guest_that_boots_is_asked_until_it_hears() -> None:
    async def play(policy: Policy | None) -> None:
        async with node(policy) as here:
            here.driver.deafen(UUID, 40)
            await here.ask()
            await asyncio.sleep(35)
            assert await here.state() in (DomainState.RUNNING, DomainState.BLOCKED)
            await asyncio.sleep(15)
            assert await here.state() is DomainState.SHUTDOWN

    run(play(Policy.RESTART))
    run(play(None))


def test_a_guest_that_has_booted_is_asked_once() -> None:
    async def play() -> None:
        async with node() as here:
            await asyncio.sleep(BOOT_S + 1)
            here.driver.deafen(UUID, 1)
            await here.ask()
            await asyncio.sleep(SHUTDOWN_LAPSE_S / 2)
            assert await here.state() is not DomainState.SHUTDOWN

    run(play())


def test_a_wish_that_is_not_followed_lapses() -> None:
    async def play() -> None:
        async with node() as here:
            here.driver.deafen(UUID, 1e6)
            asked = here.clock.epoch()
            await here.ask()
            await asyncio.sleep(SHUTDOWN_LAPSE_S - 10)
            policy = await here.policy()
            assert (policy.wanted, policy.stopping) == (False, asked)
            await asyncio.sleep(20)
            policy = await here.policy()
            assert (policy.wanted, policy.stopping) == (True, 0.0)

    run(play())


def test_ha_set_takes_the_wish_back() -> None:
    async def play() -> None:
        async with node() as here:
            here.driver.deafen(UUID, 20)
            await here.ask()
            await orders.set_policy(here.store, NAME, Policy.RESTART)
            policy = await here.policy()
            assert (policy.wanted, policy.stopping) == (True, 0.0)
            await asyncio.sleep(60)
            assert await here.state() is not DomainState.SHUTDOWN, "it was asked again"

    run(play())


def test_a_shutdown_of_a_domain_that_was_not_wanted_does_not_make_it_wanted() -> None:
    async def play() -> None:
        async with node() as here:
            await orders.want(here.store, NAME, wanted=False)
            here.driver.deafen(UUID, 1e6)
            await here.ask()
            await asyncio.sleep(SHUTDOWN_LAPSE_S + 10)
            assert not (await here.policy()).wanted

    run(play())


def test_a_new_run_is_not_asked_any_more() -> None:
    """The guest powers off and on_poweroff starts it again: the wish was followed."""

    async def play() -> None:
        async with node() as here:
            await here.ask()
            await here.stopping.followed((await here.driver.list())[0])
            assert ((await here.policy()).wanted, (await here.policy()).stopping) == (True, 0.0)
            await here.driver.destroy(UUID)
            await here.driver.start(SPEC, Attachments())
            await asyncio.sleep(60)
            assert await here.state() is not DomainState.SHUTDOWN

    run(play())


def test_a_domain_that_is_created_again_at_once_is_not_asked() -> None:
    """Without a policy the wish is this node's own: it is the run's that was asked."""

    async def play() -> None:
        async with node(None) as here:
            await asyncio.sleep(1)
            here.stopping.asked(UUID)
            await here.driver.destroy(UUID)
            await asyncio.sleep(1)  # quicker than a look
            await here.driver.start(SPEC, Attachments())
            await asyncio.sleep(60)
            assert await here.state() is not DomainState.SHUTDOWN

    run(play())


def test_a_domain_that_moves_or_has_ended_is_left_alone() -> None:
    async def play() -> None:
        async with node() as here:
            here.driver.deafen(UUID, 7)
            await here.ask()
            here.busy = True
            await asyncio.sleep(30)
            assert await here.state() is not DomainState.SHUTDOWN
            here.driver.end(UUID, DomainEnd.CRASH)
            here.busy = False
            await asyncio.sleep(30)
            assert await here.state() is DomainState.CRASHED

    run(play())
