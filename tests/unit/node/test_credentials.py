"""What the daemons of a cluster do about their credentials, between each other: on the store in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from veery.cluster import identity, initiators, keys, vault
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete, Put
from veery.errors import Failed, Refused
from veery.host.clock import RealClock
from veery.model import codec
from veery.model.cluster import Cluster
from veery.model.node import Node, Role
from veery.node.credentials import Credentials
from veery.node.volumes import VolumeRecords

CLUSTER = Cluster(name="lab", id="1", ca="", authority="iqn.2026-11.internal.lab")
ROLES = {"old": (Role.VOTER,), "a": (Role.VOTER,), "h": (Role.HYPERVISOR,), "s": (Role.STORAGE,)}


class Daemons:
    """Voter a, hypervisor h, storage node s; and old, a voter whose daemon does not know these routes."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, MemoryStore(RealClock())
        self.nodes = {name: Node(name=name, address="127.0.0.1", roles=roles) for name, roles in ROLES.items()}
        self.first = {name: identity.make_initiator(CLUSTER, name) for name in ROLES}
        self.at = {name: self.daemon(name) for name in ROLES if name != "old"}

    def daemon(self, name: str) -> Credentials:
        return Credentials(self.nodes[name], self.store, self.root / name, peers=Calls(self, name), clock=RealClock())

    async def begin(self) -> None:
        records = [Put(keys.CLUSTER, codec.encode(CLUSTER))]
        for name, node in self.nodes.items():
            records += [keys.NODES.put(name, node), keys.INITIATORS.put(name, self.first[name])]
        await self.store.commit([], records)

    async def look(self, names: str = "ahsahs") -> None:
        for name in names:
            await self.at[name].look()

    async def upgrade(self) -> None:
        """The voter of the older version is of this one, and then goes."""
        await initiators.keep(self.store, self.root / "old", "old", "x")
        records = [Delete(kind.key("old")) for kind in (keys.NODES, keys.INITIATORS)]
        await self.store.commit([], [*records, Delete(keys.CHAP_KEPT + "old")])

    async def clear(self) -> bool:
        """Whether any password can be read in the store."""
        text = "\n".join(entry.value.decode() for entry in (await self.store.scan("")).entries)
        return any(own.password in text for own in self.first.values())


class Calls:
    """The API between them."""

    def __init__(self, daemons: Daemons, caller: str) -> None:
        self._daemons, self._caller = daemons, caller

    async def call(self, name: str, method: str, path: str, body: Any = None, *, deadline: float = 30.0) -> Any:
        if name not in self._daemons.at:
            raise Failed(f"{name}: no such route")
        there = self._daemons.at[name]
        if path == "/v1/initiators/sealing":
            return {"key": await there.sealing(self._caller)}
        assert path == "/v1/initiators"
        await there.accept(self._caller, body["password"])
        return {}


async def test_the_passwords_are_sealed_once_the_last_node_is_of_this_version(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    await daemons.begin()
    await daemons.look()
    assert await daemons.clear()
    for name in daemons.at:
        assert await daemons.at[name].mine() == daemons.first[name]
    await daemons.upgrade()
    await daemons.look()
    assert not await daemons.clear()
    assert {name for name in ROLES if (tmp_path / name / vault.CHAP.file).exists()} == {"a", "s"}


async def test_only_voters_and_storage_nodes_get_the_key(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    await daemons.begin()
    await daemons.look()
    for caller in ("h", "stranger"):
        with pytest.raises(Refused, match="is not a voter or storage node"):
            await daemons.at["a"].sealing(caller)
    assert await daemons.at["a"].sealing("s") == await daemons.at["s"].sealing("a")


async def test_a_new_storage_node_gets_the_key_when_it_needs_it(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    await daemons.begin()
    await daemons.upgrade()
    await daemons.look()
    node = daemons.nodes["new"] = Node(name="new", address="127.0.0.1", roles=(Role.STORAGE,))
    await daemons.store.commit([], [keys.NODES.put("new", node)])
    fresh = daemons.daemon("new")
    (own,) = await VolumeRecords(daemons.store, fresh.password).initiators()
    assert own == daemons.first["h"]


async def test_a_node_gives_the_password_that_it_keeps_to_one_that_can_seal_it(tmp_path: Path) -> None:
    """Past a voter that does not know how."""
    daemons = Daemons(tmp_path)
    await daemons.begin()
    await daemons.upgrade()
    await daemons.look()
    old = keys.NODES.put("old", daemons.nodes["old"])
    await daemons.store.commit([], [Delete(keys.CHAP_SECRETS.key("h")), old])
    await daemons.look("h")
    (own,) = await VolumeRecords(daemons.store, daemons.at["s"].password).initiators()
    assert own == daemons.first["h"]


async def test_a_daemon_knows_its_own_without_the_store(tmp_path: Path) -> None:
    daemons = Daemons(tmp_path)
    await daemons.begin()
    await daemons.look("h")
    later = daemons.daemon("h")
    await daemons.store.commit([], [Delete(keys.INITIATORS.key("h"))])
    assert await later.mine() == daemons.first["h"]
    with pytest.raises(Failed, match="no credentials"):
        await later.look()
