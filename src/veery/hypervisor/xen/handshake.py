"""The messages between `xl migrate` and `xl migrate-receive` besides the domain's memory, as bytes; pure.

    receiver -> sender   BANNER                 the receiver has started
    sender -> receiver   header, then the memory
    receiver -> sender   READY                  everything is loaded, the domain is paused
    sender -> receiver   GO                     from here on xl itself calls the state undefined
    receiver -> sender   REPORT, one byte       0: the domain runs; else the receiver destroys it after writing this

Source: tools/xl/xl.h, xl_migrate.c, xl_saverestore.c of Xen 4.17; the same up to 4.20. Only the standard library,
because the relay must start fast."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"

MAGIC = b"Xen saved domain, xl format\n \0 \r"
_HEADER = struct.Struct("=32sIIII")  # struct save_file_header
_LENGTH = struct.Struct("=I")
_BYTE_ORDER = 0x01020304
_JSON = 1  # XL_MANDATORY_FLAG_JSON
_CONFIG_MAX = 4 << 20  # bytes; a domain's configuration is a few KiB

Config = dict[str, Any]


class Garbled(Exception):
    """The other side did not send what xl sends."""


class Word(StrEnum):
    """A message of the receiver. Its REPORT is never read: see relay.Receiver."""

    BANNER = "banner"
    READY = "ready"  # the domain is loaded and paused


class Words:
    """Reads the receiver's messages, however they are split."""

    def __init__(self) -> None:
        """Begin before the first message."""
        self._data = b""
        self._due = [(Word.BANNER, BANNER), (Word.READY, READY)]

    def feed(self, data: bytes) -> list[Word]:
        """Return the messages that `data` completes. Raises Garbled."""
        self._data += data
        found = []
        while self._data:
            word, text = self._due[0] if self._due else (Word.READY, b"")
            if not text or not (self._data.startswith(text) or text.startswith(self._data)):
                raise Garbled(f"xl migrate-receive sent {self._data[:60]!r}")
            if len(self._data) < len(text):
                break
            found.append(word)
            self._data = self._data[len(text) :]
            del self._due[0]
        return found


class Header:
    """Passes a sender's stream on, with changes to the domain's configuration at its head."""

    def __init__(self, change: Callable[[Config], Config]) -> None:
        """`change` returns the configuration (libxl's JSON) for the receiver."""
        self._change = change
        self._data = b""
        self._through = False

    @property
    def passed(self) -> bool:
        """True if the head has passed: later bytes need not be fed."""
        return self._through

    def feed(self, data: bytes) -> bytes:
        """Return what may go on to the receiver. Raises Garbled for a stream that is not xl's."""
        if self._through:
            return data
        self._data += data
        if not self._data.startswith(MAGIC[: len(self._data)]):
            raise Garbled("this is not a stream of xl")
        if len(self._data) < _HEADER.size:
            return b""
        magic, order, mandatory, optional, length = _HEADER.unpack_from(self._data)
        if order != _BYTE_ORDER:
            raise Garbled("the stream comes from a machine with another byte order")
        if not mandatory & _JSON or not _LENGTH.size < length <= _CONFIG_MAX:
            raise Garbled("the stream has no configuration as JSON")
        if len(self._data) < _HEADER.size + length:
            return b""
        body = self._data[_HEADER.size : _HEADER.size + length]
        rest = self._data[_HEADER.size + length :]
        (size,) = _LENGTH.unpack_from(body)
        try:
            config: Config = json.loads(body[_LENGTH.size : _LENGTH.size + size].rstrip(b"\0"))
        except ValueError as error:
            raise Garbled("the stream's configuration is unreadable") from error
        text = json.dumps(self._change(config)).encode() + b"\0"
        body = _LENGTH.pack(len(text)) + text + body[_LENGTH.size + size :]
        self._through, self._data = True, b""
        return _HEADER.pack(magic, order, mandatory, optional, len(body)) + body + rest


def furnished(config: Config, disks: Mapping[str, str], scripts: Mapping[str, str]) -> Config:
    """Return `config` with the disks' paths on this node (by virtual device, "xvda") and its hotplug scripts. `scripts`
    is by kind: "disk" for block devices, and "nic" for interfaces that have Xen's plain script."""
    made = dict(config)
    made["disks"] = [_disk(dict(each), disks, scripts) for each in config.get("disks", [])]
    made["nics"] = [_nic(dict(each), scripts) for each in config.get("nics", [])]
    return made


def _disk(disk: Config, paths: Mapping[str, str], scripts: Mapping[str, str]) -> Config:
    if path := paths.get(disk.get("vdev", "")):
        disk["pdev_path"] = path
    plain = disk.get("script") in (None, "", "block", scripts.get("disk"))
    if "disk" in scripts and plain and str(disk.get("pdev_path", "")).startswith("/dev/"):
        disk["script"] = scripts["disk"]
    return disk


def _nic(nic: Config, scripts: Mapping[str, str]) -> Config:
    given = nic.get("script") or "vif-bridge"
    if "nic" in scripts and (given == scripts["nic"] or given.rpartition("/")[2] == "vif-bridge"):
        nic["script"] = scripts["nic"]
    return nic
