"""The CA's key, sealed: who has the key that opens it, and how a cluster of an older veery is carried over."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from veery.cluster import keys, vault
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete, Put
from veery.cluster.vault import Vault
from veery.errors import Failed, Refused
from veery.host import tls
from veery.host.clock import RealClock
from veery.model import codec
from veery.model.cluster import Cluster
from veery.model.node import Node, Role

EPOCH = 1_795_430_400.0  # 2026-11-23


class Cast:
    """A cluster of an older veery: voters a, b and c, and h without a vote."""

    def __init__(self, root: Path) -> None:
        self.store, self.ca = MemoryStore(RealClock()), tls.make_ca("lab", epoch=EPOCH)
        self.vaults = {name: Vault(root / name) for name in ("a", "b", "c", "h")}

    async def begin(self) -> None:
        cluster = Cluster(name="lab", id="1", ca=self.ca.cert, authority="iqn.2026-11.internal.lab")
        records = [Put(keys.CLUSTER, codec.encode(cluster)), Put(keys.CA_KEY, self.ca.key.encode())]
        for name in self.vaults:
            role = Role.HYPERVISOR if name == "h" else Role.VOTER
            records.append(keys.NODES.put(name, Node(name=name, address="127.0.0.1", roles=(role,))))
        await self.store.commit([], records)

    async def ask(self, name: str) -> str:
        return self.vaults[name].export()

    async def carry(self, name: str) -> bool:
        return await vault.carry(self.store, self.vaults[name], name, self.ask)

    async def everywhere(self) -> str:
        """All that a node without a vote reads in the store."""
        return "\n".join(entry.value.decode() for entry in (await self.store.scan("")).entries)


async def test_an_older_cluster_is_carried_over_once_every_voter_can_open_it(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    assert not await cast.carry("a")  # it made the key
    for name in ("a", "b", "a"):
        assert not await cast.carry(name)
        assert await vault.ca_key(cast.store, cast.vaults[name], cast.ca.cert) == cast.ca.key
    assert "PRIVATE KEY" in await cast.everywhere()
    assert await cast.carry("c")
    assert "PRIVATE KEY" not in await cast.everywhere()
    for name in "abc":
        assert await cast.carry(name)
        assert await vault.ca_key(cast.store, cast.vaults[name], cast.ca.cert) == cast.ca.key
    assert stat.S_IMODE((tmp_path / "a" / vault.FILE).stat().st_mode) == 0o600


async def test_a_node_without_a_vote_does_not_get_the_cas_key(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    for name in ("a", "a", "b", "c"):
        await cast.carry(name)
    for own in (cast.vaults["h"], None):
        with pytest.raises(Refused, match="without a vote"):
            await vault.ca_key(cast.store, own, cast.ca.cert)
    with pytest.raises(Refused, match="no sealing key"):
        cast.vaults["h"].export()
    assert cast.vaults["h"].make()  # one of its own opens nothing
    with pytest.raises(Failed, match="does not open"):
        await vault.ca_key(cast.store, cast.vaults["h"], cast.ca.cert)


async def test_what_is_sealed_is_bound_to_its_place(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    own = cast.vaults["a"]
    own.make()
    await cast.store.commit([], [Put("one", own.seal("secret", "one")), Put("two", own.seal("secret", "one"))])
    one, two = await cast.store.get("one"), await cast.store.get("two")
    assert one is not None
    assert two is not None
    assert own.open(one) == "secret"
    with pytest.raises(Failed, match="does not open"):
        own.open(two)


async def test_a_wrong_sealing_key_is_not_taken(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    right, wrong, own = cast.vaults["a"], cast.vaults["b"], cast.vaults["c"]
    right.make()
    wrong.make()
    for text in (wrong.export(), "", "no base64!"):
        with pytest.raises(Failed, match="received sealing key"):
            own.take(text, right.id)
    assert own.id == ""
    own.take(right.export(), right.id)
    assert own.id == right.id


async def test_a_sealing_key_that_went_with_its_only_voter_is_made_anew(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    await cast.carry("a")
    await cast.carry("a")
    with pytest.raises(Failed, match="no voter sends"):
        await vault.carry(cast.store, cast.vaults["b"], "b", Cast(tmp_path / "elsewhere").ask)
    await cast.store.commit([], [Delete(keys.NODES.key("a")), Delete(keys.SEALED_BY + "a")])  # veery node forget a
    assert not await cast.carry("b")
    assert not await cast.carry("b")
    assert await cast.carry("c")
    assert await vault.ca_key(cast.store, cast.vaults["c"], cast.ca.cert) == cast.ca.key


async def test_a_node_that_gave_its_vote_up_lets_the_key_go_once_another_has_it(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    for name in ("a", "a", "b"):
        await cast.carry(name)
    former = Node(name="a", address="127.0.0.1", roles=(Role.HYPERVISOR,))
    assert not await vault.let_go(cast.store, cast.vaults["a"], former), "its record still says that it has a vote"
    await cast.store.commit([], [keys.NODES.put("a", former), Delete(keys.SEALED_BY + "b")])
    assert not await vault.let_go(cast.store, cast.vaults["a"], former), "nobody else says that it has the key"
    await cast.carry("b")
    assert await vault.let_go(cast.store, cast.vaults["a"], former)
    assert not cast.vaults["a"].id
    assert await cast.store.get(keys.SEALED_BY + "a") is None
    assert not await vault.let_go(cast.store, cast.vaults["a"], former), "it is gone"
    assert await vault.ca_key(cast.store, cast.vaults["b"], cast.ca.cert) == cast.ca.key
