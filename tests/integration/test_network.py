"""Bridges and taps of the real kernel, in a network namespace of the test's own."""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from veery.errors import Refused
from veery.network import tap
from veery.network.announce import Voice, announce
from veery.network.bridge import bridges, require

CLONE_NEWNET = 0x40000000
MAC = "00:16:3e:11:22:33"


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    """Move this thread into a new network namespace with bridge `vy-b0`; its end removes all."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            ip("link add vy-b0 type bridge", "link set vy-b0 mtu 1400 address 02:00:00:00:00:01 up")
            ip("addr add 10.9.8.7/24 dev vy-b0")
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)


def ip(*lines: str) -> None:
    """Run lines of ip(8)."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=20)


def shown(name: str) -> str:
    return told("ip", "-d", "link", "show", name)


def told(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout


def hold(name: str) -> int:
    """Open tap `name` as a hypervisor does; its descriptor."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, tap.TUNSETIFF, struct.pack("16sH22x", name.encode(), tap.IFF_TAP | tap.IFF_NO_PI))
    return handle


async def test_a_tap_is_a_port_of_its_bridge() -> None:
    made = await tap.create(tap.name_of(7, 0), "vy-b0")
    assert made == tap.Tap(name="vif7.0", bridge="vy-b0", mtu=1400)
    (bridge,) = await bridges()
    assert (bridge.name, bridge.mac, bridge.mtu, bridge.up) == ("vy-b0", "02:00:00:00:00:01", 1400, True)
    assert "10.9.8.7/24" in bridge.addresses
    (port,) = bridge.ports
    assert (port.name, port.mac, port.up, port.mtu) == ("vif7.0", tap.BACKEND_MAC, True, 1400)
    assert "multi_queue" not in shown("vif7.0")
    assert "persist on" in shown("vif7.0")
    assert await tap.leftovers() == ("vif7.0",)
    await tap.delete("vif7.0")
    await tap.delete("vif7.0")
    assert (await bridges())[0].ports == ()
    assert await tap.leftovers() == ()


async def test_an_mtu_of_its_own_leaves_the_bridge_alone() -> None:
    ip("link add vy-b1 type bridge", "link set vy-b1 up")
    await tap.create("vif1.0", "vy-b1", mtu=1280)
    found = {bridge.name: bridge for bridge in await bridges()}["vy-b1"]
    assert (found.mtu, found.ports[0].mtu) == (1500, 1280)


async def test_the_bridge_keeps_its_address_when_taps_come() -> None:
    ip("link add vy-b1 type bridge", "link add vy-p0 type veth peer name vy-p1", "link set vy-p0 master vy-b1")
    ip("link set vy-b1 up")
    before = {bridge.name: bridge.mac for bridge in await bridges()}["vy-b1"]
    await tap.create("vif1.0", "vy-b1")
    assert {bridge.name: bridge.mac for bridge in await bridges()}["vy-b1"] == before


@pytest.mark.parametrize(
    ("bridge", "words"),
    [("nope", "there is no bridge nope"), ("lo", "not a bridge: lo"), ("vy-b9", "vy-b9 is down"), ("", "no bridge")],
)
async def test_a_bad_bridge_is_refused_and_nothing_is_left(bridge: str, words: str) -> None:
    ip("link add vy-b9 type bridge")
    with pytest.raises(Refused, match=words) as refusal:
        await tap.create("vif3.0", bridge)
    assert refusal.value.hint
    with pytest.raises(Refused, match=words):
        await require(bridge)
    assert await tap.leftovers() == ()


@pytest.mark.parametrize("name", ["", "sixteen-letters-", "a/b", ".."])
async def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="not a device name"):
        await tap.create(name, "vy-b0")


async def test_a_tap_in_use_is_refused_and_a_left_one_taken_over() -> None:
    await tap.create("vif4.0", "vy-b0")
    handle = hold("vif4.0")
    try:
        with pytest.raises(Refused, match=r"vif4\.0 is already in use"):
            await tap.create("vif4.0", "vy-b0")
    finally:
        os.close(handle)
    assert (await tap.create("vif4.0", "vy-b0")).name == "vif4.0"


async def test_another_device_is_never_taken_or_deleted() -> None:
    ip("link add vif5.0 type veth peer name vif5.1")
    with pytest.raises(Refused, match="in use"):
        await tap.create("vif5.0", "vy-b0")
    assert "veth" in shown("vif5.0")


async def test_an_announcement_reaches_the_wire_and_turns_the_bridge() -> None:
    """A domain was last seen behind the cable; it now runs here. Frames for it must go to its tap."""
    ip("link add vy-p0 type veth peer name vy-p1", "link set vy-p0 master vy-b0 up", "link set vy-p1 up")
    await tap.create("vif6.0", "vy-b0")
    handle = hold("vif6.0")
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035))
    try:
        wire.bind(("vy-p1", 0x8035))
        wire.settimeout(10)
        told("bridge", "fdb", "add", MAC, "dev", "vy-p0", "master", "dynamic")
        await announce([Voice(mac=MAC, device="vif6.0", bridge="vy-b0")], pauses=(0.01, 0.01))
        heard = [wire.recv(2048) for _ in range(3)]
        table = told("bridge", "fdb")  # while the tap is held: a port without carrier is forgotten
    finally:
        wire.close()
        os.close(handle)
    assert {frame[6:12].hex(":") for frame in heard} == {MAC}
    (entry,) = [line for line in table.splitlines() if line.startswith(MAC)]
    assert "dev vif6.0 " in entry
