"""The kernel's iSCSI initiator, by iscsiadm(8) of open-iscsi: LUNs as block devices of this node, for Xen's block back
end. A session begins when a domain needs its LUN and ends with its last user.

What is asked often is read from sysfs and not from iscsiadm, which takes 10 ms a call; no udev is needed: the device is
found below the session, and /dev/veery/NAME points at it, NAME being made of the target's name and so the same on every
node. A session that is lost is regained by iscsid, and until then what the domain writes waits, however long: a disk
that fails under a running domain would be worse (replacement_timeout -1, iscsid.conf(5))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host.files import write_atomic
from veery.host.run import Result, run
from veery.model.volume import IscsiLun

FACE = "veery"
"""The interface record of ours, which has the node's initiator name; sessions of others are never touched."""
CALL = 20.0
LOGIN = 60.0  # node.session.initial_login_retry_max tries of 15 s each by default
APPEAR = 15.0  # seconds for the kernel to show the disk
_EXISTS, _NOTHING = 15, 21  # iscsiadm's ISCSI_ERR_SESS_EXISTS, ISCSI_ERR_NO_OBJS_FOUND

RECORD = {
    "node.startup": "manual",
    "node.session.auth.authmethod": "CHAP",
    "node.session.timeo.replacement_timeout": "-1",
}


@dataclass(frozen=True, slots=True)
class Roots:
    """Where this node's files are."""

    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    nodes: tuple[Path, ...] = (Path("/etc/iscsi/nodes"), Path("/var/lib/iscsi/nodes"))


