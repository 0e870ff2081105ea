"""Announce a domain's new place to the network after a move.

QEMU and the guest make announcements too; those of this module come from the node and work with every driver. They
update:

- this node's bridge: its forwarding entry is set
- the switches: a RARP frame with the domain's MAC as source, as in QEMU's announce_self (net/announce.c)
- if the domain's file has an `ip=`, the neighbours' ARP tables: a gratuitous ARP (RFC 5227 section 3: an ARP request
  for the sender's own address); for IPv6 their neighbour caches: an unsolicited neighbour advertisement to all nodes
  (RFC 4861 sections 4.4 and 7.2.6)"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from veery.errors import Failed
from veery.network.link import netlink

ETH_P_ARP, ETH_P_RARP, ETH_P_IPV6 = 0x0806, 0x8035, 0x86DD
BROADCAST = b"\xff" * 6
PAUSES_S = (0.05, 0.15, 0.25, 0.35)  # between rounds: QEMU's announce-initial 50 ms, announce-step 100 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """One interface to announce: its MAC, its tap `device`, its `bridge`, and the file's `ip=` ("" or words; the
    addresses among them are announced, with or without a prefix length)."""

    mac: str
    device: str
    bridge: str
    ip: str = ""


async def announce(voices: Sequence[Voice], *, pauses: Sequence[float] = PAUSES_S) -> None:
    """Announce `voices` at once and again after each of `pauses` (seconds). Raises Failed if a bridge or a tap is gone:
    then nothing more is sent."""
    async with netlink() as kernel:
        for voice in voices:
            port = await kernel.find(voice.device)
            if port is None:
                raise Failed(f"cannot announce {voice.mac}: {voice.device} does not exist")
            if port.master:
                await kernel.learn(port, voice.mac)
    _send(voices)
    for pause in pauses:
        await asyncio.sleep(pause)
        _send(voices)


def frames(voice: Voice) -> tuple[bytes, ...]:
    """Return the Ethernet frames that announce `voice`."""
    mac = bytes.fromhex(voice.mac.replace(":", ""))
    nowhere = b"\0" * 4
    found = [_frame(mac, ETH_P_RARP, 3, mac, nowhere)]  # 3: RFC 903, "request reverse"
    for word in re.split(r"[\s,]+", voice.ip):
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_interface(word).ip
            if isinstance(address, ipaddress.IPv4Address):
                found.append(_frame(mac, ETH_P_ARP, 1, b"\0" * 6, address.packed))
            else:
                found.append(_advertisement(mac, address.packed))
    return tuple(found)


def _advertisement(mac: bytes, address: bytes) -> bytes:
    """Return an unsolicited neighbour advertisement of `address` at `mac`, override set, to all nodes (ff02::1)."""
    everybody = ipaddress.IPv6Address("ff02::1").packed
    override, own_link_layer = 0x20000000, b"\x02\x01"
    body = struct.pack("!BBHI", 136, 0, 0, override) + address + own_link_layer + mac
    pseudo = address + everybody + struct.pack("!II", len(body), 58)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(body)) // 2}H", pseudo + body))
    total = (total >> 16) + (total & 0xFFFF)
    body = body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
    head = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + address + everybody
    return b"\x33\x33\0\0\0\x01" + mac + struct.pack("!H", ETH_P_IPV6) + head + body


def _frame(mac: bytes, kind: int, operation: int, target: bytes, address: bytes) -> bytes:
    """Return a broadcast from `mac` in ARP format (RFC 826), with `address` as the sender's and the target's."""
    head = BROADCAST + mac + struct.pack("!H", kind)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + address + target + address
    return (head + body).ljust(60, b"\0")  # Ethernet's minimum length without its checksum


def _send(voices: Sequence[Voice]) -> None:
    for voice in voices:
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
                raw.bind((voice.bridge, 0))
                for frame in frames(voice):
                    raw.send(frame)
        except OSError as error:
            raise Failed(f"cannot announce {voice.mac} on {voice.bridge}: {error.strerror}") from error
