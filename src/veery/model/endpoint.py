"""Texts of an address and a port: "172.16.31.1:3260", "[fd00::3]:3260"."""

from __future__ import annotations

import contextlib
import ipaddress


def bracketed(address: str) -> str:
    """Return `address` in the form before a port or in a URL: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def join(address: str, port: int) -> str:
    """Return `address` and `port` as one text."""
    return f"{bracketed(address)}:{port}"


def split(endpoint: str) -> tuple[str, int]:
    """Return address (without brackets) and port of a text from `join`. Raises ValueError for anything else."""
    address, _, port = endpoint.rpartition(":")
    inner = address.removeprefix("[").removesuffix("]")
    if not address or bracketed(inner) != address:
        raise ValueError(f"{endpoint!r} is not ADDRESS:PORT")
    return inner, int(port)


def canonical(address: str) -> str:
    """Return the canonical form of an IP address, so that two texts of one address are equal; other texts unchanged."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address))
    return address
