"""Checks of this machine's addresses and ports."""

from __future__ import annotations

import errno
import ipaddress
import socket

from veery.errors import Refused
from veery.model import endpoint


def require_own(address: str) -> None:
    """Raise Refused unless the IP `address` is one of this machine's. A text that is no IP address is not checked."""
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return
    with socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise Refused(f"{address} is not an address of this machine", hint="ip -brief address") from error


def is_own(address: str) -> bool:
    """Return whether the IP `address` is one of this machine's now."""
    try:
        require_own(address)
    except Refused:
        return False
    return True


def bind_refused(what: str, section: str, address: str, port: int, error: OSError) -> Refused:
    """Return the error of the listener `what` that could not bind; `section` is its part of veery.toml."""
    if error.errno == errno.EADDRNOTAVAIL:
        return Refused(
            f"{what} {endpoint.join(address, port)}: {address} is not an address of this machine",
            hint=f"ip -brief address shows its addresses; add this one again, or set {section}.address in veery.toml",
        )
    return Refused(
        f"{what} {endpoint.join(address, port)}: {error.strerror}",
        hint=f"see which program has it: ss -tlnp sport = :{port}; or set {section}.port in veery.toml",
    )
