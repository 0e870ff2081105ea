"""Check that a path carries packets of the interface's MTU, with an echo request that may not be fragmented (RFC 792,
RFC 4443). A path that silently drops large packets still carries small ones: logins succeed, but disks hang."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import struct
from dataclasses import dataclass

REPLY_TIMEOUT_S = 0.7
TRIES = 2
_MTU_DISCOVER, _PROBE, _MTU = 10, 3, 14  # linux/in.h: IP_MTU_DISCOVER, IP_PMTUDISC_PROBE, IP_MTU
_MTU_DISCOVER6, _PROBE6, _MTU6 = 23, 3, 24  # linux/in6.h
_ICMP, _ICMP6 = struct.Struct("!BBHHH"), 58
MTU_MAX = 65535  # of a loopback interface: an IPv4 packet is no larger


@dataclass(frozen=True, slots=True)
class PathReading:
    """One check of a path. `mtu`: of the interface towards the address, in bytes. `lost`: why no packet of that size
    was answered ("": one was). `small`: whether a small packet was answered."""

    mtu: int
    lost: str = ""
    small: bool = True


async def read(address: str) -> PathReading:
    """Check the path to `address`. Raises OSError without a route, or if the process is not root."""
    mtu = min(_mtu(address), MTU_MAX)
    if not (lost := await _echo(address, mtu)):
        return PathReading(mtu)
    return PathReading(mtu, lost, small=not await _echo(address, 100))


def _mtu(address: str) -> int:
    six = ":" in address
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if six:
            probe.setsockopt(socket.IPPROTO_IPV6, _MTU_DISCOVER6, _PROBE6)
        else:
            probe.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _PROBE)
        probe.connect((address, 9))
        return int(probe.getsockopt(socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP, _MTU6 if six else _MTU))


async def _echo(address: str, size: int) -> str:
    """Return why no reply to a packet of `size` bytes came; "" if one did."""
    six = ":" in address
    family, protocol = (socket.AF_INET6, _ICMP6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.setblocking(False)
        if six:
            raw.setsockopt(socket.IPPROTO_IPV6, _MTU_DISCOVER6, _PROBE6)
        else:
            raw.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _PROBE)
        mark = secrets.token_bytes(16)
        packet = _request(mark, size - (40 if six else 20), six=six)
        why = f"no answer within {TRIES * REPLY_TIMEOUT_S:g} s"
        for _ in range(TRIES):
            try:
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    await loop.sock_sendto(raw, packet, (address, 0))
                    while not _answers(await loop.sock_recv(raw, 1 << 16), mark, six=six):
                        pass
                    return ""
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                why = os.strerror(error.errno)
        return why


def _request(mark: bytes, length: int, *, six: bool) -> bytes:
    """Return an echo request of `length` bytes that contains `mark`; for ICMPv6 the kernel computes the checksum."""
    body = mark.ljust(max(length - _ICMP.size, len(mark)), b"\0")
    kind = 128 if six else 8
    head = _ICMP.pack(kind, 0, 0, 0, 1)
    return _ICMP.pack(kind, 0, 0 if six else checksum(head + body), 0, 1) + body


def _answers(packet: bytes, mark: bytes, *, six: bool) -> bool:
    start = 0 if six else 4 * (packet[0] & 0x0F)
    return packet[start : start + 1] == (b"\x81" if six else b"\x00") and mark in packet


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)
