"""Checks whether ports of an address can be reached from here, and opens listeners for such a check."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator, Sequence

from veery.errors import Refused
from veery.model import endpoint

TRY_S = 3.0
PORTS_MAX = 16


async def missing(address: str, ports: Sequence[int]) -> str:
    """Return which of `ports` of `address` cannot be reached from here, and why; "" if all can. Raises Refused if the
    address or a port is invalid."""
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise Refused(f"not an IP address: {address!r}", hint="veery node list shows the addresses") from error
    if len(ports) > PORTS_MAX or not all(0 < port < 65536 for port in ports):
        raise Refused(f"give at most {PORTS_MAX} ports, each from 1 to 65535", hint="docs/api.md")
    found = await asyncio.gather(*(_try(address, port) for port in ports))
    return "; ".join(f"port {port}: {why}" for port, why in zip(ports, found, strict=True) if why)


async def _try(address: str, port: int) -> str:
    try:
        async with asyncio.timeout(TRY_S):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
    except TimeoutError:
        return f"no answer within {TRY_S:g} s"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return ""


@contextlib.contextmanager
def listening(address: str, ports: Sequence[int]) -> Iterator[None]:
    """Accept connections to these ports within the context; nothing is sent. A port that already has a listener is left
    to it. Raises Refused if this machine does not have the address."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((address, port))
                listener.listen(64)
            except OSError as error:
                listener.close()
                if error.errno != errno.EADDRINUSE:
                    raise Refused(
                        f"cannot listen at {endpoint.join(address, port)}: {error.strerror}",
                        hint="ip -brief address shows this machine's addresses",
                    ) from error
        yield
