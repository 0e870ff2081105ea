"""Heartbeats on storage: each hypervisor writes one block a second to a LUN that every storage node serves for that,
through an iSCSI session of its own. So a node that cannot be reached, and still beats, has not lost its disks.

The LUN is a sparse file of 512 MiB; a node's block is found by its address, which no other node has. What a block says
is told from its number's having changed: no clock of another machine is believed."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, Refused
from veery.model import endpoint
from veery.model.volume import IscsiLun
from veery.storage.login import Session

BLOCK = 512
SLOTS = 1 << 20
TID = 30_000  # of the target: volumes count up from 1
_BEAT = struct.Struct("!8sQB63s")
_MAGIC = b"veerybt1"


@dataclass(frozen=True, slots=True)
class HeartbeatBlock:
    """What a block says: of which node, its number, and whether the node has ended its domains and starts none."""

    node: str
    number: int
    stopped: bool = False


def heartbeat_iqn(authority: str, node: str) -> str:
    """The target name of storage node `node`'s heartbeats; no volume's has a second colon."""
    return f"iqn.{authority}:heartbeat:{node}"


def slot(address: str) -> int:
    """The block of the node at `address`: its last 20 bits. Of two nodes that differ only before those (in networks
    larger than a /12) each would see the other's name in its block, and neither is taken for alive."""
    return int(ipaddress.ip_address(address)) % SLOTS


def encode(beat: HeartbeatBlock) -> bytes:
    """The block that says `beat`."""
    data = _BEAT.pack(_MAGIC, beat.number, beat.stopped, beat.node.encode())
    return (data + zlib.crc32(data).to_bytes(4, "big")).ljust(BLOCK, b"\0")


def decode(block: bytes) -> HeartbeatBlock | None:
    """What `block` says; None for one that was never written, or not to its end."""
    data, check = block[: _BEAT.size], block[_BEAT.size : _BEAT.size + 4]
    if len(check) < 4 or zlib.crc32(data).to_bytes(4, "big") != check:
        return None
    magic, number, stopped, node = _BEAT.unpack(data)
    return (
        HeartbeatBlock(node.rstrip(b"\0").decode(errors="replace"), number, bool(stopped)) if magic == _MAGIC else None
    )


class HeartbeatFile:
    """The bytes of the LUN, on the storage node."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """In bytes."""
        return BLOCK * SLOTS

    def make(self) -> None:
        """Have it there, all of it sparse. Raises Failed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if file.tell() != self.size:
                    file.truncate(self.size)
        except OSError as error:
            raise Failed(f"{self.path}: {error.strerror}", hint="heartbeats are kept there") from error

    def read(self, number: int) -> HeartbeatBlock | None:
        """What stands in block `number`; None also where the file cannot be read."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return decode(os.pread(handle, BLOCK, number * BLOCK))
        except OSError:
            return None
        finally:
            os.close(handle)


class HeartbeatSession:
    """One session that writes beats. Open it by `begin`, end it by `close`."""

    def __init__(self, session: Session, writer: asyncio.StreamWriter) -> None:
        self._session, self._writer = session, writer

    @classmethod
    async def begin(cls, lun: IscsiLun, *, deadline: float) -> HeartbeatSession:
        """Log in. Raises Refused with what stands in the way."""
        address, port = endpoint.split(lun.portal)
        writer = None
        try:
            async with asyncio.timeout(deadline):
                reader, writer = await asyncio.open_connection(address, port)
                session = Session(lun, reader, writer)
                await session.login()
                return cls(session, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            if writer is not None:
                writer.close()
            raise Refused(f"portal {lun.portal} does not answer: {error or 'timeout'}") from error
        except BaseException:
            if writer is not None:
                writer.close()
            raise

    async def write(self, lba: int, beat: HeartbeatBlock, *, deadline: float) -> None:
        """Write `beat`; returns when the target has it. Raises Failed: the session is of no more use then."""
        try:
            async with asyncio.timeout(deadline):
                await self._session.write(lba, encode(beat))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise Failed(f"a heartbeat was not written: {error or 'no answer in time'}") from error

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
