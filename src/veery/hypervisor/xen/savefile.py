"""xl's save files, which may follow a header of the caller: xl then writes to a pipe, and veeryd to the file."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from veery.errors import Failed, Refused
from veery.hypervisor.xen.xl import Xl

_CHUNK = 1 << 20


async def save(xl: Xl, domid: int, path: Path, offset: int) -> None:
    """Write domain `domid` to `path` after its first `offset` bytes. Raises Failed, and then the file is gone."""
    try:
        if not path.parent.is_dir():
            raise Failed(f"{path.parent}: no such folder", hint="the domain runs on")
        if offset:
            await _save_behind(xl, domid, path, offset)
        else:
            await xl.save(domid, path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Failed(f"{path}: {error.strerror}", hint="the domain runs on") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


async def restore(xl: Xl, config: Path, path: Path, offset: int, *, paused: bool) -> None:
    """Start what `save` wrote. What follows xl's stream in the file is not read."""
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
    """Return a path by which xl can open one of veeryd's descriptors (proc(5), /proc/PID/fd)."""
    return Path(f"/proc/{os.getpid()}/fd/{handle}")


def _take(pipe: int, file: int) -> OSError | None:
    """Write everything from the pipe to the file. When the disk is full, drop the rest and return the error: xl, killed
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
    """Write the rest of `file` to the pipe, then close the pipe."""
    try:
        while data := os.read(file, _CHUNK):
            while data:
                data = data[os.write(pipe, data) :]
    except BrokenPipeError:
        pass  # xl has read all of its own part
    finally:
        os.close(pipe)
