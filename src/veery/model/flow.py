"""One connection that a node's firewall tracks, in a form that another node's kernel accepts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A tracked connection over TCP or UDP, never one with address translation.

    `source` and `target` are IPv4 or IPv6 addresses as its first packet had them. `status` holds IPS_SEEN_REPLY (2)
    and IPS_ASSURED (4) of linux/netfilter/nf_conntrack_common.h; `timeout` is in seconds. For TCP: `state` as
    nf_conntrack_tcp.h counts (3: established), and for each direction the window `scales` and the `flags`
    (IP_CT_TCP_FLAG_*)."""

    source: str
    target: str
    protocol: int
    source_port: int
    target_port: int
    status: int
    timeout: int
    mark: int = 0
    zone: int = 0
    state: int = 0
    scales: tuple[int, int] = (0, 0)
    flags: tuple[int, int] = (0, 0)
