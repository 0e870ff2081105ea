"""Check that the target daemon of a portal answers: the kernel alone accepts connections even if the daemon hangs."""

from __future__ import annotations

import asyncio
import os
import struct

from veery.errors import Refused
from veery.model import endpoint

PORTAL_TIMEOUT_S = 3.0
_LOGIN = struct.Struct("!BBBBI6sHIHHII16x")
_LOGIN_RESPONSE, _REJECT = 0x23, 0x3F


def greeting(initiator: str) -> bytes:
    """Return the first Login Request of a discovery session (RFC 7143, 11.12). Every target answers it, even if with a
    refusal; no login is made."""
    text = f"InitiatorName={initiator}\0SessionType=Discovery\0AuthMethod=None\0".encode()
    immediate, transit_to_operational = 0x43, 0x81
    isid = b"\x80veery"  # qualifier format "random"
    header = _LOGIN.pack(immediate, transit_to_operational, 0, 0, len(text), isid, 0, 1, 0, 0, 1, 0)
    return header + text + bytes(-len(text) % 4)


async def require(portal: str, initiator: str, *, deadline: float = PORTAL_TIMEOUT_S) -> None:
    """Return once the target daemon at `portal` ("ADDRESS:PORT") has answered. Raises Refused."""
    address, port = endpoint.split(portal)
    try:
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                writer.write(greeting(initiator))
                opcode = (await reader.readexactly(48))[0] & 0x3F
            finally:
                writer.close()
    except TimeoutError as error:
        raise Refused(
            f"target portal {portal} does not answer", hint="does tgtd hang there? is the network path up?"
        ) from error
    except OSError as error:
        raise Refused(
            f"target portal {portal}: {os.strerror(error.errno) if error.errno else error}",
            hint="is tgtd running there, and is the network path up?",
        ) from error
    except asyncio.IncompleteReadError as error:
        raise Refused(f"target portal {portal} closed the connection", hint="see the log of tgtd there") from error
    if opcode not in (_LOGIN_RESPONSE, _REJECT):
        raise Refused(f"{portal} is no iSCSI target", hint="what listens there? ss -tlnp on that node")
