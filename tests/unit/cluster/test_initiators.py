"""The nodes' CHAP passwords: who can read them in the store, and how a cluster of an older veery is carried over."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from veery.cluster import identity, initiators, keys, members, vault
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Committed, Delete, Put, Unchanged
from veery.cluster.vault import Vault
from veery.config.settings import Settings
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.host.clock import RealClock
from veery.model import codec
from veery.model.cluster import Cluster
from veery.model.node import Node, Role
from veery.model.volume import Initiator
from veery.node.volumes import VolumeRecords

CLUSTER = Cluster(name="lab", id="1", ca="", authority="iqn.2026-11.internal.lab")
ROLES = {
    "a": (Role.VOTER,),
    "b": (Role.VOTER, Role.HYPERVISOR),
    "h": (Role.HYPERVISOR,),
    "s": (Role.STORAGE,),
}
FRESH = "fresh-secret-123"


class Fragile(MemoryStore):
    """A store whose writer dies right after its write number `last` (-1: never)."""

    last = -1

    async def commit(self, conditions: Sequence[Unchanged], operations: Sequence[Put | Delete]) -> Committed:
        done = await super().commit(conditions, operations)
        if self.last == 0:
            raise OutcomeUnknown("died")
        self.last -= 1
        return done


class Nodes:
    """A cluster of an older veery: voters a and b, hypervisor h, storage node s; passwords in the clear."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Fragile(RealClock())
        self.vaults = {name: Vault(root / name, vault.CHAP) for name in ROLES}
        self.first = {name: identity.make_initiator(CLUSTER, name) for name in ROLES}

    async def begin(self) -> None:
        records = [Put(keys.CLUSTER, codec.encode(CLUSTER))]
        for name, roles in ROLES.items():
            records.append(keys.NODES.put(name, Node(name=name, address="127.0.0.1", roles=roles)))
            records.append(keys.INITIATORS.put(name, self.first[name]))
        await self.store.commit([], records)

    async def ask(self, name: str) -> str:
        return self.vaults[name].export()

    async def look(self, name: str) -> None:
        """What a daemon of this version does there."""
        own = await initiators.keep(self.store, self.root / name, name, FRESH)
        held = None
        if any(role in ROLES[name] for role in vault.CHAP.roles):
            held = await vault.hold(self.store, self.vaults[name], name, self.ask)
        if await initiators.must_offer(self.store, own):
            await initiators.accept(self.store, self.vaults["a"], name, own.password)
        if held is not None:
            await initiators.seal_all(self.store, self.vaults[name], held)

    async def read(self, name: str) -> dict[str, str]:
        """The passwords that node `name` finds out: those of the store that it can open."""

        async def opener(node: str, secret: object) -> str:
            found = await keys.CHAP_SECRETS.get(self.store, node)
            assert found is not None
            return initiators.open_secret(self.vaults[name], node, found)

        records = VolumeRecords(self.store, opener)
        return {one.node: one.password for one in await records.initiators()}

    async def everywhere(self) -> str:
        """All that a node without a key reads in the store."""
        return "\n".join(entry.value.decode() for entry in (await self.store.scan("")).entries)

    async def clear(self) -> set[str]:
        """The nodes whose password anybody reads in the store."""
        text = await self.everywhere()
        return {name for name, own in self.first.items() if own.password in text}


RUNS = {"b", "h"}  # only nodes that run domains have accounts


