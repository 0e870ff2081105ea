"""Checks of an untrusted disk image, before `volume import` reads it.

An image can name other files of the machine: a qcow2 its backing file and its data file, a vmdk its extents. qemu-img
follows such names, so an image from a customer could import files of root. `qemu-img info` opens no backing file
(BDRV_O_NO_BACKING, qemu-img.c). This module refuses an image for which it reports another file, before `qemu-img
convert` reads anything."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from veery.errors import Refused, VeeryError
from veery.host.run import Result, run

IMPORT_MAX_BYTES = 256 << 30
"""The largest disk that is imported without --size: an image of some KB can claim any size."""
INFO_DEADLINE_S = 30.0
INFO_MEMORY_BYTES = 1 << 30  # of address space
CONVERT_DEADLINE_S = 3600.0
CONVERT_MEMORY_BYTES = 4 << 30
_MAGIC = {  # first bytes -> qemu-img's name of the format
    b"QFI\xfb": "qcow2",
    b"QED\x00": "qed",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
}
_FLATTEN = "on the machine that made the image: qemu-img convert -O qcow2 IMAGE WHOLE.qcow2; then import WHOLE.qcow2"
_NAMES = ("backing-filename", "full-backing-filename", "data-file", "data-file-raw")


def image_format(path: Path) -> str:
    """Return qemu-img's name of an image's format, by its first (for vpc its last) bytes; "raw" if unknown."""
    with path.open("rb") as file:
        head = file.read(512)
        if path.is_file() and path.stat().st_size >= 512:
            file.seek(-512, os.SEEK_END)
        tail = file.read(512)
    for magic, name in _MAGIC.items():
        if head.startswith(magic) or (name == "vpc" and tail.startswith(magic)):
            return name
    return "raw"


def inspect(source: Path, kind: str) -> int:
    """Return the size in bytes of the disk in image `source`. Raises Refused if the image names another file."""
    path = source.absolute()  # qemu-img would take a name with a colon for a protocol
    with path.open("rb") as file:
        if kind == "vmdk" and file.read(4) not in (b"KDMV", b"COWD"):
            raise Refused(f"{source} is a vmdk whose data is in other files", hint=_FLATTEN)
    command = ["qemu-img", "info", "--output=json", "-f", kind, str(path)]
    try:
        info = json.loads(_run(command, INFO_DEADLINE_S, INFO_MEMORY_BYTES).out)
        size = int(info["virtual-size"])
    except VeeryError as error:
        raise Refused(
            f"{source} cannot be inspected: {error.message}", hint=error.hint or "is the image complete?"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"{source}: qemu-img does not report its size", hint="is the image complete?") from error
    if other := _other_file(info, path):
        raise Refused(f"{source} needs another file: {other!a}", hint=_FLATTEN)
    return size


def _other_file(info: dict[str, Any], path: Path) -> str:
    """Return a file other than itself that the image names; "" if there is none."""
    special = info.get("format-specific") or {}
    data = special.get("data") or {} if isinstance(special, dict) else {}
    for place in (info, data):
        for name in _NAMES:
            if isinstance(place.get(name), str) and place[name]:
                return str(place[name])
    for extent in data.get("extents") or ():
        named = str(extent.get("filename", ""))
        if named != str(path):
            return named or "an extent"
    return ""


def convert(source: Path, kind: str, raw: Path) -> None:
    """Write the disk in image `source` to `raw`. Raises NotInstalled, Failed, and OutcomeUnknown after an hour."""
    command = ["qemu-img", "convert", "-f", kind, "-O", "raw", str(source.absolute()), str(raw)]
    _run(command, CONVERT_DEADLINE_S, CONVERT_MEMORY_BYTES)


def _run(command: list[str], deadline: float, memory: int) -> Result:
    """Run `command` with at most `memory` bytes of address space (setrlimit(2), set by util-linux's prlimit)."""
    return asyncio.run(run(["prlimit", f"--as={memory}", "--core=0", *command], deadline=deadline))
