"""The connections of a domain that this node's firewall tracks: read on the source, entered on the target.

A firewall that accepts established connections (`ct state established accept`) knows them by entries in the kernel's
table, which stay behind when a domain moves. This module uses ctnetlink directly, since every millisecond counts while
the domain is paused: it reads a long table by address, and enters many entries with one packet. Message layouts:
linux/netfilter/nfnetlink_conntrack.h, linux/neighbour.h; the kernel's side: net/netfilter/nf_conntrack_netlink.c.

Reading changes nothing: if nothing is tracked, no socket is opened, so no module is loaded; and no request here
registers a hook."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from ipaddress import ip_address, ip_interface
from pathlib import Path

from veery.errors import Failed
from veery.model.flow import Flow

FLOWS_MAX = 4096  # of one domain
SHORT_TABLE_ENTRIES = 1024  # a table up to this length is read as a whole
CHUNK_FLOWS = 64  # in one packet to the kernel; its answers fit into a socket's buffer
COUNT_FILE = Path("/proc/sys/net/netfilter/nf_conntrack_count")  # of the reader's network namespace

NETLINK_NETFILTER, NETLINK_CAP_ACK, SOL_NETLINK = 12, 10, 270
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_CREATE = 0x1, 0x4, 0x300, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
CT_NEW, CT_GET = 0x100, 0x101  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
RTM_NEWNEIGH, RTM_GETNEIGH, NDA_DST, NDA_LLADDR = 28, 30, 1, 2
NUD_FAILED = 0x20

NESTED = 0x8000
ORIG, REPLY, STATUS, PROTOINFO, TIMEOUT, MARK, ZONE, FILTER = 1, 2, 3, 4, 7, 8, 18, 25  # CTA_*
SOURCE, TARGET = 1, 2  # CTA_FILTER_F_CTA_IP_SRC, CTA_FILTER_F_CTA_IP_DST of the kernel
SEEN_REPLY, ASSURED, CONFIRMED, NAT = 2, 4, 8, 0x30  # IPS_*
TCP_FLAGS_KEPT = (
    0x07  # window scale, SACK, closed first; the others need sequence numbers, which ctnetlink does not give
)
TCP_BE_LIBERAL = 0x08  # do not check windows, which would need the sequence numbers

Attributes = Mapping[int, bytes]


def entries(macs: Mapping[str, str], words: str, *, deadline: float = 1.0) -> tuple[Flow, ...]:
    """Return the flows of a domain, those with the longest timeout first, at most FLOWS_MAX.

    `macs`: its interfaces (MAC: bridge). `words`: the addresses in its file. The addresses that this node's neighbour
    table has for one of the MACs on its bridge are added. Blocks for at most `deadline` seconds: call it in a thread.
    Raises Failed."""
    many = tracked()
    if not many:
        return ()
    ends = time.monotonic() + deadline
    addresses = {*named(words), *node_cache(macs, ends)}
    found: set[Flow] = set()
    try:
        with closing(_Connection(NETLINK_NETFILTER, ends)) as kernel:
            for request in requests(addresses, many):
                flows = (parse(body) for body in kernel.dump(CT_GET, CT_NEW, request))
                found.update(flow for flow in flows if flow and not addresses.isdisjoint((flow.source, flow.target)))
    except OSError as error:
        raise Failed(f"cannot read tracked connections: {error.strerror or 'timeout'}") from error
    return tuple(sorted(found, key=lambda flow: -flow.timeout)[:FLOWS_MAX])


def insert(flows: Sequence[Flow], *, deadline: float = 1.0) -> int:
    """Enter `flows`, or update those that exist; return how many of them exist now.

    If this kernel tracks no connections, do nothing: 0. Blocks for at most `deadline` seconds: call it in a thread.
    Raises Failed if the kernel accepts none of them, or the time is up."""
    if not flows or not COUNT_FILE.exists():
        return 0
    taken, failure = 0, 0
    try:
        with closing(_Connection(NETLINK_NETFILTER, time.monotonic() + deadline)) as kernel:
            for begin in range(0, len(flows), CHUNK_FLOWS):
                codes = kernel.order(CT_NEW, [compose(flow) for flow in flows[begin : begin + CHUNK_FLOWS]])
                # EBUSY: the entry exists, in a later state than `flows` has (ctnetlink_change_status)
                taken += sum(code in (0, errno.EBUSY) for code in codes)
                failure = next((code for code in codes if code), failure)
    except OSError as error:
        reason = error.strerror or "timeout"
        raise Failed(f"{taken} of {len(flows)} tracked connections entered, then: {reason}") from error
    if not taken:
        raise Failed(f"cannot enter tracked connections: {os.strerror(failure)}")
    return taken


def tracked() -> int:
    """Return the number of connections that this node tracks; 0 also if its kernel cannot. Takes about 30 us."""
    try:
        return int(COUNT_FILE.read_text())
    except (OSError, ValueError):
        return 0


def named(words: str) -> tuple[str, ...]:
    """Return the addresses among `words` (of a file's `ip=`), without their prefix lengths."""
    found = []
    for word in re.split(r"[\s,]+", words):
        try:
            found.append(str(ip_interface(word).ip))
        except ValueError:
            continue
    return tuple(found)


def node_cache(macs: Mapping[str, str], ends: float) -> tuple[str, ...]:
    """Return the addresses of these MACs, each on its bridge, in the kernel's neighbour table. Raises Failed."""
    wanted = {}
    for mac, bridge in macs.items():
        try:
            wanted[socket.if_nametoindex(bridge), bytes.fromhex(mac.replace(":", ""))] = mac
        except OSError:  # the bridge does not exist
            continue
    found = []
    try:
        with closing(_Connection(socket.NETLINK_ROUTE, ends)) as kernel:
            for body in kernel.dump(RTM_GETNEIGH, RTM_NEWNEIGH, struct.pack("=BxxxiHBB", 0, 0, 0, 0, 0)):
                _, index, state, _, _ = struct.unpack_from("=BxxxiHBB", body)
                rows = attributes(body[12:])
                if (index, rows.get(NDA_LLADDR)) in wanted and NDA_DST in rows and not state & NUD_FAILED:
                    found.append(str(ip_address(rows[NDA_DST])))
    except OSError as error:
        raise Failed(f"cannot read the neighbour table: {error.strerror or 'timeout'}") from error
    return tuple(found)


# ---- ctnetlink's messages


def requests(addresses: set[str], many: int) -> tuple[bytes, ...]:
    """Return the bodies of the dump requests for the flows of `addresses` in a table of `many`.

    Each dump walks all of the kernel's buckets (20 ms for 262144), and each entry costs veery 50 us. So a short table
    is read as a whole; for a long one the kernel filters (CTA_FILTER: Linux 5.8; an older kernel sends all entries).
    The kernel's test of IPv6 addresses is inverted (ctnetlink_filter_match_tuple: `!ipv6_addr_cmp`), so only IPv4 is
    filtered."""
    if many <= SHORT_TABLE_ENTRIES or not addresses:
        return (struct.pack("!BBH", socket.AF_UNSPEC, 0, 0),) if addresses else ()
    found = [_request(name, side) for name in sorted(addresses) if ":" not in name for side in (SOURCE, TARGET)]
    if any(":" in name for name in addresses):
        found.append(_family("::"))
    return tuple(found)


def parse(body: bytes) -> Flow | None:
    """Parse a ctnetlink message (nfgenmsg and attributes). None for entries that do not move with a domain: other
    protocols, address translation, zones of one direction, entries that are about to end."""
    rows = attributes(body[4:])
    status = _number(rows.get(STATUS))
    way = attributes(rows.get(ORIG, b""))
    names, ports = attributes(way.get(1, b"")), attributes(way.get(2, b""))
    protocol = ports.get(1, b"\0")[0]
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) or status & NAT or 3 in way or TIMEOUT not in rows:
        return None
    tcp = attributes(attributes(rows.get(PROTOINFO, b"")).get(1, b""))
    return Flow(
        source=str(ip_address(names.get(1) or names[3])),
        target=str(ip_address(names.get(2) or names[4])),
        protocol=protocol,
        source_port=_number(ports.get(2)),
        target_port=_number(ports.get(3)),
        status=status & (SEEN_REPLY | ASSURED),
        timeout=_number(rows[TIMEOUT]),
        mark=_number(rows.get(MARK)),
        zone=_number(rows.get(ZONE)),
        state=_number(tcp.get(1)),
        scales=(_number(tcp.get(2)), _number(tcp.get(3))),
        flags=(_first(tcp.get(4)), _first(tcp.get(5))),
    )


