"""What a guest may send: frames through a real tap, a real bridge and nft, in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import ipaddress
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from veery.host.clock import RealClock
from veery.hypervisor.fake import FakeDriver, World
from veery.model.domain import DomainSpec, VifSpec
from veery.model.volume import Initiator, Volume
from veery.network import tap
from veery.network.announce import Voice, frames
from veery.network.filter import TapFilter, index_of
from veery.node.attachments import NodeAttacher

CLONE_NEWNET = 0x40000000
MAC, OTHER = "00:16:3e:11:22:33", "00:16:3e:99:99:99"
IP, IP6 = "10.9.8.5", "2001:db8::5"
BROADCAST, ARP, IPV4, IPV6 = "ff:ff:ff:ff:ff:ff", 0x0806, 0x0800, 0x86DD


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    """Move this thread into a new network namespace: bridge `vy-b0` and a wire to `vy-far`; its end removes all."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            lines = ["link add vy-b0 type bridge mcast_snooping 0", "link set vy-b0 up"]
            lines += ["link add vy-wire type veth peer name vy-far", "link set vy-wire master vy-b0 up"]
            lines += ["link set vy-far up"]
            subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=20)
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)


class Guest:
    """The end of a tap that a hypervisor holds, and a listener at the far end of the bridge's wire."""

    def __init__(self, device: str) -> None:
        self.handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.handle, tap.TUNSETIFF, struct.pack("16sH22x", device.encode(), tap.IFF_TAP | tap.IFF_NO_PI))
        self.far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.far.bind(("vy-far", 3))

    def close(self) -> None:
        self.far.close()
        os.close(self.handle)

    def passes(self, frame: bytes) -> bool:
        """Whether `frame` reaches the far end: before the last of some marks that surely do."""
        marks = [ethernet(0x88B5, os.urandom(8)) for _ in range(2)]
        self.send(frame)
        for mark in marks:
            self.send(mark)
        tagged = frame[12:14] in (b"\x81\x00", b"\x88\xa8")  # the kernel takes the first tag off before we hear of it
        wanted = frame[:12] + frame[16:] if tagged else frame
        heard, ends = False, time.monotonic() + 20
        self.far.settimeout(20)
        while time.monotonic() < ends:
            found = self.far.recv(4096)
            heard = heard or found[:56] == wanted[:56]
            if found == marks[-1]:
                return heard
        raise AssertionError("nothing passes")

    def send(self, frame: bytes) -> None:
        os.write(self.handle, frame)


@pytest.fixture
def guest(own_network: None) -> Iterator[list[Guest]]:
    """Guests of the test, closed at its end."""
    guests: list[Guest] = []
    yield guests
    for each in guests:
        each.close()


async def started(guests: list[Guest], device: str, taps: TapFilter, ip: str = "") -> Guest:
    """A guest behind a filtered tap."""
    await tap.create(device, "vy-b0")
    await taps.hold(device, MAC, ip)
    assert taps.trouble == ""
    guests.append(Guest(device))
    ends = time.monotonic() + 20
    while "forwarding" not in shell("bridge", "-d", "link", "show", "dev", device) and time.monotonic() < ends:
        await asyncio.sleep(0.01)
    return guests[-1]


def shell(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout


def ruleset() -> str:
    return shell("nft", "list", "ruleset")


# ---- frames


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(kind: int, body: bytes, *, source: str = MAC, target: str = BROADCAST) -> bytes:
    return (raw(target) + raw(source) + struct.pack("!H", kind) + body).ljust(60, b"\0")


def arp(mac: str = MAC, ip: str = IP, *, hardware: int = 1, operation: int = 2, source: str = MAC) -> bytes:
    return ethernet(ARP, arp_body(mac, ip, hardware=hardware, operation=operation), source=source)


def arp_body(mac: str, ip: str, *, hardware: int = 1, operation: int = 2) -> bytes:
    head = struct.pack("!HHBBH", hardware, IPV4, 6, 4, operation)
    return head + raw(mac) + socket.inet_aton(ip) + raw(BROADCAST) + socket.inet_aton("10.9.8.1")


def udp(ip: str, sport: int, dport: int) -> bytes:
    body = struct.pack("!HHHH", sport, dport, 48, 0) + bytes(40)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0)
    head += socket.inet_aton(ip) + socket.inet_aton("255.255.255.255")
    total = sum(struct.unpack("!10H", head))
    total = (total >> 16) + (total & 0xFFFF)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return ethernet(IPV4, head + body)


