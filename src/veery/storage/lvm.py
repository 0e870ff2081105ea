"""Volumes as logical volumes of an LVM group, through lvm2's own commands (2.03)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from veery.errors import Failed, Refused
from veery.host.run import run
from veery.model.units import MIB, format_size

PREFIX = "veery."  # before the volume's name: avoids names that lvm2 reserves, and shows the owner
_ENV = {"LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}


class _Row(msgspec.Struct):
    vg_free: str = ""
    vg_extent_size: str = ""
    lv_name: str = ""
    lv_size: str = ""


class _Section(msgspec.Struct):
    vg: list[_Row] = []
    lv: list[_Row] = []


class _Report(msgspec.Struct):
    report: list[_Section]


def parse_report(text: str) -> list[dict[str, str]]:
    """Return the rows of `vgs` or `lvs` with --reportformat json. Raises Failed."""
    try:
        sections = msgspec.json.decode(text, type=_Report).report
    except msgspec.DecodeError as error:
        raise Failed(f"cannot parse lvm2's report: {error}") from error
    return [msgspec.structs.asdict(row) for section in sections for row in (*section.vg, *section.lv)]


class LvmStore:
    """A base.BytesStore. The volume group `group` must exist; each logical volume is named veery.NAME."""

    def __init__(self, group: str) -> None:
        self._group = group

    def path(self, name: str) -> Path:
        """Implement BytesStore.path."""
        return Path("/dev") / self._group / f"{PREFIX}{name}"

    async def size(self, name: str) -> int | None:
        """Implement BytesStore.size."""
        rows = parse_report(await self._lvm("lvs", *_REPORT, "lv_name,lv_size", self._named()))
        return next((int(row["lv_size"]) for row in rows if row["lv_name"] == f"{PREFIX}{name}"), None)

    async def free(self) -> int:
        """Implement BytesStore.free: the group's unused extents."""
        rows = parse_report(await self._lvm("vgs", *_REPORT, "vg_free", self._named()))
        return int(rows[0]["vg_free"])

    async def create(self, name: str, size: int) -> int:
        """Implement BytesStore.create. Zero the whole volume, since extents hold old volumes' bytes; this is slow."""
        if await self.size(name) is not None:
            raise Refused(f"{self.path(name)} exists already", hint="no volume's record names it: rename it")
        await self._room(size)
        # -Zn -Wn: lvcreate would wipe only the first 4 KiB; clear() wipes everything
        await self._lvm(
            "lvcreate", "--yes", "-Zn", "-Wn", "--name", f"{PREFIX}{name}", "--size", f"{size}b", self._group
        )
        try:
            await self.clear(name)
        except BaseException:
            await self.delete(name)
            raise
        return await self._there(name)

    async def grow(self, name: str, size: int) -> int:
        """Implement BytesStore.grow."""
        now = await self._there(name)
        if size <= now:
            return now
        await self._room(size - now)
        await self._lvm("lvextend", "--size", f"{size}b", str(self.path(name)))
        real = await self._there(name)
        await self._zero(name, now, real - now)
        return real

    async def clear(self, name: str) -> None:
        """Implement BytesStore.clear."""
        await self._zero(name, 0, await self._there(name))

    async def set_aside(self, name: str, word: str) -> Path:
        """Implement BytesStore.set_aside."""
        aside = f"{name}.{word}"
        if await self.size(name) is not None:
            await self.delete(aside)
            await self._lvm("lvrename", "--yes", self._group, f"{PREFIX}{name}", f"{PREFIX}{aside}")
        return self.path(aside)

    async def delete(self, name: str) -> None:
        """Implement BytesStore.delete."""
        if await self.size(name) is not None:
            await self._lvm("lvremove", "--yes", str(self.path(name)))

    async def _zero(self, name: str, offset: int, length: int) -> None:
        # BLKZEROOUT: the kernel uses WRITE SAME or UNMAP if the disk can. 20 MiB/s is a slow disk.
        await run(
            ["blkdiscard", "--zeroout", "--offset", str(offset), "--length", str(length), self.path(name)],
            deadline=60 + length / (20 * MIB),
        )

    async def _there(self, name: str) -> int:
        size = await self.size(name)
        if size is None:
            raise Failed(f"{self.path(name)} is missing", hint=f"restore it, or: veery volume delete {name}")
        return size

    async def _room(self, size: int) -> None:
        free = await self.free()
        if size > free:
            raise Refused(
                f"{format_size(size)} do not fit: group {self._group} has {format_size(free)} free",
                hint=f"choose a smaller size, or: vgextend {self._group} DEVICE",
            )

    def _named(self) -> str:
        if not self._group:
            raise Refused("this node has no volume group for volumes", hint="set storage.group, or use --backing file")
        return self._group

    async def _lvm(self, *words: str) -> str:
        result = await run(words, deadline=60, check=False, env=_ENV)
        if result.code == 0:
            return result.out
        lines = [line.strip() for line in result.err.splitlines() if line.strip()] or [f"exit {result.code}"]
        if any("not found" in line and "olume group" in line for line in lines):
            raise Refused(f"there is no volume group {self._group}", hint=f"create it: vgcreate {self._group} DEVICE")
        if any("device-mapper" in line for line in lines):
            raise Refused(
                "this kernel has no device-mapper, which logical volumes need",
                hint="load dm-mod (modprobe dm-mod), or use --backing file",
            )
        raise Failed(f"{words[0]}: {lines[-1]}")


_REPORT = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o")
