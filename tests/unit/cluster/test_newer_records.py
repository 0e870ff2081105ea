"""Fields and values of a newer version: kept when a record is rewritten, and read over where that is safe."""

from __future__ import annotations

import dataclasses
import json
import typing
from enum import Enum
from types import UnionType
from typing import Any

import pytest

from newer_parts import intact, planted
from veery.cluster import keys
from veery.cluster.identity import Identity
from veery.cluster.keys import KINDS, Kind
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Entry, Put
from veery.errors import Failed
from veery.ha.observer import StoreObserver
from veery.host.clock import RealClock
from veery.model import newer
from veery.model.cluster import Cluster, DomainRecord, Owner
from veery.model.codec import convert, decode, encode, plain
from veery.model.domain import DiskSpec, DomainSpec, VifSpec
from veery.model.ha import Event, FenceRecord, Level, NodeReading, Rules, RunRecord, StorageHeartbeats
from veery.model.node import Node, Role

ALL: tuple[Kind[Any], ...] = (
    *(*KINDS, keys.LEADERS, keys.DISARM, keys.EVENTS, keys.HEALTH_MOVES, keys.INCARNATIONS, keys.AUTHORITIES),
    Kind("", Cluster),
)


class Deaf:
    """A brain that hears nobody but the store."""

    async def signs(self) -> StorageHeartbeats:
        """As Probes."""
        return StorageHeartbeats(witnesses=0)

    async def readings(self) -> dict[str, NodeReading]:
        """As Probes."""
        return {}


