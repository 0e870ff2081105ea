"""Local disks of fake drivers on a move: whole files over the sockets that QEMU's NBD would use.

A connection carries one disk, as often as it is pushed: a line of JSON, the file's bytes, and "!" as the answer."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from veery.errors import Failed
from veery.model import codec
from veery.model.volume import Attachments, CarriedDisk, LocalDisk

PUSH_DEADLINE_S = 20.0


class Push(msgspec.Struct):
    """The line before a file's bytes."""

    vdev: str
    size: int


def paths_of(attachments: Attachments) -> dict[str, Path]:
    """Return the files of a domain's disks by vdev, as far as it may write them."""
    return {
        disk.spec.vdev: Path(disk.source.path)
        for disk in attachments.disks
        if isinstance(disk.source, LocalDisk) and disk.spec.readwrite
    }


def look(attachments: Attachments) -> tuple[CarriedDisk, ...]:
    """See DiskMover.local_disks."""
    found = []
    for disk in attachments.disks:
        if isinstance(disk.source, LocalDisk) and disk.spec.readwrite:
            stat = Path(disk.source.path).stat()
            found.append(
                CarriedDisk(
                    vdev=disk.spec.vdev,
                    path=disk.source.path,
                    format=disk.source.format,
                    block=disk.source.block,
                    size=stat.st_size,
                    allocated=stat.st_blocks * 512,
                    inode=stat.st_ino,
                )
            )
    return tuple(found)


@dataclass(slots=True)
class Export:
    """A half domain's disks, which the source writes through the socket `path`."""

    files: dict[str, Path]
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=lambda: tempfile.TemporaryDirectory("-veery-fake"))
    server: asyncio.Server | None = None

    @property
    def path(self) -> Path:
        """The socket."""
        return Path(self.folder.name) / "disks"

    async def open(self) -> None:
        """Begin to serve."""
        self.server = await asyncio.start_unix_server(self._take, self.path)

    def close(self) -> None:
        """Stop serving."""
        if self.server is not None:
            self.server.close()
        self.folder.cleanup()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                push = codec.decode(line, Push)
                self.files[push.vdev].write_bytes(await reader.readexactly(push.size))
                writer.write(b"!")
                await writer.drain()
        writer.close()


@dataclass(slots=True)
class Mirror:
    """One disk that is being carried, as its source sees it."""

    vdev: str
    path: Path
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, vdev: str, path: Path, through: str) -> Mirror:
        """Connect. Raises Failed."""
        try:
            reader, writer = await asyncio.open_unix_connection(f"\0{through}")
        except OSError as error:
            raise Failed(f"the copy of {vdev} did not begin: {error}") from error
        return cls(vdev, path, reader, writer)

    async def push(self) -> int:
        """Make the other side's copy equal to this one; return the bytes sent. Raises Failed."""
        try:
            async with asyncio.timeout(PUSH_DEADLINE_S):
                data = self.path.read_bytes()
                self.writer.write(codec.encode(Push(self.vdev, len(data))) + b"\n" + data)
                await self.writer.drain()
                await self.reader.readexactly(1)
                return len(data)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise Failed(f"the copy of {self.vdev} broke") from error

    def close(self) -> None:
        """Close the connection."""
        self.writer.close()
