"""Disk images of strangers: what `volume import` looks at before it reads one.

An image may name other files of the machine: a qcow2 its backing file and its data file, a vmdk its extents. qemu-img
follows such names, so an image from a customer would take root's files along. `qemu-img info` opens no backing file
(BDRV_O_NO_BACKING, qemu-img.c); what it tells of the rest is refused here, before `qemu-img convert` reads anything."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from veery.errors import Refused, VeeryError
from veery.host.run import Result, run

IMPORT_MAX = 256 << 30
"""Bytes of a disk that is imported without being asked for by --size: an image of some KB can claim any size."""
INFO_DEADLINE_S = 30.0
INFO_MEMORY = 1 << 30  # bytes of address space
CONVERT_DEADLINE_S = 3600.0
CONVERT_MEMORY = 4 << 30
DESCRIPTOR_MAX = 1 << 20  # bytes of a vmdk that is read for its descriptor
_MAGIC = {  # first bytes -> qemu-img's name of the format
    b"QFI\xfb": "qcow2",
    b"QED\x00": "qed",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"# Disk DescriptorFile": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
}
_FLATTEN = "where the image was made: qemu-img convert -O qcow2 IMAGE WHOLE.qcow2; then import that"
_NAMES = ("backing-filename", "full-backing-filename", "data-file", "data-file-raw")


def image_format(path: Path) -> str:
    """The format of a disk image by its first (for vpc its last) bytes, in qemu-img's words; "raw" if none is known."""
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
    """The size in bytes of the disk in image `source`, if the image names no other file. Raises Refused."""
    path = source.absolute()  # a name with a colon would be a protocol of qemu-img's
    with path.open("rb") as file:
        if kind == "vmdk" and file.read(4) not in (b"KDMV", b"COWD"):
            raise Refused(f"{source} is a vmdk whose bytes are in other files", hint=_FLATTEN)
    command = ["qemu-img", "info", "--output=json", "-f", kind, str(path)]
    try:
        told = json.loads(_run(command, INFO_DEADLINE_S, INFO_MEMORY).out)
        size = int(told["virtual-size"])
    except VeeryError as error:
        raise Refused(f"{source} cannot be looked at: {error.message}", hint=error.hint or "is it whole?") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused(f"{source}: qemu-img does not tell its size", hint="is it whole?") from error
    if other := _other_file(told, path):
        raise Refused(f"{source} needs another file: {other!a}", hint=_FLATTEN)
    return size


def _other_file(told: dict[str, Any], path: Path) -> str:
    """A file that the image names beside itself; "" where it names none."""
    special = told.get("format-specific") or {}
    data = special.get("data") or {} if isinstance(special, dict) else {}
    for place in (told, data):
        for name in _NAMES:
            if isinstance(place.get(name), str) and place[name]:
                return str(place[name])
    for extent in data.get("extents") or ():
        named = str(extent.get("filename", ""))
        if named != str(path):
            return named or "an extent"
    return ""


def convert(source: Path, kind: str, raw: Path) -> None:
    """Write the disk in image `source` to `raw`. Raises NotInstalled, Failed, OutcomeUnknown after an hour."""
    command = ["qemu-img", "convert", "-f", kind, "-O", "raw", str(source.absolute()), str(raw)]
    _run(command, CONVERT_DEADLINE_S, CONVERT_MEMORY)


def _run(command: list[str], deadline: float, memory: int) -> Result:
    """Run `command` with so much address space (setrlimit(2), by util-linux's prlimit)."""
    return asyncio.run(run(["prlimit", f"--as={memory}", "--core=0", *command], deadline=deadline))