def sample(hint: Any) -> Any:
    """A value of type `hint` with one item in each list."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return sample(inner[0])
    if origin in (tuple, list):
        return tuple(sample(each) for each in inner if each is not Ellipsis)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return next(iter(hint))
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{field.name: sample(hints[field.name]) for field in dataclasses.fields(hint)})
    return hint()


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.type.__name__)
def test_a_rewrite_keeps_what_a_newer_version_wrote(kind: Kind[Any]) -> None:
    raw = planted(json.loads(encode(sample(kind.type))))
    value = kind.value(Entry(kind.prefix + "x", json.dumps(raw).encode(), 7, 7))
    assert isinstance(value, kind.type)
    assert value == kind.value(Entry(kind.prefix + "x", encode(sample(kind.type)), 7, 7))
    written = json.loads(kind.put("x", dataclasses.replace(value)).value)
    assert intact(written)
    assert written == {**raw, **({"revision": 0} if "revision" in raw else {})}
    assert intact(plain(value))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.type.__name__)
def test_a_record_of_this_version_stays_as_it_is(kind: Kind[Any]) -> None:
    value = decode(encode(sample(kind.type)), kind.type)
    assert type(value) is kind.type
    assert newer.of(value) == {}
    assert encode(value) == encode(sample(kind.type))


def test_a_record_of_an_older_version_carries_nothing() -> None:
    assert type(decode(b'{"spec":{"name":"web","disks":[{"vdev":"xvda"}]}}', DomainRecord)) is DomainRecord


def newer_domain() -> DomainRecord:
    disks = (DiskSpec(vdev="xvda", volume="root"), DiskSpec(vdev="xvdb", volume="data"))
    vifs = (VifSpec(mac="00:16:3e:00:00:01"), VifSpec(mac="00:16:3e:00:00:02"))
    raw = planted(plain(DomainRecord(spec=DomainSpec(name="web", disks=disks, vifs=vifs))))
    for number, item in enumerate((*raw["spec"]["disks"], *raw["spec"]["vifs"])):
        item["number"] = number
    return decode(json.dumps(raw), DomainRecord)


def test_a_record_built_anew_takes_the_fields_over() -> None:
    disks = (DiskSpec(vdev="xvdc", volume="new"), DiskSpec(vdev="xvdb", volume="data", readwrite=False))
    anew = DomainRecord(spec=DomainSpec(name="web", memory=7, disks=disks, vifs=(VifSpec(mac="00:16:3e:00:00:02"),)))
    kept = newer.kept(anew, newer_domain())
    assert kept == anew
    written = json.loads(encode(kept))
    assert written["from_tomorrow"] == written["spec"]["from_tomorrow"] == {"made by": ["a newer version", 2]}
    assert written["spec"]["memory"] == 7
    assert [disk.get("number") for disk in written["spec"]["disks"]] == [None, 1]  # the new disk has none
    assert [vif.get("number") for vif in written["spec"]["vifs"]] == [3]


def test_nothing_is_taken_over_from_nothing() -> None:
    anew = DomainRecord(spec=DomainSpec(name="web"))
    assert newer.kept(anew, None) is anew
    assert newer.kept(anew, dataclasses.replace(anew, saved="x")) is anew


def test_a_known_field_wins() -> None:
    carrying = decode(b'{"domain":"a","node":"n","boot":"b","mood":"good"}', Owner)
    assert json.loads(encode(dataclasses.replace(carrying, node="m"))) == {
        "domain": "a",
        "node": "m",
        "boot": "b",
        "started": 0.0,
        "revision": 0,
        "mood": "good",
    }
    assert "mood" not in repr(carrying)
    assert hash(carrying) == hash(Owner(domain="a", node="n", boot="b"))


@pytest.mark.parametrize("name", ["unknown", "_unknown", "__class__", "fields"])
def test_no_field_name_is_special(name: str) -> None:
    raw = {"domain": "a", "node": "n", "boot": "b", name: {"fields": {"node": "evil"}}}
    carrying = decode(json.dumps(raw), Owner)
    assert carrying == Owner(domain="a", node="n", boot="b")
    written = json.loads(encode(dataclasses.replace(carrying, boot="c")))
    assert written == {**raw, "boot": "c", "started": 0.0, "revision": 0}


def test_a_record_with_too_many_unknown_fields_cannot_be_read() -> None:
    large = {"vdev": "xvda", "blob": "x" * (newer.UNKNOWN_MAX_BYTES // 3)}
    raw = {"spec": {"name": "web", "disks": [{**large, "vdev": f"xvd{letter}"} for letter in "abc"]}}
    with pytest.raises(Failed, match="unknown fields take more than"):
        decode(json.dumps(raw), DomainRecord)
    raw["spec"]["disks"].pop()  # type: ignore[index]
    assert len(decode(json.dumps(raw), DomainRecord).spec.disks) == 2


def test_only_a_record_of_another_node_is_kept_whole_by_convert() -> None:
    raw = {"domain": "a", "node": "n", "boot": "b", "mood": "good"}
    assert newer.of(convert(raw, Owner)) == {}
    assert newer.of(convert(raw, Owner, keep=True)) == {"mood": "good"}


# ---- values
async def test_a_newer_role_hides_no_node() -> None:
    store = MemoryStore(RealClock())
    raw = {"name": "test2", "address": "172.16.31.2", "roles": ["hypervisor", "arbiter"], "driver": "newer-driver"}
    await store.commit([], [Put(keys.NODES.key("test2"), json.dumps(raw).encode())])
    expected = Node(name="test2", address="172.16.31.2", roles=(Role.HYPERVISOR,), driver="newer-driver")
    assert await keys.NODES.all(store) == {"test2": expected}
    assert await keys.node_at(store, "test2") == expected
    assert await keys.unreadable(store) == []
    assert convert({"node": raw}, dict[str, Node]) == {"node": expected}
    assert convert([raw], tuple[Node, ...]) == (expected,)


def test_a_newer_level_of_an_event_is_a_warning() -> None:
    raw = {"at": 1.0, "level": "catastrophe", "what": "x", "subject": "y", "text": "z"}
    assert decode(json.dumps(raw), Event).level is Level.WARNING


@pytest.mark.parametrize(
    ("type", "raw"),
    [
        (FenceRecord, {"state": "half-fenced"}),
        (DomainRecord, {"spec": {"name": "web", "on_crash": "call-somebody"}}),
        (Node, {"name": "test2", "address": "x", "roles": [7]}),
        (Owner, {"domain": "a", "node": 3, "boot": "b"}),
        (RunRecord, {"tries": "many"}),
    ],
)
def test_other_values_are_not_guessed(type: type, raw: dict[str, Any]) -> None:
    with pytest.raises(Failed):
        decode(json.dumps(raw), type)


def test_a_newer_role_beside_a_newer_field() -> None:
    raw = {"name": "test2", "address": "x", "roles": ["storage", "arbiter"], "zone": {"row": 4}}
    node = decode(json.dumps(raw), Node)
    assert node.roles == (Role.STORAGE,)
    assert newer.of(node) == {"zone": {"row": 4}}


def test_a_node_that_went_back_reads_its_own_identity() -> None:
    node = Node(name="test2", address="x", roles=(Role.VOTER,))
    cluster = Cluster(name="lab", id="1", ca="PEM", authority="iqn.x")
    raw = json.loads(encode(Identity(cluster=cluster, node=node, voters=())))
    raw["node"]["roles"].append("arbiter")
    assert decode(json.dumps(raw), Identity).node == node


async def test_the_brain_sees_a_node_with_a_newer_role() -> None:
    store = MemoryStore(RealClock())
    raw = {"name": "test2", "address": "x", "roles": ["hypervisor", "arbiter"]}
    await store.commit([], [Put(keys.NODES.key("test2"), json.dumps(raw).encode())])
    view = await StoreObserver(store, Deaf(), RealClock(), Rules()).observe()
    assert view.nodes["test2"].unreadable == ()
    assert view.nodes["test2"].record.roles == (Role.HYPERVISOR,)
