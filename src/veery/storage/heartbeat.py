"""Heartbeats on storage: each hypervisor writes one block a second to a LUN on every storage node.

Each hypervisor has its own iSCSI session for that. A node that cannot be reached but still writes heartbeats has not
lost its disks. The LUN is a sparse file of 512 MiB; the node's unique address selects its block. A node is alive if the
number in its block changes: clocks of other machines are not used."""

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

BLOCK_BYTES = 512
SLOTS = 1 << 20  # blocks of the LUN
TID = 30_000  # the target's number: volumes count up from 1
_BEAT = struct.Struct("!8sQB63s")
_MAGIC = b"veerybt1"


@dataclass(frozen=True, slots=True)
class HeartbeatBlock:
    """The content of a block: the node, its number, and whether the node has ended its domains and starts none."""

    node: str
    number: int
    stopped: bool = False


def heartbeat_iqn(authority: str, node: str) -> str:
    """Return the target name for heartbeats on storage node `node`; a volume's name has no second colon."""
    return f"iqn.{authority}:heartbeat:{node}"


def slot(address: str) -> int:
    """Return the block number of the node at `address`: its last 20 bits. Two nodes can have equal bits in networks
    larger than a /12; each then finds the other's name in its block, and neither counts as alive."""
    return int(ipaddress.ip_address(address)) % SLOTS


def encode(beat: HeartbeatBlock) -> bytes:
    """Return the block with the content `beat`."""
    data = _BEAT.pack(_MAGIC, beat.number, beat.stopped, beat.node.encode())
    return (data + zlib.crc32(data).to_bytes(4, "big")).ljust(BLOCK_BYTES, b"\0")


def decode(block: bytes) -> HeartbeatBlock | None:
    """Return the content of `block`; None if it was never or only partly written."""
    data, check = block[: _BEAT.size], block[_BEAT.size : _BEAT.size + 4]
    if len(check) < 4 or zlib.crc32(data).to_bytes(4, "big") != check:
        return None
    magic, number, stopped, node = _BEAT.unpack(data)
    return (
        HeartbeatBlock(node.rstrip(b"\0").decode(errors="replace"), number, bool(stopped)) if magic == _MAGIC else None
    )


class HeartbeatFile:
    """The LUN's file on the storage node."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Return the file's size in bytes."""
        return BLOCK_BYTES * SLOTS

    def make(self) -> None:
        """Make the sparse file if it is missing or has another size. Raises Failed."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if file.tell() != self.size:
                    file.truncate(self.size)
        except OSError as error:
            raise Failed(f"{self.path}: {error.strerror}", hint="the nodes' heartbeats are in this file") from error

    def read(self, number: int) -> HeartbeatBlock | None:
        """Return the content of block `number`; None also if the file cannot be read."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return decode(os.pread(handle, BLOCK_BYTES, number * BLOCK_BYTES))
        except OSError:
            return None
        finally:
            os.close(handle)


class HeartbeatSession:
    """One iSCSI session that writes heartbeats. `begin` opens it, `close` ends it."""

    def __init__(self, session: Session, writer: asyncio.StreamWriter) -> None:
        self._session, self._writer = session, writer

    @classmethod
    async def begin(cls, lun: IscsiLun, *, deadline: float) -> HeartbeatSession:
        """Log in. Raises Refused with the reason."""
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
        """Write `beat`; return when the target has it. Raises Failed: the session is then unusable."""
        try:
            async with asyncio.timeout(deadline):
                await self._session.write(lba, encode(beat))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise Failed(f"cannot write a heartbeat: {error or 'no answer in time'}") from error

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()