class KernelInitiator:
    """The node's one; `roots` and `program` are others only in tests."""

    def __init__(self, *, program: str = "iscsiadm", roots: Roots | None = None) -> None:
        """Nothing is asked yet."""
        self._program, self._roots = program, roots or Roots()
        self._locks: dict[str, asyncio.Lock] = {}

    async def login(self, lun: IscsiLun) -> Path:
        """Have the LUN as a block device; its path, the same on every node. Idempotent. Raises
        Refused where it cannot be had, Failed, OutcomeUnknown."""
        async with self._locks.setdefault(lun.iqn, asyncio.Lock()):
            if self._session(lun) is None:
                await self._open(lun)
            return self._point(lun, await self._appeared(lun))

    async def rescan(self, lun: IscsiLun) -> None:
        """See how large the LUN is now, while it is used. Raises Failed."""
        device = await self._appeared(lun)
        try:
            (self._roots.sys / "block" / device / "device" / "rescan").write_text("1")
        except OSError as error:
            raise Failed(f"{lun.iqn}: its size was not read again: {error.strerror}") from error

    async def logout(self, lun: IscsiLun) -> None:
        """End our session with it; nobody here uses it any more. Idempotent. Raises Failed, OutcomeUnknown."""
        async with self._locks.setdefault(lun.iqn, asyncio.Lock()):
            if self._session(lun) is not None:
                await self._call(lun, "--logout", deadline=LOGIN, fine=(_NOTHING,))
            await self._call(lun, "-o", "delete", fine=(_NOTHING,))
            self._link(lun).unlink(missing_ok=True)

    # ---- inside

    async def _open(self, lun: IscsiLun) -> None:
        await self._face(lun)
        await self._call(lun, "-o", "new")
        settings = {**RECORD, "node.session.auth.username": lun.user}
        words = [word for name, value in settings.items() for word in ("-n", name, "-v", value)]
        await self._call(lun, "-o", "update", *words)
        self._write_password(lun)
        result = await self._call(lun, "--login", deadline=LOGIN, check=False)
        if result.code not in (0, _EXISTS):
            await self._call(lun, "-o", "delete", check=False)
            rows = (result.err.strip() or result.out.strip() or "no message").splitlines()
            said = next(
                (row for row in rows if "reported error" in row), rows[0]
            )  # the first tells only that it failed
            raise Refused(
                f"{lun.iqn} at {lun.portal}: {said.removeprefix('iscsiadm: ')}",
                hint="is tgtd running there, and this node let in? veery volume list",
            )

    async def _face(self, lun: IscsiLun) -> None:
        """The interface record, with the initiator name of this node."""
        record = ["-m", "iface", "-I", FACE]
        if (await self._run(*record)).code:
            await self._run(*record, "-o", "new")
        result = await self._run(*record, "-o", "update", "-n", "iface.initiatorname", "-v", lun.initiator)
        if result.code:
            raise Failed(f"iscsiadm: {result.err.strip() or 'no interface record'}", hint="is iscsid running?")

    def _write_password(self, lun: IscsiLun) -> None:
        """Into the record's file and not onto a command line, which everyone can read."""
        for root in self._roots.nodes:
            # one file a portal, or where the target's portal group is known a folder with one a face (usr/idbm.c)
            for path in (*(root / lun.iqn).glob("*"), *(root / lun.iqn).glob(f"*/{FACE}")):
                if not path.is_file() or f"iface.iscsi_ifacename = {FACE}\n" not in path.read_text():
                    continue
                lines = [row for row in path.read_text().splitlines() if "node.session.auth.password =" not in row]
                end = lines.index("# END RECORD") if "# END RECORD" in lines else len(lines)
                lines.insert(end, f"node.session.auth.password = {lun.password}")
                write_atomic(path, "\n".join(lines) + "\n", mode=0o600)
                return
        raise Failed(f"{lun.iqn}: open-iscsi made no record of it", hint="look into /etc/iscsi/nodes")

    def _session(self, lun: IscsiLun) -> Path | None:
        """Our session with its target."""
        for session in (self._roots.sys / "class" / "iscsi_session").glob("session*"):
            with contextlib.suppress(OSError):
                names = [(session / key).read_text().strip() for key in ("targetname", "initiatorname")]
                if names == [lun.iqn, lun.initiator]:
                    return session
        return None

    async def _appeared(self, lun: IscsiLun) -> str:
        """The kernel's name of the disk, once it is there."""
        ends = asyncio.get_running_loop().time() + APPEAR
        while True:
            session = self._session(lun)
            if session is not None:
                for block in session.glob(f"device/target*/*:{lun.lun}/block/*"):
                    if (self._roots.dev / block.name).exists():
                        return block.name
            if asyncio.get_running_loop().time() > ends:
                raise Failed(f"{lun.iqn}: no disk came with the session", hint="dmesg; iscsiadm -m session -P 3")
            await asyncio.sleep(0.02)

    def _link(self, lun: IscsiLun) -> Path:
        return self._roots.dev / "veery" / re.sub(r"[^A-Za-z0-9._-]", "_", lun.iqn)

    def _point(self, lun: IscsiLun, device: str) -> Path:
        link = self._link(lun)
        link.parent.mkdir(exist_ok=True)
        partial = link.with_name(f".{link.name}")
        partial.unlink(missing_ok=True)
        partial.symlink_to(self._roots.dev / device)
        os.replace(partial, link)  # noqa: PTH105 (of the link itself, not of what it points at)
        return link

    async def _call(
        self, lun: IscsiLun, *words: str, deadline: float = CALL, check: bool = True, fine: tuple[int, ...] = ()
    ) -> Result:
        record = ["-m", "node", "-T", lun.iqn, "-p", lun.portal, "-I", FACE]
        try:
            result = await self._run(*record, *words, deadline=deadline)
        except OutcomeUnknown as error:
            raise OutcomeUnknown(f"{lun.iqn}: {error.message}", hint="is iscsid running?") from error
        if check and result.code and result.code not in fine:
            said = (result.err.strip() or result.out.strip() or "no message").splitlines()[0]
            raise Failed(f"{lun.iqn}: {said.removeprefix('iscsiadm: ')}", hint="is iscsid running?")
        return result

    async def _run(self, *words: str, deadline: float = CALL) -> Result:
        return await run([self._program, *words], deadline=deadline, check=False)
