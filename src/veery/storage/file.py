"""Volumes as sparse raw files in a folder, the pool."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from veery.errors import Failed, Refused
from veery.model.units import format_size
from veery.storage import room


class FileStore:
    """A base.BytesStore. A file is as large as its volume, but uses only the space of written data."""

    def __init__(self, pool: Path, state: Path | None = None) -> None:
        """`pool` is made when it is first needed; it must be an absolute path without commas and spaces, for tgtd.
        `state` is the folder of veery's own files, whose filesystem must not become full."""
        self._pool, self._state = pool, state

    def path(self, name: str) -> Path:
        """Implement BytesStore.path."""
        return self._pool / f"{name}.img"

    async def size(self, name: str) -> int | None:
        """Implement BytesStore.size."""
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    async def free(self) -> int:
        """Implement BytesStore.free: the filesystem's free space; the sparse files together may be promised more."""
        return shutil.disk_usage(self._ready()).free

    async def create(self, name: str, size: int) -> int:
        """Implement BytesStore.create. One sparse file may not be larger than the free space, all together may; not
        even together if veery's own state is on the same filesystem."""
        pool, path = self._ready(), self.path(name)
        await self._room(size)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise Refused(f"{path} exists already", hint="no volume's record names it: move it away") from error
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}") from error
        try:
            os.truncate(handle, size)
            os.fsync(handle)
            _sync_folder(pool)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise Failed(f"{path}: {error.strerror}") from error
        finally:
            os.close(handle)
        return size

    async def grow(self, name: str, size: int) -> int:
        """Implement BytesStore.grow."""
        now = await self._there(name)
        if size > now:
            await self._room(size - now)
            self._truncate(name, size)
        return max(size, now)

    async def clear(self, name: str) -> None:
        """Implement BytesStore.clear; this frees the space."""
        size = await self._there(name)
        await asyncio.to_thread(self._truncate, name, 0)
        self._truncate(name, size)

    async def set_aside(self, name: str, word: str) -> Path:
        """Implement BytesStore.set_aside."""
        path = self.path(name)
        aside = path.with_name(f"{path.name}.{word}")
        try:
            path.replace(aside)
            _sync_folder(self._pool)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}") from error
        return aside

    async def delete(self, name: str) -> None:
        """Implement BytesStore.delete."""
        try:
            await asyncio.to_thread(self.path(name).unlink)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Failed(f"{self.path(name)}: {error.strerror}") from error
        _sync_folder(self._pool)

    def _ready(self) -> Path:
        text = str(self._pool)
        if not self._pool.is_absolute() or "," in text or any(char.isspace() for char in text):
            raise Refused(
                f"volumes cannot be kept in {text!r}",
                hint="set storage.pool to an absolute path without commas and spaces",
            )
        try:
            self._pool.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(f"{self._pool}: {error.strerror}", hint="set storage.pool to a folder") from error
        return self._pool

    async def _there(self, name: str) -> int:
        size = await self.size(name)
        if size is None:
            raise Failed(f"{self.path(name)} is missing", hint=f"restore it, or: veery volume delete {name}")
        return size

    async def _room(self, size: int) -> None:
        free = await self.free()
        if size > free:
            raise Refused(
                f"{format_size(size)} do not fit: {self._pool} has {format_size(free)} free",
                hint="choose a smaller size, or free space there",
            )
        if self._state is None:
            return
        try:
            usage = room.read(self._pool, self._state)
        except OSError as error:
            raise Failed(f"{self._pool}: {error.strerror}") from error
        if usage.shared and size > usage.left:
            raise Refused(
                f"{format_size(size)} do not fit: {self._pool} shares a filesystem with veery's state, so volumes "
                f"may grow by {format_size(usage.left)} more in total",
                hint="set storage.pool to a filesystem of its own, or choose a smaller size",
            )

    def _truncate(self, name: str, size: int) -> None:
        path = self.path(name)
        try:
            with path.open("rb+") as file:
                file.truncate(size)
                os.fsync(file.fileno())
        except OSError as error:
            raise Failed(f"{path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
