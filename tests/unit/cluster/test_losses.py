"""What goes with a node that is gone for good, and what is said of it before."""

from __future__ import annotations

from typing import Any, cast

import pytest

from veery.cluster import keys, members
from veery.cluster.losses import Losses
from veery.cluster.memory import MemoryStore
from veery.cluster.voters import Voters
from veery.config.settings import Settings
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.model.cluster import DomainRecord, Owner, Presence
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.ha import FenceRecord, FenceState, HaRecord, Policy, RunRecord
from veery.model.node import Node, Role
from veery.model.volume import Backing, Volume

PROOF = FenceRecord(state=FenceState.FENCED, method="operator", proof="root says that it is off")


class NoVoters:
    """None of the nodes has a vote."""

    async def all(self) -> tuple[()]:
        return ()


def volume(name: str, node: str) -> Volume:
    return Volume(
        name=name, size=512, node=node, backing=Backing.FILE, path="/x", iqn=f"iqn.x:{name}", tid=1, portal="p:1"
    )


def domain(name: str, **disk: Any) -> DomainRecord:
    return DomainRecord(spec=DomainSpec(name=name, disks=(DiskSpec(vdev="xvda", **disk),)))


@pytest.fixture
async def store() -> MemoryStore:
    """burnt ran web (a volume of stor) and db (a file of its own); it held the volume data, which mail has."""
    made = MemoryStore(RealClock())
    nodes = [Node(name=name, address=name, roles=(Role.HYPERVISOR, Role.STORAGE)) for name in ("burnt", "stor")]
    records = {
        "web": domain("web", volume="web"),
        "db": domain("db", target="/d"),
        "mail": domain("mail", volume="data"),
    }
    await made.commit(
        [],
        [
            *(keys.NODES.put(node.name, node) for node in nodes),
            *(keys.DOMAINS.put(name, record) for name, record in records.items()),
            *(keys.POLICIES.put(name, HaRecord(policy=Policy.RESTART)) for name in records),
            *(keys.OWNERS.put(name, Owner(domain=name, node="burnt", boot="b")) for name in ("web", "db")),
            keys.OWNERS.put("mail", Owner(domain="mail", node="stor", boot="b")),
            keys.RUNS.put("mail", RunRecord(node="stor", home="burnt")),
            keys.VOLUMES.put("web", volume("web", "stor")),
            keys.VOLUMES.put("data", volume("data", "burnt")),
            keys.FENCES.put("burnt", PROOF),
        ],
    )
    return made


async def forget(store: MemoryStore, **how: bool) -> Losses:
    return await members.forget(store, cast("Voters", NoVoters()), Settings(), "burnt", **how)


@pytest.mark.parametrize("how", [{}, {"volumes": True}])
async def test_what_would_be_lost_is_named_before_anything_is_done(store: MemoryStore, how: dict[str, bool]) -> None:
    before = await store.revision()
    with pytest.raises(Refused) as refused:
        await forget(store, **how)
    assert refused.value.message == "with node burnt these are lost: volume data; disks of domain db, mail"
    assert "veery node forget burnt --with-everything" in refused.value.hint
    assert await store.revision() == before


async def test_a_burnt_node_is_put_out_with_all_that_it_had(store: MemoryStore) -> None:
    lost = await forget(store, everything=True)
    assert lost == Losses(owned=("db", "web"), volumes=("data",), domains=("db", "mail"))
    assert list(await keys.NODES.all(store)) == ["stor"]
    assert list(await keys.VOLUMES.all(store)) == ["web"]
    assert list(await keys.OWNERS.all(store)) == ["mail"], "what runs elsewhere is left there"
    wanted = {name: policy.wanted for name, policy in (await keys.POLICIES.all(store)).items()}
    assert wanted == {"db": False, "mail": False, "web": True}
    assert sorted(await keys.DOMAINS.all(store)) == ["db", "mail", "web"]
    run = await keys.RUNS.get(store, "mail")
    assert run is not None
    assert run.home == "", "nothing comes home to a node that is no more"


async def test_a_node_that_is_not_proven_to_be_off_keeps_its_domains(store: MemoryStore) -> None:
    await store.commit([], [keys.FENCES.put("burnt", FenceRecord(state=FenceState.FAILED))])
    with pytest.raises(Refused, match="node burnt owns db, web, and nothing proves that it is off") as refused:
        await forget(store, everything=True)
    assert "veery fence confirm burnt" in refused.value.hint
    await store.commit([], [keys.ALIVE.put("burnt", Presence(node="burnt", started=0.0))])
    with pytest.raises(Refused, match="node burnt is present"):
        await forget(store, everything=True)
