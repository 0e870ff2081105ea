"""The CPU baseline: the processor of new domains. Every hypervisor computes it from what all of them support, and it is
kept in the store."""

from __future__ import annotations

import asyncio
import logging

from veery.cluster import changes
from veery.cluster.keys import BASELINES, NODES, PROCESSORS
from veery.cluster.store import Store, Unchanged
from veery.errors import VeeryError
from veery.host.log import decision
from veery.hypervisor.base import Driver
from veery.model import newer
from veery.model.node import Node, Role
from veery.model.plan import Baseline, Processor, common, family, level

log = logging.getLogger(__name__)

UPDATE_INTERVAL_S = 20.0  # seconds between two checks of the nodes' processors, apart from those after each change
RETRY_INTERVAL_S = 1.0


class CpuBaseline:
    """Maintains the CPU baseline. The daemon owns the task of `run`."""

    def __init__(self, node: Node, store: Store, driver: Driver) -> None:
        self._node, self._store, self._driver = node, store, driver
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled: record what this node supports, update the baseline when it changes, and apply it to new
        domains."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(changes.wake(self._changed, self._store, PROCESSORS.prefix), name="watch processors")
            said = ""
            while True:
                self._changed.clear()
                pause = UPDATE_INTERVAL_S
                try:
                    await self.restate()
                except VeeryError as error:
                    if error.message != said:
                        log.warning("baseline: %s", error.message)
                    said, pause = error.message, RETRY_INTERVAL_S
                try:
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                except TimeoutError:
                    pass

    async def restate(self) -> None:
        """Update once. Raises StoreUnavailable, OutcomeUnknown, Failed."""
        if not self._node.has(Role.HYPERVISOR):
            return
        mine = await self._own()
        known = await self._all()
        if known.get(mine.node) != mine:
            await self._store.commit([], [PROCESSORS.put(mine.node, mine)])
            known[mine.node] = mine
        alike = [one for one in known.values() if family(one) == family(mine) and one.features]
        if not alike:
            return
        models = frozenset.intersection(*(frozenset(one.models) for one in alike))
        bits = min((one.phys_bits for one in alike if one.phys_bits), default=0)
        cpu, features = self._driver.give(
            frozenset(common(alike)), models, phys_bits=bits, machines=[one.machines for one in alike]
        )
        wanted = Baseline(
            accelerator=mine.accelerator,
            cpu=cpu,
            level=level(features),
            features=features,
            nodes=tuple(sorted(one.node for one in alike)),
            vendor=family(mine)[1],
        )
        name = _name(mine)
        entry = await self._store.get(BASELINES.key(name))
        old = BASELINES.value(entry) if entry else None
        if old is None or (old.cpu, old.features, old.nodes) != (wanted.cpu, wanted.features, wanted.nodes):
            unchanged = Unchanged(BASELINES.key(name), entry.revision if entry else 0)
            done = await self._store.commit([unchanged], [BASELINES.put(name, newer.kept(wanted, old))])
            if done.held:
                nodes = ",".join(wanted.nodes)
                log.info(decision("baseline", of=name, level=wanted.level, cpu=cpu, nodes=nodes))

    async def show(self) -> dict[str, object]:
        """Answer GET /v1/cpu: {"baselines": [Baseline], "processors": [Processor and its level]}."""
        processors = (await self._all()).values()
        used = {_name(one) for one in processors}
        baselines = [one for name, one in (await BASELINES.readable(self._store)).items() if name in used]
        rows = [
            {
                "node": one.node,
                "accelerator": one.accelerator,
                "vendor": family(one)[1],
                "model": one.model,
                "version": one.version,
                "level": level(one.features),
                "phys_bits": one.phys_bits,
                "features": one.features,
            }
            for one in processors
        ]
        return {"baselines": baselines, "processors": rows}

    # ---- inside

    async def _own(self) -> Processor:
        able, host = await asyncio.gather(self._driver.abilities(), self._driver.host())
        return Processor(
            node=self._node.name,
            accelerator=able.accelerator,
            model=host.cpu_model,
            version=able.version,
            features=able.features,
            models=able.models,
            vendor=able.vendor,
            phys_bits=able.phys_bits,
            machines=able.machines,
        )

    async def _all(self) -> dict[str, Processor]:
        """Return the processors of the cluster's nodes; a node that left does not count."""
        nodes = await NODES.readable(self._store)
        return {name: one for name, one in (await PROCESSORS.readable(self._store)).items() if name in nodes}


def _name(processor: Processor) -> str:
    """Return the baseline's name in the store for a processor's family: "tcg", "kvm-GenuineIntel"."""
    return "-".join(filter(None, family(processor)))
