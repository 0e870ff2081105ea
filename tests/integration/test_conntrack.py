"""Connections that a node's firewall tracks: the kernel's table itself, and what a move carries over of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from node_parts import Node, Workshop, aside

from veery.errors import Failed
from veery.lab.plan import CLIENT, DOMAIN_ADDRESS, NAMESPACES
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.model.flow import Flow
from veery.network import conntrack

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
NAME, MAC, PORT = "tracked", "00:16:3e:0a:0b:0d", 2222
WATCH = "table inet watch {\n chain input {\n type filter hook input priority 0\n ct state established accept\n }\n}\n"
GATE = """table inet gate {{
 chain forward {{
  type filter hook forward priority 0
  ct state established,related accept
  {opening}
  ip daddr {address} meta l4proto tcp drop
  ip saddr {address} meta l4proto tcp drop
 }}
}}
"""


def inside(namespace: Path, work: Callable[[], T]) -> T:
    """Do `work` in a network namespace, in a thread of its own."""

    def entered() -> T:
        with namespace.open() as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) == 0
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(entered).result()


@pytest.fixture
def own_network() -> Iterator[None]:
    """Move this thread into a new network namespace whose `lo` is up; its end removes all."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)


@contextlib.contextmanager
def connected(address: str) -> Iterator[tuple[str, int]]:
    """A TCP connection to `address`, over which something was said; its client's end."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2], timeout=20) as client,
        server.accept()[0] as other,
    ):
        client.sendall(b"x")
        assert other.recv(1) == b"x"
        yield client.getsockname()[:2]


def established(number: int) -> Flow:
    return Flow(
        source=f"10.{number >> 8}.{number & 255}.1",
        target="10.200.0.1",
        protocol=socket.IPPROTO_TCP,
        source_port=1000 + number,
        target_port=80,
        status=6,
        timeout=1000 + number,
        mark=7,
        zone=3,
        state=3,
        scales=(7, 9),
        flags=(11, 11),
    )


def test_nothing_is_tracked_and_nothing_begins_to_be(own_network: None) -> None:
    with connected("127.0.0.1"):
        assert conntrack.entries({}, "127.0.0.1") == ()
        assert conntrack.entries({}, "127.0.0.1") == ()
    assert conntrack.tracked() == 0
    assert conntrack.insert(()) == 0


def test_what_the_kernel_tracks_is_read_by_address(own_network: None) -> None:
    subprocess.run(["nft", "-f", "-"], input=WATCH, text=True, check=True, timeout=20)
    with connected("127.0.0.1") as four, connected("::1") as six, connected("127.0.0.2") as other:
        both = conntrack.entries({}, "127.0.0.1/8, ::1")
        assert {(flow.source, flow.source_port) for flow in both} >= {four, six}
        (only,) = conntrack.entries({}, "127.0.0.2")
        assert (only.target, only.source_port, only.state, only.status) == ("127.0.0.2", other[1], 3, 6)
        assert conntrack.entries({}, "") == conntrack.entries({}, "10.1.2.3") == ()


def test_flows_come_back_as_they_were_entered(own_network: None) -> None:
    tcp = established(1)
    udp = replace(tcp, protocol=17, status=0, state=0, scales=(0, 0), flags=(0, 0))
    six = replace(tcp, source="fd00::1", target="fd00::2")
    assert conntrack.insert((tcp, udp, six)) == 3
    assert conntrack.insert((tcp, udp, six)) == 3  # known already: brought up to date
    found = {replace(flow, timeout=tcp.timeout) for flow in conntrack.entries({}, "10.200.0.1 fd00::1")}
    assert found == {tcp, udp, six}
    with pytest.raises(Failed, match="cannot enter tracked connections"):
        conntrack.insert((replace(tcp, state=99, source="10.9.9.9"),))


def test_of_a_long_table_only_the_address_is_read(own_network: None) -> None:
    flows = [established(number) for number in range(conntrack.SHORT_TABLE_ENTRIES + 100)]
    six = replace(established(1), source="fd00::1", target="fd00::2")
    assert conntrack.insert([*flows, six], deadline=30) == len(flows) + 1
    assert conntrack.tracked() > conntrack.SHORT_TABLE_ENTRIES
    (found,) = conntrack.entries({}, flows[70].source, deadline=30)
    assert found.source_port == flows[70].source_port
    assert [flow.source for flow in conntrack.entries({}, "fd00::2", deadline=30)] == ["fd00::1"]
    everything = conntrack.entries({}, "10.200.0.1", deadline=30)
    assert len(everything) == len(flows)
    assert everything[0].source == flows[-1].source  # what lasts longest comes first
    with pytest.raises(Failed, match="timeout"):
        conntrack.insert(flows, deadline=0.0)


def test_addresses_are_learnt_from_the_neighbours_of_its_bridge(own_network: None) -> None:
    lines = ["link add vy-b0 type bridge", "link set vy-b0 up", "link add vy-b1 type bridge", "link set vy-b1 up"]
    lines += [
        f"neigh add {address} dev {device} lladdr {mac} nud reachable"
        for address, device, mac in (
            ("10.0.0.4", "vy-b0", MAC),
            ("fd00::4", "vy-b0", MAC),
            ("10.0.0.5", "vy-b1", MAC),
            ("10.0.0.6", "vy-b0", "00:16:3e:00:00:01"),
        )
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=20)
    mine = [replace(established(1), target=target) for target in ("10.0.0.4", "10.0.0.5", "10.0.0.6")]
    six = replace(established(1), source="fd00::9", target="fd00::4")
    assert conntrack.insert((*mine, six)) == 4
    assert {flow.target for flow in conntrack.entries({MAC: "vy-b0"}, "")} == {"10.0.0.4", "fd00::4"}
    assert conntrack.entries({MAC: "vy-none"}, "") == ()


# ---- a move


@pytest.fixture
def guarded(near: Node, workshop: Workshop) -> Iterator[None]:
    """A domain that echoes TCP; both nodes let established connections to it through, the first one new ones too."""
    try:
        yield aside(_guard(near, workshop))
    finally:
        for node in ("test1", "test2"):
            aside(near.lab.run(node, ["nft", "delete", "table", "inet", "gate"], check=False))
            aside(near.lab.run(node, ["sh", "-c", "echo 1 >/proc/sys/net/netfilter/nf_conntrack_tcp_loose"]))
        aside(workshop.clear(NAME))


async def _guard(near: Node, workshop: Workshop) -> None:
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    await near.veery("create", workshop.file(NAME, vif=[f"mac={MAC},bridge=xenbr0,ip={DOMAIN_ADDRESS}"]))
    async with Shell(near.lab.client("test1").address, NAME) as shell:
        await shell.ready()
        await shell.run(f"ifconfig eth0 {DOMAIN_ADDRESS} netmask 255.255.0.0 up")
        await shell.run(f"(busybox nc -ll -p {PORT} -e cat >/dev/null 2>&1 &)")
    for node, opening in (("test1", f"ct state new tcp dport {PORT} accept"), ("test2", "")):
        orders = (
            "echo 0 >/proc/sys/net/netfilter/nf_conntrack_tcp_loose",  # a connection without an entry is invalid
            "echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables",
            "exec nft -f -",
        )
        rules = GATE.format(opening=opening, address=DOMAIN_ADDRESS).encode()
        await near.lab.run(node, ["sh", "-ec", "; ".join(orders)], stdin=rules)


def echoed(client: socket.socket, text: bytes, *, within: float) -> bool:
    """Whether `text` comes back; it is not lost when it comes later."""
    client.settimeout(within)
    client.sendall(text)
    return awaited(client, text, within=within)


def awaited(client: socket.socket, text: bytes, *, within: float) -> bool:
    client.settimeout(within)
    seen = b""
    try:
        while len(seen) < len(text):
            seen += client.recv(len(text) - len(seen))
    except TimeoutError:
        return False
    return seen == text


def connect(lab: Lab) -> socket.socket:
    """A connection from the client to the domain, which may have to start listening first."""

    def connected() -> socket.socket:
        ends = time.monotonic() + 60
        while True:
            try:
                return socket.create_connection((DOMAIN_ADDRESS, PORT), timeout=20)
            except ConnectionRefusedError:
                assert time.monotonic() < ends
                time.sleep(0.1)

    return inside(NAMESPACES / lab.plan.namespace(CLIENT), connected)


async def test_a_connection_goes_on_where_both_nodes_filter(guarded: None, near: Node, lab: Lab) -> None:
    there = NAMESPACES / lab.plan.namespace("test2")
    client = await asyncio.to_thread(connect, lab)
    with contextlib.closing(client):
        assert await asyncio.to_thread(echoed, client, b"before\n", within=20)
        await near.veery("migrate", NAME, "test2")
        assert await asyncio.to_thread(echoed, client, b"after\n", within=30)

        flows = await asyncio.to_thread(inside, there, lambda: conntrack.entries({}, DOMAIN_ADDRESS))
        mine = [flow for flow in flows if flow.source_port == client.getsockname()[1]]
        assert [(flow.state, flow.status) for flow in mine] == [(3, 6)]
        # the proof that the entry did it: without it the connection stalls, with it again it goes on
        gone = [replace(flow, timeout=1) for flow in mine]
        assert await asyncio.to_thread(inside, there, lambda: conntrack.insert(gone)) == 1
        await asyncio.sleep(3)
        assert not await asyncio.to_thread(echoed, client, b"stalls\n", within=2)
        assert await asyncio.to_thread(inside, there, lambda: conntrack.insert(mine)) == 1
        assert await asyncio.to_thread(awaited, client, b"stalls\n", within=30)
