"""Addresses with ports: made and taken apart alike for IPv4 and IPv6."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.cluster import server
from veery.cluster.identity import EtcdStart, Identity, client_url, describe, peer_url
from veery.config.settings import Relocation, Settings, StorageSettings, load
from veery.errors import Refused
from veery.host import pathmtu, tls
from veery.host.pathmtu import PathReading
from veery.model import codec, endpoint
from veery.model.cluster import Cluster
from veery.model.health import Level
from veery.model.node import Node, Role
from veery.node.doctor import judge_packets
from veery.node.guard import serving
from veery.storage.tgt import TargetServer


@pytest.mark.parametrize(("address", "text"), [("10.0.0.3", "10.0.0.3:3260"), ("fd00::3", "[fd00::3]:3260")])
def test_what_is_joined_is_split_again(address: str, text: str) -> None:
    assert endpoint.join(address, 3260) == text
    assert endpoint.split(text) == (address, 3260)


@pytest.mark.parametrize("text", ["fd00::3", "[fd00::3]", "10.0.0.3", "", ":3260", "[10.0.0.3]:3260", "fd00::3:3260"])
def test_what_is_no_endpoint_is_not_split(text: str) -> None:
    with pytest.raises(ValueError, match=r"ADDRESS:PORT|int\(\)"):
        endpoint.split(text)


@pytest.mark.parametrize("address", ["10.0.0.3", "fd00::3", "FD00:0:0::3"])
def test_the_guard_knows_the_storage_node_by_its_portal(address: str) -> None:
    roles = (Role.STORAGE,)
    nodes = [Node(name="stor", address=address, roles=roles), Node(name="other", address="fd00::4", roles=roles)]
    nodes.append(Node(name="test1", address=address, roles=(Role.HYPERVISOR,)))
    portal = endpoint.join(endpoint.canonical(address), 3260)
    assert serving({portal}, nodes) == {"stor"}
    assert serving(set(), nodes) == frozenset()


def test_the_guard_knows_a_storage_node_by_its_address_on_the_storage_network() -> None:
    node = Node(name="stor", address="10.0.0.3", roles=(Role.STORAGE,), storage_address="fd01::3", former=("10.9.0.3",))
    for portal in ("[fd01::3]:3260", "10.9.0.3:3260", "10.0.0.3:3260"):
        assert serving({portal}, [node]) == {"stor"}
    assert node.storage == "fd01::3"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_a_full_size_packet_is_tried(address: str) -> None:
    try:
        reading = await pathmtu.read(address)
    except OSError as error:
        pytest.skip(f"{address}: {error.strerror}")
    assert (reading.mtu >= 1280, reading.lost) == (True, "")


@pytest.mark.parametrize(
    ("reading", "level", "words"),
    [
        (PathReading(9000), Level.OK, "9000 bytes reach 10.0.0.3"),
        (PathReading(9000, "no answer within 1.4 s"), Level.BAD, "packets of 9000 bytes do not"),
        (PathReading(9000, "no answer within 1.4 s", small=False), Level.OK, "not tested"),
        ("Network is unreachable", Level.WARN, "Network is unreachable"),
    ],
)
def test_what_doctor_says_of_a_path(reading: PathReading | str, level: Level, words: str) -> None:
    found = judge_packets("test1", "stor", "10.0.0.3", reading)
    assert (found.what, found.level, words in found.told) == ("packets to stor", level, True)


def test_the_checksum_is_that_of_the_rfc() -> None:
    assert pathmtu.checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2  # RFC 1071, 3


def test_the_record_has_the_addresses_of_the_settings(tmp_path: Path) -> None:
    settings = Settings(relocation=Relocation(address="10.30.0.1"), storage=StorageSettings(address="FD01::0:1"))
    node = describe(settings, name="a", address="10.0.0.1", roles=[Role.HYPERVISOR], driver="qemu")
    assert (node.relocation_address, node.storage_address, node.storage) == ("10.30.0.1", "fd01::1", "fd01::1")
    assert node.addresses == ("10.0.0.1", "10.30.0.1", "fd01::1")
    written = describe(Settings(), name="a", address="FD00:0::1", roles=[Role.VOTER], driver="")
    assert (written.address, written.relocation_address) == ("fd00::1", "fd00::1")
    with pytest.raises(Refused, match="no node can be reached at fe80::1"):
        describe(Settings(), name="a", address="fe80::1", roles=[Role.VOTER], driver="")
    old = codec.decode(b'{"name": "a", "address": "10.0.0.1", "roles": ["storage"]}', Node)
    assert (old.storage, old.addresses) == ("10.0.0.1", ("10.0.0.1",))
    file = tmp_path / "veery.toml"
    file.write_text('[storage]\naddress = "stor"\n')
    with pytest.raises(Refused, match=r"veery.toml:1: storage.address is not an IP address: 'stor'"):
        load(file)


@pytest.mark.parametrize(("address", "shown"), [("10.0.0.1", "10.0.0.1"), ("fd00::1", "[fd00::1]")])
def test_an_address_in_a_url_or_an_option(address: str, shown: str, tmp_path: Path) -> None:
    node = Node(name="a", address=address, roles=(Role.VOTER,))
    assert client_url(Settings(), node) == f"https://{shown}:2379"
    assert peer_url(Settings(), node) == f"https://{shown}:2380"
    start = EtcdStart(initial_cluster=f"a={peer_url(Settings(), node)}", initial_cluster_state="new")
    cluster = Cluster(name="lab", id="1", ca="", authority="iqn.x")
    identity = Identity(cluster=cluster, node=node, voters=(client_url(Settings(), node),), etcd=start)
    words = list(map(str, server.command(Settings(), identity, (3, 5))))
    assert f"https://{shown}:2379,https://127.0.0.1:2379" in words
    assert TargetServer(address=address, port=3260, run=tmp_path).portal == f"{shown}:3260"
    ca = tls.make_ca("lab", epoch=1_795_430_400.0)
    cert = tls.sign(ca, tls.make_request("a").cert, name="a", addresses=[address], epoch=1_795_430_400.0)
    assert address in tls.facts(cert).addresses
