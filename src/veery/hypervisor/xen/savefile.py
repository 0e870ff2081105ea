"""xl's save files, which may stand behind bytes of another's: then xl writes to a pipe, and we to the file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from veery.errors import Failed, Refused
from veery.hypervisor.xen.xl import Xl

_CHUNK = 1 << 20


async def save(xl: Xl, domid: int, path: Path, offset: int) -> None:
    """Write domain `domid` to `path` behind its first `offset` bytes. Raises Failed, and then the file is gone."""
    try:
        if not path.parent.is_dir():
            raise Failed(f"{path.parent}: no such folder", hint="the domain goes on")
        if offset:
            await _save_behind(xl, domid, path, offset)
        else:
            await xl.save(domid, path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Failed(f"{path}: {error.strerror}", hint="the domain goes on") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


async def restore(xl: Xl, config: Path, path: Path, offset: int, *, paused: bool) -> None:
    """Start what `save` wrote. What stands behind xl's stream in the file is not read."""
    if not offset:
        await xl.restore(config, path, paused=paused)
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from error
    with file:
        file.seek(offset)
        out, into = os.pipe()
        giving = asyncio.ensure_future(asyncio.to_thread(_give, file.fileno(), into))
        try:
            await xl.restore(config, _door(out), paused=paused)
        finally:
            os.close(out)
            await giving


async def _save_behind(xl: Xl, domid: int, path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.truncate()
        out, into = os.pipe()
        taking = asyncio.ensure_future(asyncio.to_thread(_take, out, file.fileno()))
        try:
            await xl.save(domid, _door(into))
        finally:
            os.close(into)
            wrong = await taking
            os.close(out)
        if wrong is not None:
            raise wrong


def _door(handle: int) -> Path:
    """One of our descriptors as a path that xl can open (proc(5), /proc/PID/fd)."""
    return Path(f"/proc/{os.getpid()}/fd/{handle}")


def _take(pipe: int, file: int) -> OSError | None:
    """All that comes, to the file. Where that has no room the rest is passed over and the reason returned: xl, killed
    by a broken pipe, would leave the domain suspended."""
    wrong: OSError | None = None
    while data := os.read(pipe, _CHUNK):
        try:
            while data and wrong is None:
                data = data[os.write(file, data) :]
        except OSError as error:
            wrong = error
    return wrong


def _give(file: int, pipe: int) -> None:
    """All that is left of `file`; the pipe is closed behind it."""
    try:
        while data := os.read(file, _CHUNK):
            while data:
                data = data[os.write(pipe, data) :]
    except BrokenPipeError:
        pass  # xl has read all that is its own
    finally:
        os.close(pipe)