def compose(flow: Flow) -> bytes:
    """Return the body of the ctnetlink message that enters `flow`. It turns the check of windows off (be liberal),
    since ctnetlink gives no sequence numbers."""
    near, far = (flow.source, flow.source_port), (flow.target, flow.target_port)
    parts = [
        _tuple(ORIG, flow.protocol, near, far),
        _tuple(REPLY, flow.protocol, far, near),
        attribute(STATUS, struct.pack("!I", flow.status | CONFIRMED)),
        attribute(TIMEOUT, struct.pack("!I", flow.timeout)),
    ]
    if flow.mark:
        parts.append(attribute(MARK, struct.pack("!I", flow.mark)))
    if flow.zone:
        parts.append(attribute(ZONE, struct.pack("!H", flow.zone)))
    if flow.protocol == socket.IPPROTO_TCP:
        mask = TCP_FLAGS_KEPT | TCP_BE_LIBERAL
        kept = [bytes([each & TCP_FLAGS_KEPT | TCP_BE_LIBERAL, mask]) for each in flow.flags]
        values = (bytes([flow.state]), *(bytes([scale]) for scale in flow.scales), *kept)
        tcp = b"".join(attribute(kind, value) for kind, value in enumerate(values, 1))
        parts.append(attribute(PROTOINFO | NESTED, attribute(1 | NESTED, tcp)))
    return _family(flow.source) + b"".join(parts)