async def test_an_older_cluster_is_carried_over_once_every_node_keeps_its_own_password(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    await nodes.begin()
    expected = {name: nodes.first[name].password for name in RUNS}
    for name in "aabhaab":  # not s
        await nodes.look(name)
        assert await nodes.clear() == set(ROLES)  # s is of the older version, and goes on reading them
    for name in "ssa":
        await nodes.look(name)
    assert await nodes.clear() == set()
    for name in "abs":
        assert await nodes.read(name) == expected
    assert await nodes.read("h") == {"b": "", "h": ""}
    for name, own in nodes.first.items():
        assert initiators.load(tmp_path / name) == own
        assert stat.S_IMODE((tmp_path / name / initiators.FILE).stat().st_mode) == 0o600
    assert await keys.INITIATORS.get(nodes.store, "h") == replace(nodes.first["h"], password="")


async def test_a_storage_node_without_the_key_keeps_the_others_waiting(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    await nodes.begin()
    for name in "aabh":
        await nodes.look(name)
    await initiators.keep(nodes.store, tmp_path / "s", "s", FRESH)  # it keeps its own, and has no key yet
    for name in "aab":
        await nodes.look(name)
        assert await nodes.clear() == set(ROLES)


@pytest.mark.parametrize("died", range(12))
async def test_a_crash_between_two_steps_costs_nothing(tmp_path: Path, died: int) -> None:
    """Whoever dies after whichever write: all that need a password have it before and after."""
    nodes = Nodes(tmp_path)
    await nodes.begin()
    expected = {name: nodes.first[name].password for name in RUNS}
    nodes.store.last = died
    deaths = 0
    for name in "abhsabhsabhs":
        try:
            await nodes.look(name)
        except OutcomeUnknown:
            deaths += 1
            nodes.store.last = -1
        for holder in "as":
            if await nodes.clear() != set(ROLES):
                assert await nodes.read(holder) == expected
    assert deaths == 1
    assert await nodes.clear() == set()
    assert {name: initiators.load(tmp_path / name) for name in ROLES} == nodes.first


async def test_a_newcomer_is_sealed_once_the_cluster_is_and_an_older_one_is_refused(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    await nodes.begin()
    new = identity.make_initiator(CLUSTER, "new")
    records, before = await initiators.enrolled(nodes.store, nodes.vaults["a"], new, keeps=False)
    assert records == [keys.INITIATORS.put("new", new)]
    for name in "abhsabhs":
        await nodes.look(name)
    assert not (await nodes.store.commit([before], records)).held  # it was asked for before, and comes too late
    with pytest.raises(Refused, match="older than this cluster"):
        await initiators.enrolled(nodes.store, nodes.vaults["a"], new, keeps=False)
    with pytest.raises(Refused, match="does not have the key"):
        await initiators.enrolled(nodes.store, nodes.vaults["h"], new, keeps=True)
    records, same = await initiators.enrolled(nodes.store, nodes.vaults["a"], new, keeps=True)
    assert (await nodes.store.commit([same], records)).held
    assert new.password not in await nodes.everywhere()
    secret = await keys.CHAP_SECRETS.get(nodes.store, "new")
    assert secret is not None
    assert initiators.open_secret(nodes.vaults["s"], "new", secret) == new.password
    with pytest.raises(Failed, match="does not open"):
        initiators.open_secret(nodes.vaults["s"], "h", secret)  # bound to its node


async def test_the_store_follows_the_password_that_a_node_keeps(tmp_path: Path) -> None:
    """Whatever became of the store: its node's domains have that one."""
    nodes = Nodes(tmp_path)
    await nodes.begin()
    older = [
        Put(each.key, each.value) for each in (await nodes.store.scan("initiator/")).entries if each.key[-1] != "h"
    ]
    for name in "abhsabhs":
        await nodes.look(name)
    expected = {name: nodes.first[name].password for name in RUNS}
    for gone in ("chap/h", "chap/b"):
        await nodes.store.commit([], [Delete(gone)])
        assert (await nodes.read("s"))[gone[-1]] == ""
        await nodes.look(gone[-1])
        assert await nodes.read("s") == expected
    await nodes.store.commit([], [Put("chap/h", b"no record")])
    await nodes.look("h")
    assert await nodes.read("s") == expected
    other = keys.INITIATORS.put("h", replace(nodes.first["h"], password="another-password"))
    await nodes.store.commit([], [*older, other])  # an older copy of the store
    for name in "abhsabhs":
        await nodes.look(name)
    assert await nodes.read("s") == expected
    assert await nodes.clear() == set()


async def test_a_key_that_is_lost_everywhere_is_made_anew_and_all_seal_again(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    await nodes.begin()
    for name in "abhsabhs":
        await nodes.look(name)
    for name in "abs":
        (tmp_path / name / vault.CHAP.file).unlink()
    for name in "abhsabhsabhs":
        with contextlib.suppress(VeeryError):  # for as long as one says that it has it
            await nodes.look(name)
    assert await nodes.read("s") == {name: nodes.first[name].password for name in RUNS}


async def test_a_node_that_lost_its_file_takes_a_new_password(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    await nodes.begin()
    for name in "abhsabhs":
        await nodes.look(name)
    (tmp_path / "h" / initiators.FILE).unlink()
    await nodes.look("h")
    assert (await nodes.read("s"))["h"] == FRESH


async def test_what_a_node_gives_is_checked(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    await nodes.begin()
    with pytest.raises(Refused, match="not sealed yet"):
        await initiators.accept(nodes.store, nodes.vaults["a"], "h", FRESH)
    for name in "abhsabhs":
        await nodes.look(name)
    for password in ("", "short", "with a space in it", "x" * 65, "a,b=c-d-e-f-g-h\n"):
        with pytest.raises(Refused, match="no account can have"):
            await initiators.accept(nodes.store, nodes.vaults["a"], "h", password)
    for caller in ("stranger", "gone"):
        with pytest.raises(Refused, match="not in the cluster"):
            await initiators.accept(nodes.store, nodes.vaults["a"], caller, FRESH)
    with pytest.raises(Refused, match="does not have the key"):
        await initiators.accept(nodes.store, nodes.vaults["h"], "h", FRESH)


async def test_a_new_cluster_has_no_password_in_its_store(tmp_path: Path) -> None:
    store, settings = MemoryStore(RealClock()), Settings(state=str(tmp_path))
    who = identity.init(
        settings, name="a", address="127.0.0.1", roles=[Role.VOTER, Role.HYPERVISOR], driver="qemu", cluster="lab"
    )
    await members.bootstrap(store, tmp_path, who)
    own = initiators.load(tmp_path)
    assert own is not None
    text = "\n".join(entry.value.decode() for entry in (await store.scan("")).entries)
    assert own.password not in text
    secret = await keys.CHAP_SECRETS.get(store, "a")
    assert secret is not None
    assert initiators.open_secret(Vault(tmp_path, vault.CHAP), "a", secret) == own.password
    assert not await initiators.must_offer(store, own)


async def test_a_password_that_cannot_be_opened_now_is_taken_from_memory(tmp_path: Path) -> None:
    """A storage node that waits for its key goes on serving whom it served, and nobody else."""
    nodes = Nodes(tmp_path)
    await nodes.begin()
    for name in "abhsabhs":
        await nodes.look(name)

    async def closed(node: str, _: object) -> str:
        raise Failed(f"{node}: no key")

    former = replace(nodes.first["b"], password="former-password")
    memory: list[Initiator] = [nodes.first["h"], former]
    records = VolumeRecords(nodes.store, closed, lambda: memory)
    assert {one.node: one.password for one in await records.initiators()} == {
        "h": nodes.first["h"].password,
        "b": "",
    }