def six(source: str, protocol: int, body: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 255)
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address("ff02::1").packed
    return ethernet(IPV6, head + addresses + body, target="33:33:00:00:00:01")


def icmp6(source: str, kind: int, target: str = "::") -> bytes:
    return six(source, 58, struct.pack("!BBHI", kind, 0, 0, 0) + ipaddress.IPv6Address(target).packed)


VLAN0 = struct.pack("!H", 0)

FALSE = {
    "another MAC": ethernet(0x88B5, b"spoofed", source=OTHER),
    "another sender in ARP": arp(mac=OTHER),
    "another sender in ARP that says IEEE 802": arp(mac=OTHER, hardware=6),
    "ARP that says IEEE 802": arp(hardware=6),
    "a VLAN tag": ethernet(0x8100, VLAN0 + struct.pack("!H", 0x88B5) + bytes(46)),
    "a VLAN tag of a provider": ethernet(0x88A8, VLAN0 + struct.pack("!H", 0x88B5) + bytes(46)),
    "ARP behind a VLAN tag": ethernet(0x8100, VLAN0 + struct.pack("!H", ARP) + arp_body(OTHER, IP)),
    "ARP behind two VLAN tags": ethernet(
        0x88A8, VLAN0 + struct.pack("!H", 0x8100) + VLAN0 + struct.pack("!H", ARP) + arp_body(OTHER, IP)
    ),
    "a DHCP server's reply": udp(IP, 67, 68),
    "a DHCPv6 server's reply": six("fe80::5", 17, struct.pack("!HHHH", 547, 546, 12, 0) + b"data"),
    "a router advertisement": icmp6("fe80::5", 134),
    "a redirect": icmp6("fe80::5", 137),
    "spanning tree": ethernet(0x0026, b"BBC", target="01:80:c2:00:00:00"),
}
FALSE_ADDRESSES = {
    "another address in ARP": arp(ip="10.9.8.1"),
    "another IPv4 address": udp("10.9.8.1", 5000, 5000),
    "another IPv6 address": icmp6("2001:db8::1", 128),
    "another's advertisement": icmp6(IP6, 136, "2001:db8::1"),
}
TRUE = {
    "ARP reply": arp(),
    "ARP probe": arp(ip="0.0.0.0", operation=1),
    "a DHCP client": udp("0.0.0.0", 68, 67),
    "UDP": udp(IP, 5000, 5000),
    "echo of IPv6": icmp6(IP6, 128),
    "a link-local host of IPv6": icmp6("fe80::5", 128),
    "a probe of IPv6": icmp6("::", 135, IP6),
    "an advertisement": icmp6(IP6, 136, IP6),
    "a link-local advertisement": icmp6("fe80::5", 136, "fe80::5"),
}


async def test_a_guest_held_to_its_addresses(guest: list[Guest]) -> None:
    one = await started(guest, "vif7.0", TapFilter(), f"{IP} {IP6}/64")
    passed = {name for name, frame in {**FALSE, **FALSE_ADDRESSES}.items() if one.passes(frame)}
    assert passed == set()
    kept = {name for name, frame in TRUE.items() if not one.passes(frame)}
    assert kept == set()


async def test_a_guest_without_addresses_is_held_to_its_mac(guest: list[Guest]) -> None:
    one = await started(guest, "vif7.0", TapFilter())
    passed = {name for name, frame in FALSE.items() if one.passes(frame)}
    assert passed == set()
    kept = {name for name, frame in {**FALSE_ADDRESSES, **TRUE}.items() if not one.passes(frame)}
    assert kept == set()


async def test_without_a_filter_every_frame_passes_but_those_no_bridge_forwards(guest: list[Guest]) -> None:
    """The frames of FALSE are such as do harm: the bridge itself lets them through."""
    one = await started(guest, "vif7.0", TapFilter(on=False))
    kept = {name for name, frame in {**FALSE, **FALSE_ADDRESSES}.items() if not one.passes(frame)}
    assert kept == set()


async def test_what_announces_a_move_passes(guest: list[Guest]) -> None:
    """QEMU's announce_self sends RARP (net/announce.c) and the guest ARP and IPv6, all through the tap."""
    one = await started(guest, "vif7.0", TapFilter(), f"{IP} {IP6}")
    told = frames(Voice(mac=MAC, device="vif7.0", bridge="vy-b0", ip=f"{IP} {IP6}"))
    assert [one.passes(frame) for frame in told] == [True, True, True]