def attributes(data: bytes) -> Attributes:
    """Return the netlink attributes in `data`: kind -> value."""
    found, place = {}, 0
    while place + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, place)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[place + 4 : place + length]
        place += (length + 3) & ~3
    return found


def attribute(kind: int, value: bytes) -> bytes:
    """Return one netlink attribute, padded."""
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def _request(address: str, side: int) -> bytes:
    """Return the dump request for entries with this IPv4 address as source or target (`side`)."""
    name = attribute(1 | NESTED, attribute(side, ip_address(address).packed))
    mask = attribute(FILTER | NESTED, attribute(1, struct.pack("=I", side)))
    return _family(address) + attribute(ORIG | NESTED, name) + mask


def _family(address: str) -> bytes:
    """Return struct nfgenmsg for the family of `address`."""
    return struct.pack("!BBH", socket.AF_INET6 if ":" in address else socket.AF_INET, 0, 0)


def _tuple(kind: int, protocol: int, source: tuple[str, int], target: tuple[str, int]) -> bytes:
    """Return the attribute of one direction; `source` and `target` are addresses with ports."""
    first = 3 if ":" in source[0] else 1
    names = attribute(first, ip_address(source[0]).packed) + attribute(first + 1, ip_address(target[0]).packed)
    ports = attribute(1, bytes([protocol]))
    ports += attribute(2, struct.pack("!H", source[1])) + attribute(3, struct.pack("!H", target[1]))
    return attribute(kind | NESTED, attribute(1 | NESTED, names) + attribute(2 | NESTED, ports))


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def _first(value: bytes | None) -> int:
    """Return the flags of a pair of flags and mask."""
    return value[0] if value else 0


class _Connection:
    """One netlink socket in this thread's network namespace. Every request ends at `ends` (time.monotonic) with
    TimeoutError."""

    def __init__(self, protocol: int, ends: float) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._ends = ends
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def dump(self, kind: int, answer: int, body: bytes) -> Iterator[bytes]:
        """Send a dump request; yield the bodies of the answers of kind `answer`."""
        self._socket.send(_message(kind, NLM_F_REQUEST | NLM_F_DUMP, 1, body))
        while True:
            for received, _, data in self._answers():
                if received == NLMSG_DONE:
                    return
                if received == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data)[0]
                    raise OSError(code, os.strerror(code))
                if received == answer:
                    yield data

    def order(self, kind: int, bodies: Sequence[bytes]) -> list[int]:
        """Send many requests at once; return the kernel's error number for each, 0: done."""
        flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK
        self._socket.send(b"".join(_message(kind, flags, number, body) for number, body in enumerate(bodies)))
        codes: dict[int, int] = {}
        while len(codes) < len(bodies):
            for received, number, data in self._answers():
                if received == NLMSG_ERROR:
                    codes[number] = -struct.unpack_from("=i", data)[0]
        return list(codes.values())

    def _answers(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield kind, number and body of each message in the next packet."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        data, place = self._socket.recv(1 << 17), 0
        while place + 16 <= len(data):
            length, kind, _, number, _ = struct.unpack_from("=IHHII", data, place)
            if length < 16:
                break
            yield kind, number, data[place + 16 : place + length]
            place += (length + 3) & ~3


def _message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, number, 0) + body
