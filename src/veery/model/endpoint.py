"""An address with a port, as text: "172.16.31.1:3260", "[fd00::3]:3260"."""

from __future__ import annotations

import contextlib
import ipaddress


def bracketed(address: str) -> str:
    """`address` as it stands before a port, and in a URL."""
    return f"[{address}]" if ":" in address else address


def join(address: str, port: int) -> str:
    """`address` and `port` as one text."""
    return f"{bracketed(address)}:{port}"


def split(endpoint: str) -> tuple[str, int]:
    """Address, without brackets, and port of what `join` made. Raises ValueError for anything else."""
    address, _, port = endpoint.rpartition(":")
    inner = address.removeprefix("[").removesuffix("]")
    if not address or bracketed(inner) != address:
        raise ValueError(f"{endpoint!r} is no ADDRESS:PORT")
    return inner, int(port)


def canonical(address: str) -> str:
    """The one way to write an IP address; anything else as it is. Two texts of one address become equal."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(address))
    return address
