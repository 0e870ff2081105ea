"""Atomic writes of small files, and flushing files to their disks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o600, sync: bool = False) -> None:
    """Replace `path` by `data` in one step (a temporary file beside it, then rename); make its folder if needed.

    With `sync` the bytes are on the disk before the rename, and the rename before the return. Raises OSError (on a full
    disk the old file stays)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if sync:
                os.fsync(file.fileno())
        Path(name).rename(path)
        if sync:
            sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def clear_partial(path: Path) -> None:
    """Remove the temporary files of killed `write_atomic` calls for `path`, while no task writes it. Raises nothing."""
    for left in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):
            left.unlink()


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


async def keep_synced(paths: Sequence[str | Path], every: float) -> None:
    """Flush the files and devices at `paths`, which others write, to their disks every `every` seconds, until
    cancelled. A device that hangs blocks only this task."""
    while True:
        await asyncio.sleep(every)
        for path in paths:
            try:
                await _apart(functools.partial(_sync_data, path))
            except OSError as error:  # the writer reports it too
                log.warning("%s: %s", path, error.strerror)


async def _apart(work: Callable[[], None]) -> None:
    """Run `work`, which may hang in the kernel, in its own daemon thread: so the loop's few threads stay free, and the
    process's end does not wait for it. Raises OSError as `work` does."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: OSError | None) -> None:
        if done.done():  # cancelled
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failed: OSError | None = None
        try:
            work()
        except OSError as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, failed)

    threading.Thread(target=run, name="sync", daemon=True).start()
    await done


def _sync_data(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(handle)
    finally:
        os.close(handle)