@pytest.mark.parametrize("target", [BROADCAST, "01:80:c2:00:00:0e"])
async def test_the_bridge_does_not_learn_anothers_mac(guest: list[Guest], target: str) -> None:
    """The bridge learns from frames for LLDP's address too, which pass no hook of its own."""
    bare = await started(guest, "vif7.0", TapFilter(on=False))
    bare.send(ethernet(0x88CC, b"lldp", source=OTHER, target=target))
    assert bare.passes(arp())
    assert OTHER in shell("bridge", "fdb", "show", "dev", "vif7.0")
    held = await started(guest, "vif8.0", TapFilter())
    spoofed = "00:16:3e:77:77:77"
    held.send(ethernet(0x88CC, b"lldp", source=spoofed, target=target))
    assert held.passes(arp())
    assert spoofed not in shell("bridge", "fdb", "show", "br", "vy-b0")


async def test_a_filter_goes_with_its_tap_and_leftovers_are_swept(guest: list[Guest]) -> None:
    taps = TapFilter()
    for device in ("vif1.0", "vif2.0", "vif3.0"):
        await tap.create(device, "vy-b0")
        await taps.hold(device, MAC)
    first, second, third = map(index_of, ("vif1.0", "vif2.0", "vif3.0"))
    await tap.delete("vif1.0")
    await taps.release(first)
    await taps.release(first)  # nothing is there
    assert f"tap{first}" not in ruleset()
    await tap.delete("vif2.0")  # and the daemon dies before it removes the filter: from Linux 6.16 on it stays
    anew = TapFilter()
    await anew.settle({"vif3.0": (MAC, "")})
    assert anew.trouble == ""
    assert f"tap{second}" not in ruleset()
    assert f"chain tap{third}" in ruleset()
    off = TapFilter(on=False)
    await off.settle({"vif3.0": (MAC, "")})
    assert "chain tap" not in ruleset()


async def test_a_flushed_ruleset_is_made_again(guest: list[Guest]) -> None:
    """`systemctl reload nftables` flushes every table of the node."""
    taps = TapFilter(interval=0)
    one = await started(guest, "vif7.0", taps)
    wanted = {"vif7.0": (MAC, "")}
    await taps.settle(wanted)
    shell("nft", "flush", "ruleset")
    assert one.passes(arp(mac=OTHER))
    await taps.settle(wanted)
    assert not one.passes(arp(mac=OTHER))
    shell("nft", "flush", "ruleset")
    await taps.release(index_of("vif7.0"))  # what is not there any more is no trouble
    assert taps.trouble == ""


async def test_a_tap_that_needs_no_filter_loses_an_old_one(guest: list[Guest]) -> None:
    taps = TapFilter()
    one = await started(guest, "vif7.0", taps)
    anew = TapFilter()
    await anew.settle({}, ["vif7.0"])
    assert one.passes(arp(mac=OTHER))


async def test_the_tables_of_others_are_left_alone(guest: list[Guest]) -> None:
    shell("nft", "add table netdev mine; add chain netdev mine tap7")
    await started(guest, "vif7.0", TapFilter())
    await TapFilter(on=False).settle({})
    assert "table netdev mine" in ruleset()


async def test_the_attacher_filters_and_lets_routers_be(guest: list[Guest]) -> None:
    """A domain with two interfaces, the second one a router's; then it ends."""
    attacher = NodeAttacher(
        "test1", FakeDriver("test1", World(), RealClock()), no_volume, no_initiator, filter=TapFilter()
    )
    vifs = (VifSpec(bridge="vy-b0", mac=MAC), VifSpec(bridge="vy-b0", mac=OTHER, filtered=False))
    attachments = await attacher.attach(DomainSpec(name="web", vifs=vifs))
    held, free = (index_of(vif.device) for vif in attachments.vifs)
    assert f"chain tap{held}" in ruleset()
    assert f"chain tap{free}" not in ruleset()
    await attacher.detach(attachments)
    assert "chain tap" not in ruleset()


async def no_volume(name: str) -> Volume | None:
    raise AssertionError(name)


async def no_initiator() -> Initiator:
    raise AssertionError


def test_the_rule_set_in_the_manual_can_be_pasted() -> None:
    text = (Path(__file__).parents[2] / "docs/hosts.md").read_text()
    block = text[text.index("    table inet veery_ports\n") :].partition("\n\n")[0]
    for _ in range(2):  # at the start of the machine, and at a reload
        subprocess.run(["nft", "-f", "-"], input=block, text=True, check=True, timeout=20)
    shell("nft", "add element inet veery_ports nodes { 172.16.31.4 }")
    assert "172.16.31.4" in ruleset()
    assert "tcp dport { 2379, 2380, 3260, 8001, 8002 } drop" in ruleset()
