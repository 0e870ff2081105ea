"""What the network sees of a move: the announcements, the switch's table, and the gap from three places at once."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from node_parts import Node, Workshop, aside

from veery.lab.plan import CLIENT, DOMAIN_ADDRESS, NAMESPACES, SWITCH
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.shell import Shell

NAME, MAC = "herald", "00:16:3e:0a:0b:0c"
PLACES = {CLIENT: "eth0", "test1": "xenbr0", "test2": "xenbr0"}


def link_local(mac: str) -> str:
    """EUI-64 (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return str(
        IPv6Address(bytes.fromhex("fe80" + "00" * 6) + bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:])
    )


class Ear(threading.Thread):
    """Hears every frame that comes in at a device of a namespace and is from MAC: (when, frame)."""

    def __init__(self, namespace: Path, device: str) -> None:
        super().__init__(daemon=True)
        self.heard: list[tuple[float, bytes]] = []
        self._namespace, self._device, self._ended = namespace, device, threading.Event()
        self._ready = threading.Event()

    def run(self) -> None:
        with self._namespace.open() as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) == 0
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:  # ETH_P_ALL
            raw.bind((self._device, 3))
            raw.settimeout(0.1)
            self._ready.set()
            while not self._ended.is_set():
                try:
                    frame = raw.recv(2048)
                except TimeoutError:
                    continue
                if frame[6:12].hex(":") == MAC:
                    self.heard.append((time.monotonic(), frame))

    def __enter__(self) -> Ear:
        self.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(20)

    def of_kind(self, kind: int) -> list[tuple[float, bytes]]:
        return [(at, frame) for at, frame in self.heard if int.from_bytes(frame[12:14], "big") == kind]


@pytest.fixture
def herald(near: Node, workshop: Workshop) -> Iterator[str]:
    """A domain that answers to IPv4 and IPv6; its MAC is told to nobody but by itself."""
    yield aside(_boot(near, workshop))
    aside(workshop.clear(NAME))
    aside(_ipv6(near.lab, on=False))


async def _ipv6(lab: Lab, *, on: bool) -> None:
    """The lab's machines have none by default."""
    for machine, device in PLACES.items():
        await lab.run(machine, ["sh", "-c", f"echo {int(not on)} >/proc/sys/net/ipv6/conf/{device}/disable_ipv6"])


async def _boot(near: Node, workshop: Workshop) -> str:
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    await _ipv6(near.lab, on=True)
    await near.veery("create", workshop.file(NAME, vif=[f"mac={MAC},bridge=xenbr0,ip={DOMAIN_ADDRESS}"]))
    async with Shell(near.lab.client("test1").address, NAME) as shell:
        await shell.ready()
        assert (await shell.run("cat /proc/sys/kernel/printk")).split()[0] == "1", "its kernel cuts into answers"
        await shell.run(f"ifconfig eth0 {DOMAIN_ADDRESS} netmask 255.255.0.0 up")
    return link_local(MAC)


async def port(lab: Lab) -> str:
    """The switch's port behind which it believes the domain to be."""
    shown = (await lab.run(SWITCH, ["bridge", "fdb", "show", "br", "br0"])).out
    return next((row.split()[2] for row in shown.splitlines() if row.startswith(MAC)), "")


async def held(lab: Lab, machine: str) -> bool:
    """Whether a machine's filter holds a tap to the domain's MAC and address."""
    rules = (await lab.run(machine, ["nft", "list", "ruleset"])).out
    return f"ether saddr != {MAC} drop" in rules and f"{DOMAIN_ADDRESS} }} drop" in rules


async def test_a_move_is_announced_and_seen_from_three_places(herald: str, near: Node, far: Node, lab: Lab) -> None:
    probes: dict[str, Probe] = {}
    try:
        for machine, device in PLACES.items():
            addresses = (DOMAIN_ADDRESS, f"{herald}%{device}")
            probes[machine] = await Probe.start(partial(lab.enter, machine), addresses, interval=0.005)
        for probe in probes.values():
            await probe.answered(deadline=60)
        assert await port(lab) == "test1"
        assert (await held(lab, "test1"), await held(lab, "test2")) == (True, False)
        with Ear(NAMESPACES / lab.plan.namespace(CLIENT), "eth0") as ear:
            for probe in probes.values():
                await probe.mark()
            await near.veery("migrate", NAME, "test2")
            for probe in probes.values():
                await probe.answered(deadline=60)
            readings = {machine: await probe.read() for machine, probe in probes.items()}
            await asyncio.sleep(2)  # the last rounds
        assert await port(lab) == "test2"
        assert (await held(lab, "test1"), await held(lab, "test2")) == (False, True)
    finally:
        for probe in probes.values():
            await probe.stop()

    for kind in (0x8035, 0x0806):  # the node's five rounds of each; QEMU's own RARPs come besides
        rounds = [at for at, frame in ear.of_kind(kind) if frame[:6] == b"\xff" * 6]
        print(f"{len(rounds)} frames of kind {kind:#x} in {1000 * (rounds[-1] - rounds[0]):.0f} ms")
        assert len(rounds) >= 5
        assert rounds[-1] - rounds[0] > 0.3
    for machine, seen in readings.items():
        for address, reading in seen.items():
            print(f"gap from {machine} to {address}: {reading.gap_ms} ms, {reading.lost} lost")
            assert reading.gap_ms is not None
            assert reading.gap_ms < 15_000  # an answer that waits for a table to age takes 300 s (bridge), 30 s (ARP)
