"""The target's side of one move: `xl migrate-receive` behind veery's relay. relay.py says which process stops when.

    FOLDER/xl      pid and start time of xl migrate-receive
    FOLDER/loaded  made once everything is loaded and xl is stopped
    FOLDER/log     the errors of both

The folder exists from `prepare` until the domain runs here or is gone: it marks a half domain. xl calls that
NAME--incoming; its UUID is the domain's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veery.errors import Failed, Refused
from veery.host.process import Process
from veery.hypervisor.xen import session
from veery.hypervisor.xen.outgoing import RELAY, Tool
from veery.hypervisor.xen.parse import Row, complaint
from veery.hypervisor.xen.relay_link import RelayLink

log = logging.getLogger(__name__)

BEGIN_DEADLINE_S = 30.0  # for the relay and xl to start
LET_RUN_DEADLINE_S = 30.0  # for xl to let the domain run
_CHACHA = """\
openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = contexts
[contexts]
Ciphersuites = TLS_CHACHA20_POLY1305_SHA256
"""
UNWIND_DEADLINE_S = 15.0  # for an xl whose stream broke to destroy its half domain


class Incoming:
    """One domain's way in, under `folder`. It may be one of an earlier run of veeryd; then only `finish` and `end` are
    of use."""

    def __init__(self, folder: Path, uuid: str, name: str, xl: Tool) -> None:
        """`name` is the name that the domain must have. Nothing happens yet."""
        self._folder, self._uuid, self._name, self._xl = folder, uuid, name, xl
        self._link: RelayLink | None = None
        self._relay: Process | None = None

    async def prepare(self) -> None:
        """Start relay and xl, which wait for a stream; there is no domain yet. On failure nothing is left. Raises
        Failed."""
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(mode=0o700, parents=True)
            link = self._link = RelayLink(self._folder / "door")
            link.open()
            argv = [*RELAY, "receive", str(link.path), str(self._folder / "xl"), self._xl.program]
            self._relay = Process.spawn(argv, log_file=self._folder / "log", env=self._ciphers())
            async with asyncio.timeout(BEGIN_DEADLINE_S):
                await link.answer()
                await self._news("there")
        except TimeoutError:
            reason = self._said()
            await self.end()
            raise Failed(f"xl migrate-receive did not answer: {reason}") from None
        except BaseException:
            await self.end()
            raise

    async def receive(
        self,
        stream: socket.socket,
        *,
        disks: Mapping[str, str],
        scripts: Mapping[str, str],
        peer: str,
        tls: Path | None,
    ) -> None:
        """See Driver.receive. `disks` gives the path here of each disk by its virtual device, `scripts` veery's hotplug
        scripts (handshake.furnished). `tls` is the folder of the certificates, None for a plain stream."""
        assert self._link is not None
        order = {"tls": str(tls or ""), "peer": peer, "disks": dict(disks), "scripts": dict(scripts)}
        try:
            await self._link.tell({"take": order}, stream.fileno())
            await self._news("ready")
        except BaseException:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            raise

    async def stands(self) -> bool:
        """Return whether the half domain is here. While its xl waits, /proc shows that in microseconds."""
        process = session.noted(self._folder / "xl")
        return (process is not None and process.alive()) or await self._row() is not None

    async def finish(self, *, paused: bool) -> Row | None:
        """See Driver.finish. Let the waiting xl continue. Whatever xl did not do, or cannot do because it is gone, is
        done here: the domain's processors, its name. Returns Xen's row, None where it must be read again. Idempotent.
        Raises Failed where the domain is not loaded, or xl does not let it run: call it again."""
        if not self._folder.exists():
            return None
        if not (self._folder / "loaded").exists():
            raise Failed(f"{self._name} is not loaded yet")
        asked = not paused and self._link is not None
        if asked:
            await self._let_go()
        await self._kill()
        row = await self._row()
        if row is None:
            raise Refused(f"no domain {self._name} here")
        done = row.name == self._name and (paused or not row.held)
        if asked and not done:
            log.error("domain=%s xl did not let it run: %s", self._name, self._said())
        await self._by_hand(row, paused)
        self._forget()
        return row if done else None

    async def end(self) -> None:
        """End every xl that works at this domain; the caller then destroys what is left of it. Idempotent."""
        if not self._folder.exists():
            return
        process = session.noted(self._folder / "xl")
        if process is not None and process.alive() and not session.stopped(process):
            self._hang_up()  # xl's stream ends: xl itself destroys its half domain
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNWIND_DEADLINE_S):
                    await process.gone()
        await self._kill()
        self._forget()

    # ---- inside

    def _ciphers(self) -> dict[str, str] | None:
        """Return the environment that selects ChaCha20 on a processor without AES instructions, where it takes a
        quarter of the time. In TLS 1.3 the receiver chooses the cipher, and ssl of Python 3.11 cannot set it (OpenSSL,
        config(5))."""
        if " aes" in Path("/proc/cpuinfo").read_text():
            return None
        path = self._folder / "openssl.cnf"
        path.write_text(_CHACHA)
        return {"OPENSSL_CONF": str(path)}

    async def _let_go(self) -> None:
        """Let xl continue; return when it has finished, or does not."""
        assert self._link is not None
        with contextlib.suppress(Failed, TimeoutError):
            async with asyncio.timeout(LET_RUN_DEADLINE_S):
                await self._link.tell({"go": True})
                await self._link.hear()

    async def _by_hand(self, row: Row, paused: bool) -> None:
        if not paused and row.held:
            await self._xl.unpause(row.domid)
        if row.name != self._name:
            await self._xl.rename(row.domid, self._name)

    async def _row(self) -> Row | None:
        return next((row for row in await self._xl.rows() if row.uuid == self._uuid and not row.dying), None)

    async def _kill(self) -> None:
        """End xl first, then the relay, without any further action of theirs."""
        process = session.noted(self._folder / "xl")
        if process is not None:
            await session.kill(process)
        self._hang_up()
        if self._relay is not None:
            await self._relay.stop(grace=0)

    async def _news(self, wanted: str) -> dict[str, Any]:
        """Return the relay's report `wanted`. Raises Failed when the relay ends before it."""
        assert self._link is not None
        while True:
            news = await self._link.hear()
            if news is None or "end" in news:
                said = self._said()
                raise Failed(f"{(news or {}).get('end', 'the relay is gone')}{f' ({said})' if said else ''}")
            if wanted in news:
                return news

    def _said(self) -> str:
        with contextlib.suppress(OSError):
            said = complaint((self._folder / "log").read_text(errors="replace"))
            return "" if said == "no reason given" else said
        return ""

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _forget(self) -> None:
        self._hang_up()
        shutil.rmtree(self._folder, ignore_errors=True)
