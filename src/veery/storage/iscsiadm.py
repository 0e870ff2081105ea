"""The kernel's iSCSI initiator, used through iscsiadm(8) of open-iscsi: LUNs as block devices for Xen's block backend.

A session begins when a domain needs its LUN, and ends with its last user. Frequent reads use sysfs, since a call of
iscsiadm takes 10 ms. udev is not needed: the device is found below the session, and the link /dev/veery/NAME points at
it. NAME is made from the target's name, so it is the same on every node. iscsid restores a lost session; until then the
domain's writes wait, however long: a failing disk under a running domain would be worse (replacement_timeout -1,
iscsid.conf(5))."""

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

IFACE = "veery"
"""The name of veery's interface record, which has the node's initiator name; other sessions are never touched."""
CALL_TIMEOUT_S = 20.0
LOGIN_TIMEOUT_S = 60.0  # open-iscsi makes node.session.initial_login_retry_max attempts, 15 s each by default
DISK_TIMEOUT_S = 15.0  # for the kernel to show the disk
_EXISTS, _NOTHING = 15, 21  # iscsiadm's ISCSI_ERR_SESS_EXISTS, ISCSI_ERR_NO_OBJS_FOUND

RECORD = {
    "node.startup": "manual",
    "node.session.auth.authmethod": "CHAP",
    "node.session.timeo.replacement_timeout": "-1",
}


@dataclass(frozen=True, slots=True)
class Roots:
    """The folders of this node's files."""

    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    nodes: tuple[Path, ...] = (Path("/etc/iscsi/nodes"), Path("/var/lib/iscsi/nodes"))


class KernelInitiator:
    """The node's kernel initiator. Only tests give other `roots` and `program`."""

    def __init__(self, *, program: str = "iscsiadm", roots: Roots | None = None) -> None:
        """No program is called yet."""
        self._program, self._roots = program, roots or Roots()
        self._locks: dict[str, asyncio.Lock] = {}

    async def login(self, lun: IscsiLun) -> Path:
        """Attach the LUN as a block device; return its path, which is the same on every node. Idempotent.

        Raises Refused if the login fails, Failed, OutcomeUnknown."""
        async with self._locks.setdefault(lun.iqn, asyncio.Lock()):
            if self._session(lun) is None:
                await self._open(lun)
            return self._point(lun, await self._appeared(lun))

    async def rescan(self, lun: IscsiLun) -> None:
        """Make the kernel read the LUN's size again, while it is used. Raises Failed."""
        device = await self._appeared(lun)
        try:
            (self._roots.sys / "block" / device / "device" / "rescan").write_text("1")
        except OSError as error:
            raise Failed(f"{lun.iqn}: cannot read its size again: {error.strerror}") from error

    async def logout(self, lun: IscsiLun) -> None:
        """End veery's session with the LUN, which must be unused. Idempotent. Raises Failed, OutcomeUnknown."""
        async with self._locks.setdefault(lun.iqn, asyncio.Lock()):
            if self._session(lun) is not None:
                await self._call(lun, "--logout", deadline=LOGIN_TIMEOUT_S, fine=(_NOTHING,))
            await self._call(lun, "-o", "delete", fine=(_NOTHING,))
            self._link(lun).unlink(missing_ok=True)

    # ---- inside

    async def _open(self, lun: IscsiLun) -> None:
        await self._set_iface(lun)
        await self._call(lun, "-o", "new")
        settings = {**RECORD, "node.session.auth.username": lun.user}
        words = [word for name, value in settings.items() for word in ("-n", name, "-v", value)]
        await self._call(lun, "-o", "update", *words)
        self._write_password(lun)
        result = await self._call(lun, "--login", deadline=LOGIN_TIMEOUT_S, check=False)
        if result.code not in (0, _EXISTS):
            await self._call(lun, "-o", "delete", check=False)
            rows = (result.err.strip() or result.out.strip() or "no message").splitlines()
            # the first row only says that the login failed
            reason = next((row for row in rows if "reported error" in row), rows[0])
            raise Refused(
                f"{lun.iqn} at {lun.portal}: {reason.removeprefix('iscsiadm: ')}",
                hint="does tgtd run there, and does it admit this node? veery volume list",
            )

    async def _set_iface(self, lun: IscsiLun) -> None:
        """Write the interface record with the initiator name of this node."""
        record = ["-m", "iface", "-I", IFACE]
        if (await self._run(*record)).code:
            await self._run(*record, "-o", "new")
        result = await self._run(*record, "-o", "update", "-n", "iface.initiatorname", "-v", lun.initiator)
        if result.code:
            raise Failed(f"iscsiadm: {result.err.strip() or 'no interface record'}", hint="is iscsid running?")

    def _write_password(self, lun: IscsiLun) -> None:
        """Write the password into the record's file: every user could read it on a command line."""
        for root in self._roots.nodes:
            # one file a portal; with a known portal group, a folder with one file an interface (usr/idbm.c)
            for path in (*(root / lun.iqn).glob("*"), *(root / lun.iqn).glob(f"*/{IFACE}")):
                if not path.is_file() or f"iface.iscsi_ifacename = {IFACE}\n" not in path.read_text():
                    continue
                lines = [row for row in path.read_text().splitlines() if "node.session.auth.password =" not in row]
                end = lines.index("# END RECORD") if "# END RECORD" in lines else len(lines)
                lines.insert(end, f"node.session.auth.password = {lun.password}")
                write_atomic(path, "\n".join(lines) + "\n", mode=0o600)
                return
        raise Failed(f"{lun.iqn}: open-iscsi made no record of it", hint="see /etc/iscsi/nodes")

    def _session(self, lun: IscsiLun) -> Path | None:
        """Return veery's session with the LUN's target, or None."""
        for session in (self._roots.sys / "class" / "iscsi_session").glob("session*"):
            with contextlib.suppress(OSError):
                names = [(session / key).read_text().strip() for key in ("targetname", "initiatorname")]
                if names == [lun.iqn, lun.initiator]:
                    return session
        return None

    async def _appeared(self, lun: IscsiLun) -> str:
        """Return the kernel's name of the disk, once it exists. Raises Failed."""
        ends = asyncio.get_running_loop().time() + DISK_TIMEOUT_S
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
        os.replace(partial, link)  # noqa: PTH105 (of the link itself, not of its target)
        return link

    async def _call(
        self,
        lun: IscsiLun,
        *words: str,
        deadline: float = CALL_TIMEOUT_S,
        check: bool = True,
        fine: tuple[int, ...] = (),
    ) -> Result:
        record = ["-m", "node", "-T", lun.iqn, "-p", lun.portal, "-I", IFACE]
        try:
            result = await self._run(*record, *words, deadline=deadline)
        except OutcomeUnknown as error:
            raise OutcomeUnknown(f"{lun.iqn}: {error.message}", hint="is iscsid running?") from error
        if check and result.code and result.code not in fine:
            message = (result.err.strip() or result.out.strip() or "no message").splitlines()[0]
            raise Failed(f"{lun.iqn}: {message.removeprefix('iscsiadm: ')}", hint="is iscsid running?")
        return result

    async def _run(self, *words: str, deadline: float = CALL_TIMEOUT_S) -> Result:
        return await run([self._program, *words], deadline=deadline, check=False)
