"""tgtd, the iSCSI target, driven live through tgtadm; one private daemon a storage node.

Facts this module rests on, seen in tgt 1.0.85 and read in its sources (usr/ of fujita/tgt):

- TGT_IPC_SOCKET is a prefix: ".0" (the control port) is appended, and the whole must fit sun_path (mgmt.c,
  ipc_init). Without it every network namespace shares one socket.
- A portal that cannot be bound is dropped, and with no portal left tgtd listens on every address, port 3260
  (iscsi_tcp.c, iscsi_tcp_init). A second --iscsi replaces the first. So the portals are read back.
- An ACL entry on a target that has no account bound lets anyone in who claims that name (iscsid.c,
  text_scan_security). So accounts are bound before the first ACL entry and leave after the last.
- Target names may hold letters, digits, "." ":" "-" only (target.c, tgt_target_create).
- Unbinding an account leaves a hole in the target's table (target.c, account_ctl); while it is there, tgtd
  dies at the next "show" and refuses the accounts behind it. So another account fills it at once, and whoever else
  asks for the targets waits for that.
- LUN parameters are split at commas, so a path with a comma cannot be given.
- Passwords cannot be read back.
- tgtd ignores SIGTERM (tgtd.c, signal_catch); SIGKILL harms nothing. tgtadm --mode sys --op delete hangs when
  another tgtd takes the socket over at once (tgtadm.c, ipc_mgmt_rsp).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import secrets
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host.process import Process, start_ticks
from veery.host.run import run
from veery.model import endpoint
from veery.storage import sockets
from veery.storage.table import Table
from veery.storage.tgtoutput import Session, Target, filler, parse_connections, parse_targets

log = logging.getLogger(__name__)

PATIENCE = 1.0  # seconds that a login may take while a fence waits for it
SUN_PATH = 107  # bytes of a unix socket's path, without its final NUL (unix(7))


class TargetServer:
    """One private tgtd: how to start it, and every call to it. Each call ends within `deadline` seconds.

    Run it by `veery.host.process.Service("tgtd", server.command, run=..., env=server.env, started=...)`: it
    then outlives our daemon and comes back when it dies. All calls raise Failed with tgtadm's own words, Failed
    "tgtd does not answer" when there is none, OutcomeUnknown when the deadline passed.
    """

    def __init__(self, *, address: str, port: int, run: Path, deadline: float = 10.0) -> None:
        """`address`:`port` is the portal, the only one; `run` a folder of ours for the control socket."""
        self.address, self.port, self._run, self._deadline = address, port, run, deadline
        self.portal = endpoint.join(address, port)
        self.env = {"TGT_IPC_SOCKET": str(run / "tgt")}
        self._table = Table()

    # ---- the daemon
    def command(self) -> list[str]:
        """The argv of tgtd. Raises Refused when it could not work: the control socket's path is too long, the
        address is not this node's, the port is taken."""
        path = f"{self.env['TGT_IPC_SOCKET']}.0"
        if len(path.encode()) > SUN_PATH:
            raise Refused(
                f"tgtd's socket {path} is longer than {SUN_PATH} bytes", hint="choose a shorter run folder (run = ...)"
            )
        self._run.mkdir(parents=True, exist_ok=True)
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.address, self.port))
                probe.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise Refused(
                        f"port {self.portal} is in use",
                        hint="stop what listens there (ss -ltnp), or set storage.portal_port",
                    ) from error
                raise Refused(
                    f"cannot listen on {self.portal}: {error.strerror}", hint="is the address on this node?"
                ) from error
        return ["tgtd", "-f", "--iscsi", f"portal={self.portal}"]

    async def ready(self, *, deadline: float = 10.0, besides: str = "") -> None:
        """Return once tgtd answers and listens on our portal. One that was found running and listens on another turns
        to ours: this node's address has changed. It keeps the other while somebody is logged in, but for target
        `besides`. Raises Failed, having ended a fresh tgtd that listens elsewhere (it falls back to every address,
        port 3260)."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while True:
            try:
                portals = await self._portals()
                break
            except Failed:
                if loop.time() >= end:
                    raise
                await asyncio.sleep(0.05)
        if portals == [self.portal]:
            return
        targets = await self.targets()
        if not targets:
            pid = sockets.server_pid(f"{self.env['TGT_IPC_SOCKET']}.0")
            await Process(pid, start_ticks(pid)).stop(grace=0)
        else:
            used = any(each.sessions for each in targets if each.iqn != besides)
            portals = await self._turn(portals, keep=used)
        if self.portal not in portals or not targets:
            raise Failed(
                f"tgtd listens on {', '.join(portals) or 'nothing'} instead of {self.portal}",
                hint=f"is {self.portal} in use, or not an address of this node?",
            )

    async def _portals(self) -> list[str]:
        return re.findall(r"^Portal: (\S+),\d+$", (await self._call("portal", "show")), re.MULTILINE)

    async def _turn(self, portals: Sequence[str], *, keep: bool) -> list[str]:
        """Listen on our portal, and with `keep` on `portals` as before; what tgtd listens on then. Connections stay."""
        if self.portal not in portals:
            await self._call("portal", "new", "--param", f"portal={self.portal}")
        for other in portals:
            if other != self.portal and keep:
                log.warning("tgtd still listens on %s: somebody is logged in", other)
            elif other != self.portal:
                await self._call("portal", "delete", "--param", f"portal={other}")
        return await self._portals()

    async def _call(self, mode: str, op: str, *words: str) -> str:
        argv = ["tgtadm", "--lld", "iscsi", "--mode", mode, "--op", op, *words]
        try:
            result = await run(argv, deadline=self._deadline, check=False, env={**self.env, "LC_ALL": "C"})
        except OutcomeUnknown as error:
            if op != "show":
                raise
            raise Failed(
                f"tgtd does not answer at {self.env['TGT_IPC_SOCKET']}.0 within {self._deadline:g} s",
                hint="it hangs: look at its process on the storage node",
            ) from error
        if result.code:
            said = (result.err.strip() or result.out.strip() or f"exit {result.code}").splitlines()[-1]
            if "tgt daemon" in said:  # "failed to send request hdr to tgt daemon", "can't connect to tgt daemon"
                raise Failed(
                    f"tgtd does not answer at {self.env['TGT_IPC_SOCKET']}.0",
                    hint=f"it is started again by itself; if not, see {self._run}/tgtd.log",
                )
            raise Failed(f"tgtd, {op} {mode}: {said.removeprefix('tgtadm: ')}")
        return result.out

    # ---- reading
    async def targets(self) -> tuple[Target, ...]:
        """Every target with its LUNs, accounts, ACL and sessions, by tid."""
        async with self._table.listed():
            shown = await self._call("target", "show")
        return parse_targets(shown)

    async def accounts(self) -> frozenset[str]:
        """The names of all accounts, bound or not."""
        return frozenset(line.strip() for line in (await self._call("account", "show")).splitlines()[1:])

    async def connections(self, tid: int) -> tuple[Session, ...]:
        """Every connection of target `tid` that is logged in or still has I/O in flight."""
        return parse_connections(await self._call("conn", "show", "--tid", str(tid)))

    # ---- targets and LUNs
    async def new_target(self, tid: int, iqn: str) -> None:
        """An empty target; without ACL entries it lets nobody in."""
        await self._call("target", "new", "--tid", str(tid), f"--targetname={iqn}")

    async def remove_target(self, target: Target, *, deadline: float = 10.0) -> None:
        """Shut a target's doors, close its sessions, wait for their I/O, remove it. Not an error if it is gone.

        Never with tgtadm's --force: tgtd ends itself when a session still has I/O (target.c, iscsi_target_destroy)."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        for entry in target.acl:
            await self.deny(target.tid, entry)
        while True:
            for session in await self.connections(target.tid):
                await self.close_sessions(target.tid, session.initiator, deadline=max(end - loop.time(), 0.1))
            try:
                await self._call("target", "delete", "--tid", str(target.tid))
                return
            except Failed as error:  # an unfinished login may have come in meanwhile
                if "still active" not in error.message or loop.time() >= end:
                    raise
            await asyncio.sleep(0.02)

    async def new_lun(self, tid: int, lun: int, path: str, *, sync: bool) -> None:
        """Serve the file or block device `path`; with `sync` it is opened O_SYNC: a write is acknowledged
        when it is on the disk."""
        flags = ["--bsoflags=sync"] if sync else []
        where = ["--tid", str(tid), "--lun", str(lun), f"--backing-store={path}", "--bstype=rdwr"]
        await self._call("logicalunit", "new", *where, *flags)

    async def name_lun(self, tid: int, lun: int, *, scsi_id: str, serial: str) -> None:
        """Set what INQUIRY pages 0x83 and 0x80 tell (at most 36 characters each, no commas)."""
        await self._update(tid, lun, f"scsi_id={scsi_id},scsi_sn={serial}")

    async def reload_lun(self, tid: int, lun: int, path: str) -> None:
        """Have tgtd see that `path` has grown: it closes the file and opens it again, sessions staying open.

        Only while no I/O is in flight: a command that a worker thread holds during those microseconds fails
        (one reload in four did so under load), and its guest sees an I/O error. Else `reload_closed`."""
        await self._update(tid, lun, f"online=0,path={path},online=1")

    async def reload_closed(self, target: Target, lun: int, path: str, *, deadline: float = 10.0) -> None:
        """As reload_lun, whatever is in flight: doors and sessions are closed first, so that all I/O has ended.
        The initiators come back by themselves in about two seconds and send again what was not answered."""
        for entry in target.acl:
            await self.deny(target.tid, entry)
        try:
            for initiator in {session.initiator for session in await self.connections(target.tid)}:
                await self.close_sessions(target.tid, initiator, deadline=deadline)
            await self.reload_lun(target.tid, lun, path)
        finally:
            for entry in target.acl:
                await self.allow(target.tid, entry)

    async def _update(self, tid: int, lun: int, parameters: str) -> None:
        where = ["--tid", str(tid), "--lun", str(lun)]
        await self._call("logicalunit", "update", *where, f"--params={parameters}")

    # ---- who may come in
    async def new_account(self, user: str, password: str) -> None:
        """A CHAP account, bound to nothing yet; with `password` "", one that nobody can use."""
        password = password or secrets.token_urlsafe(12)
        # tgtadm takes the password as an argument only: other users of this machine could see it in ps(1)
        # for some milliseconds. A storage node has no other users.
        await self._call("account", "new", f"--user={user}", f"--password={password}")

    async def delete_account(self, user: str) -> None:
        """Remove an account, which must be bound to no target: tgtd would unbind it and leave holes."""
        await self._call("account", "delete", f"--user={user}")

    async def bind_account(self, tid: int, user: str, *, instead: str = "") -> None:
        """Let `user` authenticate at target `tid`; it takes the place of the filler `instead`, if that is given."""
        async with self._table.changed():
            if instead:
                await self._call("account", "unbind", "--tid", str(tid), f"--user={instead}")
            await self._call("account", "bind", "--tid", str(tid), f"--user={user}")

    async def unbind_account(self, tid: int, user: str, place: str) -> None:
        """No longer let `user` authenticate at target `tid`; open sessions stay. The account `place` (`filler`)
        fills the hole at once; `targets` waits for that."""
        async with self._table.changed():
            await self._call("account", "unbind", "--tid", str(tid), f"--user={user}")
            await self._call("account", "bind", "--tid", str(tid), f"--user={place}")

    async def allow(self, tid: int, initiator: str) -> None:
        """An ACL entry by initiator name."""
        await self._call("target", "bind", "--tid", str(tid), f"--initiator-name={initiator}")

    async def deny(self, tid: int, entry: str) -> None:
        """Remove an ACL entry (an initiator name or an address); open sessions stay."""
        kinds = ["--initiator-name", "--initiator-address"]  # the listing does not tell which one it is
        if not entry.startswith(("iqn.", "eui.", "naa.")):
            kinds.reverse()
        for kind in kinds:
            try:
                await self._call("target", "unbind", "--tid", str(tid), f"{kind}={entry}")
                return
            except Failed as error:
                if kind == kinds[-1] or "does not exist" not in error.message:
                    raise

    async def close_connection(self, tid: int, sid: int, cid: int) -> None:
        """Close one connection. Not an error if it is gone."""
        try:
            await self._call("conn", "delete", "--tid", str(tid), "--sid", str(sid), "--cid", str(cid))
        except Failed as error:
            if "can't find the" not in error.message:
                raise

    # ---- fencing
    async def close_sessions(
        self, tid: int, initiator: str, *, addresses: Collection[str] = (), deadline: float = 10.0
    ) -> int:
        """Close every session of `initiator`, or from one of `addresses`, at target `tid`, and return how many there
        were once none is left and none of their I/O is in flight: tgtd keeps a connection listed until its last command
        has returned (conn.c, conn_close). Raises OutcomeUnknown when they are still there at the deadline."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        closed: set[tuple[int, int]] = set()
        while True:
            held = [
                one
                for one in await self.connections(tid)
                if one.initiator == initiator
                or any(each.address in addresses or (one.sid, each.cid) in closed for each in one.connections)
            ]
            if not held:
                return len(closed)
            for session in held:
                for connection in session.connections:
                    if (session.sid, connection.cid) not in closed:
                        await self.close_connection(tid, session.sid, connection.cid)
                        closed.add((session.sid, connection.cid))
            if loop.time() >= end:
                raise OutcomeUnknown(
                    f"{initiator} still has I/O in flight at target {tid}",
                    hint="the disk beneath hangs; ask again, and start nothing on that volume before",
                )
            await asyncio.sleep(0.01)

    async def cut(
        self,
        initiator: str,
        *,
        iqn: str = "",
        user: str = "",
        addresses: Collection[str] = (),
        deadline: float = 10.0,
    ) -> int:
        """Prove that `initiator` can no longer write to target `iqn` ("": to any), nor whoever comes from `addresses`,
        under whatever name; the number of sessions closed.

        Its ACL entries go, then (`user`) its account's bindings, then every session with its I/O, then all is read
        back, and no login of anyone is left half done. Raises OutcomeUnknown when the proof is not had within
        `deadline` seconds: then nothing may be started elsewhere. Succeeds when there is no such target."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        targets = await self._chosen(iqn)
        for target in targets:  # all doors first: a session that is closed comes back through one that is open
            if initiator in target.acl:
                await self.deny(target.tid, initiator)
        for target in targets:
            await self._lock_out(target, user)
        closed = 0
        while True:
            left = begun + deadline - loop.time()
            for target in targets:
                closed += await self.close_sessions(target.tid, initiator, addresses=addresses, deadline=max(left, 0.1))
            half = await self._half_logins()
            targets = await self._chosen(iqn)
            why = _way_in(targets, initiator, half, addresses)
            if not why:
                log.info("cut %s from %s: %d sessions closed", initiator, iqn or f"{len(targets)} targets", closed)
                return closed
            if left <= 0:
                raise OutcomeUnknown(
                    f"not proven that {initiator} is cut from {iqn or 'every target'}: {why}",
                    hint="ask again, and start nothing on that volume before",
                )
            if half and loop.time() - begun > PATIENCE:
                self._end_logins(half)
            await asyncio.sleep(0.05)

    async def way_in(self, initiator: str, addresses: Collection[str] = ()) -> str:
        """How `initiator` could still write to any target, or whoever comes from `addresses`, "" when it cannot: what
        `cut` reads back, and nothing changed for it."""
        targets = await self.targets()
        for target in targets:
            if any(one.initiator == initiator for one in await self.connections(target.tid)):
                return f"it has a session at {target.iqn}"
        return _way_in(await self.targets(), initiator, await self._half_logins(), addresses)

    async def _lock_out(self, target: Target, user: str) -> None:
        if user not in target.accounts:
            return
        place = filler(target.accounts)
        if place not in await self.accounts():
            await self.new_account(place, "")
        await self.unbind_account(target.tid, user, place)

    async def _chosen(self, iqn: str) -> tuple[Target, ...]:
        return tuple(one for one in await self.targets() if iqn in ("", one.iqn))

    async def _half_logins(self) -> frozenset[str]:
        """Addresses with more TCP connections to the portal than tgtd has sessions from there.

        A login is checked against the ACL when it begins and not when it ends (iscsid.c, login_start and
        login_finish): one that stood still in between would become a session after the cut."""
        peers = sockets.by_address(sockets.connections(self.port))
        for target in await self.targets():
            for session in target.sessions:
                peers.subtract(one.address for one in session.connections)
        return frozenset(+peers)

    def _end_logins(self, addresses: Collection[str]) -> None:
        """Shut down what comes from `addresses`: whole sessions among them come back by themselves."""
        try:
            peers = [peer for peer in sockets.connections(self.port) if peer.address in addresses]
            sockets.shut_down(sockets.server_pid(f"{self.env['TGT_IPC_SOCKET']}.0"), peers)
        except OSError as error:
            log.warning("unfinished logins from %s cannot be ended: %s", ", ".join(sorted(addresses)), error)


def _way_in(targets: Sequence[Target], initiator: str, half: Collection[str], addresses: Collection[str]) -> str:
    """How `initiator` could still write to one of `targets`, or whoever comes from `addresses`; "" when it cannot."""
    for target in targets:
        for session in target.sessions:
            if any(each.address in addresses for each in session.connections):
                return f"a session at {target.iqn} comes from it under the name {session.initiator}"
        if initiator in target.acl or any(one.initiator == initiator for one in target.sessions):
            return f"{target.iqn} lets it in"
    if targets and half:
        return f"a login from {', '.join(sorted(half))} is half done"
    return ""
