"""tgtd, the iSCSI target, driven live through tgtadm; each storage node has one private tgtd.

This module relies on these facts, seen in tgt 1.0.85 and in its sources (usr/ of fujita/tgt):

- TGT_IPC_SOCKET is a prefix: tgtd appends ".0" (the control port), and the result must fit sun_path (mgmt.c,
  ipc_init). Without it every network namespace shares one socket.
- tgtd drops a portal that it cannot bind. With no portal left it listens on every address, port 3260 (iscsi_tcp.c,
  iscsi_tcp_init). A second --iscsi replaces the first. So veery reads the portals back.
- An ACL entry on a target without a bound account admits every initiator that claims the name (iscsid.c,
  text_scan_security). So accounts are bound before the first ACL entry and unbound after the last.
- Target names may contain only letters, digits, "." ":" "-" (target.c, tgt_target_create).
- Unbinding an account leaves a hole in the target's table (target.c, account_ctl). With a hole, tgtd crashes at the
  next "show" and refuses the accounts behind it. So another account fills the hole at once, and other tasks that
  read the targets wait for that.
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

from veery.errors import Failed, OutcomeUnknown, Refused, Unavailable
from veery.host.process import Process, start_ticks
from veery.host.run import run
from veery.model import endpoint
from veery.storage import sockets
from veery.storage.table import Table
from veery.storage.tgtoutput import Session, Target, filler, parse_connections, parse_targets

log = logging.getLogger(__name__)

LOGIN_TIMEOUT_S = 1.0  # for an unfinished login while a fence waits for it
SUN_PATH_BYTES = 107  # of a unix socket's path, without its final NUL (unix(7))


class TargetServer:
    """One private tgtd: its start command, and every call to it. Each call ends within `deadline` seconds.

    Run it by `veery.host.process.Service("tgtd", server.command, run=..., env=server.env, started=...)`: it then
    outlives veeryd, and is restarted when it dies. All calls raise Failed with tgtadm's own words, Failed "tgtd does
    not answer" without a tgtd, OutcomeUnknown after the deadline.
    """

    def __init__(self, *, address: str, port: int, run: Path, deadline: float = 10.0) -> None:
        """`address`:`port` is the only portal. `run` is veery's own folder for the control socket."""
        self.address, self.port, self._run, self._deadline = address, port, run, deadline
        self.portal = endpoint.join(address, port)
        self.env = {"TGT_IPC_SOCKET": str(run / "tgt")}
        self._table = Table()

    # ---- the daemon
    def command(self) -> list[str]:
        """Return the argv of tgtd. Raises Refused if it cannot work: the control socket's path is too long, the address
        is not this node's, or the port is in use."""
        path = f"{self.env['TGT_IPC_SOCKET']}.0"
        if len(path.encode()) > SUN_PATH_BYTES:
            raise Refused(
                f"tgtd's socket {path} is longer than {SUN_PATH_BYTES} bytes",
                hint="choose a shorter run folder (run = ...)",
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
                        hint="stop the program that listens there (ss -ltnp), or set storage.portal_port",
                    ) from error
                raise Refused(
                    f"cannot listen on {self.portal}: {error.strerror}", hint="is the address on this node?"
                ) from error
        return ["tgtd", "-f", "--iscsi", f"portal={self.portal}"]

    async def ready(self, *, deadline: float = 10.0, besides: str = "") -> None:
        """Return once tgtd answers and listens on this server's portal.

        A running tgtd with another portal gets this one: the node's address has changed. It keeps the old portal while
        a target other than `besides` has sessions. Raises Failed; it first ends a new tgtd that listens elsewhere,
        because that one has fallen back to every address, port 3260."""
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
            portals = await self._change_portal(portals, keep=used)
        if self.portal not in portals or not targets:
            raise Failed(
                f"tgtd listens on {', '.join(portals) or 'nothing'} instead of {self.portal}",
                hint=f"is {self.portal} in use, or not an address of this node?",
            )

    async def _portals(self) -> list[str]:
        return re.findall(r"^Portal: (\S+),\d+$", (await self._call("portal", "show")), re.MULTILINE)

    async def _change_portal(self, portals: Sequence[str], *, keep: bool) -> list[str]:
        """Listen on this server's portal, with `keep` also on `portals`; return the new portals. Connections stay."""
        if self.portal not in portals:
            await self._call("portal", "new", "--param", f"portal={self.portal}")
        for other in portals:
            if other != self.portal and keep:
                log.warning("tgtd still listens on %s: an initiator is logged in", other)
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
            raise Unavailable(
                f"tgtd does not answer at {self.env['TGT_IPC_SOCKET']}.0 within {self._deadline:g} s",
                hint="it hangs: check its process on the storage node",
            ) from error
        if result.code:
            message = (result.err.strip() or result.out.strip() or f"exit {result.code}").splitlines()[-1]
            if "tgt daemon" in message:  # "failed to send request hdr to tgt daemon", "can't connect to tgt daemon"
                raise Unavailable(
                    f"tgtd does not answer at {self.env['TGT_IPC_SOCKET']}.0",
                    hint=f"veeryd restarts it; if not, see {self._run}/tgtd.log",
                )
            raise Failed(f"tgtd, {op} {mode}: {message.removeprefix('tgtadm: ')}")
        return result.out

    # ---- reading
    async def targets(self) -> tuple[Target, ...]:
        """Return every target with its LUNs, accounts, ACL and sessions, by tid."""
        async with self._table.listed():
            shown = await self._call("target", "show")
        return parse_targets(shown)

    async def accounts(self) -> frozenset[str]:
        """Return the names of all accounts, bound or not."""
        return frozenset(line.strip() for line in (await self._call("account", "show")).splitlines()[1:])

    async def connections(self, tid: int) -> tuple[Session, ...]:
        """Return every connection of target `tid` that is logged in or still has I/O in flight."""
        return parse_connections(await self._call("conn", "show", "--tid", str(tid)))

    # ---- targets and LUNs
    async def new_target(self, tid: int, iqn: str) -> None:
        """Make an empty target; without ACL entries it admits no initiator."""
        await self._call("target", "new", "--tid", str(tid), f"--targetname={iqn}")

    async def remove_target(self, target: Target, *, deadline: float = 10.0) -> None:
        """Remove a target: delete its ACL entries, close its sessions, wait for their I/O. No error if it is gone.

        Never with tgtadm's --force: tgtd then crashes if a session still has I/O (target.c, iscsi_target_destroy)."""
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
            except Failed as error:  # an unfinished login may have completed meanwhile
                if "still active" not in error.message or loop.time() >= end:
                    raise
            await asyncio.sleep(0.02)

    async def new_lun(self, tid: int, lun: int, path: str, *, sync: bool) -> None:
        """Serve the file or block device `path`. With `sync` tgtd opens it O_SYNC, and acknowledges a write when it is
        on the disk."""
        flags = ["--bsoflags=sync"] if sync else []
        where = ["--tid", str(tid), "--lun", str(lun), f"--backing-store={path}", "--bstype=rdwr"]
        await self._call("logicalunit", "new", *where, *flags)

    async def name_lun(self, tid: int, lun: int, *, scsi_id: str, serial: str) -> None:
        """Set the content of INQUIRY pages 0x83 and 0x80 (at most 36 characters each, no commas)."""
        await self._update(tid, lun, f"scsi_id={scsi_id},scsi_sn={serial}")

    async def reload_lun(self, tid: int, lun: int, path: str) -> None:
        """Make tgtd read the new size of `path`: it closes the file and opens it again; sessions stay open.

        Use it only while no I/O is in flight. A command in a worker thread during those microseconds fails (this
        happened in one of four reloads under load), and its guest sees an I/O error. Otherwise use `reload_closed`."""
        await self._update(tid, lun, f"online=0,path={path},online=1")

    async def reload_closed(self, target: Target, lun: int, path: str, *, deadline: float = 10.0) -> None:
        """Reload a LUN that may have I/O in flight: first delete the ACL entries and close the sessions, so that all
        I/O has ended. The initiators reconnect in about two seconds, and repeat the unanswered commands."""
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

    # ---- accounts and access
    async def new_account(self, user: str, password: str) -> None:
        """Make a CHAP account, not bound yet; if `password` is "", with a random password that is not kept."""
        password = password or secrets.token_urlsafe(12)
        # tgtadm accepts the password only as an argument: other users of this machine could see it in ps(1)
        # for some milliseconds. A storage node has no other users.
        await self._call("account", "new", f"--user={user}", f"--password={password}")

    async def delete_account(self, user: str) -> None:
        """Delete an account, which must be bound to no target: tgtd would unbind it and leave holes."""
        await self._call("account", "delete", f"--user={user}")

    async def bind_account(self, tid: int, user: str, *, instead: str = "") -> None:
        """Bind account `user` to target `tid`, in the place of the filler `instead`, if given."""
        async with self._table.changed():
            if instead:
                await self._call("account", "unbind", "--tid", str(tid), f"--user={instead}")
            await self._call("account", "bind", "--tid", str(tid), f"--user={user}")

    async def unbind_account(self, tid: int, user: str, place: str) -> None:
        """Unbind account `user` from target `tid`; open sessions stay. The account `place` (`filler`) fills the hole at
        once; `targets` waits for that."""
        async with self._table.changed():
            await self._call("account", "unbind", "--tid", str(tid), f"--user={user}")
            await self._call("account", "bind", "--tid", str(tid), f"--user={place}")

    async def allow(self, tid: int, initiator: str) -> None:
        """Add an ACL entry for an initiator name."""
        await self._call("target", "bind", "--tid", str(tid), f"--initiator-name={initiator}")

    async def deny(self, tid: int, entry: str) -> None:
        """Remove an ACL entry (an initiator name or an address); open sessions stay."""
        kinds = ["--initiator-name", "--initiator-address"]  # the listing does not show which one it is
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
        """Close one connection. It is no error if it is gone."""
        try:
            await self._call("conn", "delete", "--tid", str(tid), "--sid", str(sid), "--cid", str(cid))
        except Failed as error:
            if "can't find the" not in error.message:
                raise

    # ---- fencing
    async def close_sessions(
        self, tid: int, initiator: str, *, addresses: Collection[str] = (), deadline: float = 10.0
    ) -> int:
        """Close every session of `initiator`, or from one of `addresses`, at target `tid`. Return their number once no
        session and no I/O of theirs remains: tgtd lists a connection until its last command has returned (conn.c,
        conn_close). Raises OutcomeUnknown if some remain at the deadline."""
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
                    hint="the disk below hangs; try again, and start nothing on that volume before",
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
        """Prove that `initiator`, and every connection from `addresses` under any name, can no longer write to target
        `iqn` ("": to any). Return the number of closed sessions.

        First remove the initiator's ACL entries, then (`user`) the bindings of its account, then every session with its
        I/O. Then read everything back, and check that no login of any initiator is unfinished. A missing target counts
        as success. Raises OutcomeUnknown without proof within `deadline` seconds: then start nothing elsewhere."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        targets = await self._chosen(iqn)
        for target in targets:  # at all targets first: a closed session could reconnect to an open target
            if initiator in target.acl:
                await self.deny(target.tid, initiator)
        for target in targets:
            await self._lock_out(target, user)
        closed = 0
        while True:
            left = begun + deadline - loop.time()
            for target in targets:
                closed += await self.close_sessions(target.tid, initiator, addresses=addresses, deadline=max(left, 0.1))
            unfinished = await self._unfinished_logins()
            targets = await self._chosen(iqn)
            why = _way_in(targets, initiator, unfinished, addresses)
            if not why:
                log.info("cut %s from %s: %d sessions closed", initiator, iqn or f"{len(targets)} targets", closed)
                return closed
            if left <= 0:
                raise OutcomeUnknown(
                    f"no proof that {initiator} is cut from {iqn or 'every target'}: {why}",
                    hint="try again, and start nothing on that volume before",
                )
            if unfinished and loop.time() - begun > LOGIN_TIMEOUT_S:
                self._end_logins(unfinished)
            await asyncio.sleep(0.05)

    async def way_in(self, initiator: str, addresses: Collection[str] = ()) -> str:
        """Return how `initiator`, or a connection from `addresses`, could still write to any target; "" if it cannot.
        This is the check of `cut` without any change."""
        targets = await self.targets()
        for target in targets:
            if any(one.initiator == initiator for one in await self.connections(target.tid)):
                return f"it has a session at {target.iqn}"
        return _way_in(await self.targets(), initiator, await self._unfinished_logins(), addresses)

    async def _lock_out(self, target: Target, user: str) -> None:
        if user not in target.accounts:
            return
        place = filler(target.accounts)
        if place not in await self.accounts():
            await self.new_account(place, "")
        await self.unbind_account(target.tid, user, place)

    async def _chosen(self, iqn: str) -> tuple[Target, ...]:
        return tuple(one for one in await self.targets() if iqn in ("", one.iqn))

    async def _unfinished_logins(self) -> frozenset[str]:
        """Return the addresses with more TCP connections to the portal than sessions at tgtd.

        tgtd checks a login against the ACL when it begins and not when it ends (iscsid.c, login_start and
        login_finish): a login that pauses in between would become a session after the cut."""
        peers = sockets.by_address(sockets.connections(self.port))
        for target in await self.targets():
            for session in target.sessions:
                peers.subtract(one.address for one in session.connections)
        return frozenset(+peers)

    def _end_logins(self, addresses: Collection[str]) -> None:
        """Shut down the connections from `addresses`: full sessions among them reconnect by themselves."""
        try:
            peers = [peer for peer in sockets.connections(self.port) if peer.address in addresses]
            sockets.shut_down(sockets.server_pid(f"{self.env['TGT_IPC_SOCKET']}.0"), peers)
        except OSError as error:
            log.warning("cannot end unfinished logins from %s: %s", ", ".join(sorted(addresses)), error)


def _way_in(targets: Sequence[Target], initiator: str, unfinished: Collection[str], addresses: Collection[str]) -> str:
    """Return how `initiator`, or a connection from `addresses`, could still write to one of `targets`; "" if not."""
    for target in targets:
        for session in target.sessions:
            if any(each.address in addresses for each in session.connections):
                return f"it has a session at {target.iqn} under the name {session.initiator}"
        if initiator in target.acl or any(one.initiator == initiator for one in target.sessions):
            return f"{target.iqn} admits it"
    if targets and unfinished:
        return f"a login from {', '.join(sorted(unfinished))} is unfinished"
    return ""
