"""A domain on its way in: `xl migrate-receive` with our relay before it. See relay.py for who stops when.

    FOLDER/xl      pid and start time of xl migrate-receive
    FOLDER/loaded  made once everything is loaded and xl stands still
    FOLDER/log     what they complained of

The folder is there from `prepare` until the domain runs here or is no more: it says that this is half a domain. xl
calls that NAME--incoming; its UUID is the domain's own."""

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

BEGIN = 30.0  # seconds for the relay and xl to be there
LET_RUN = 30.0  # seconds for xl to let the domain run
_CHACHA = """\
openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = contexts
[contexts]
Ciphersuites = TLS_CHACHA20_POLY1305_SHA256
"""
UNWIND = 15.0  # seconds for an xl whose stream broke to destroy its half of the domain


class Incoming:
    """One domain's way in, under `folder`. Also of an earlier life of ours: then only `finish` and `end` are of use."""

    def __init__(self, folder: Path, uuid: str, name: str, xl: Tool) -> None:
        """Nothing is done yet. `name` is the one that the domain is to have."""
        self._folder, self._uuid, self._name, self._xl = folder, uuid, name, xl
        self._door: RelayLink | None = None
        self._relay: Process | None = None

    async def prepare(self) -> None:
        """Have relay and xl wait for a stream; there is no domain yet. On failure nothing is left. Raises Failed."""
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(mode=0o700, parents=True)
            door = self._door = RelayLink(self._folder / "door")
            door.open()
            argv = [*RELAY, "receive", str(door.path), str(self._folder / "xl"), self._xl.program]
            self._relay = Process.spawn(argv, log_file=self._folder / "log", env=self._ciphers())
            async with asyncio.timeout(BEGIN):
                await door.answer()
                await self._news("there")
        except TimeoutError:
            reason = self._said()
            await self.end()
            raise Failed(f"xl migrate-receive does not answer: {reason}") from None
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
        """See Driver.receive. `disks` gives the path here of each disk by its virtual device, `scripts` our hotplug
        scripts (handshake.furnished); `tls` is the folder of the certificates, None: in the clear."""
        assert self._door is not None
        order = {"tls": str(tls or ""), "peer": peer, "disks": dict(disks), "scripts": dict(scripts)}
        try:
            await self._door.tell({"take": order}, stream.fileno())
            await self._news("ready")
        except BaseException:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            raise

    async def stands(self) -> bool:
        """Whether the half of the domain is here. Where its xl waits that is seen from /proc, in microseconds."""
        process = session.noted(self._folder / "xl")
        return (process is not None and process.alive()) or await self._row() is not None

    async def finish(self, *, paused: bool) -> Row | None:
        """See Driver.finish. The waiting xl is given its go; whatever it did not do, or where there is none any more,
        is done here: the domain's processors, its name. What Xen then has, None where that is to be looked at again.
        Idempotent. Raises Failed where it is not loaded, or xl does not do it: it is to be tried again."""
        if not self._folder.exists():
            return None
        if not (self._folder / "loaded").exists():
            raise Failed(f"{self._name} is not loaded yet")
        asked = not paused and self._door is not None
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
        """No xl works at this domain any more; what there is of it is the caller's to destroy. Idempotent."""
        if not self._folder.exists():
            return
        process = session.noted(self._folder / "xl")
        if process is not None and process.alive() and not session.stopped(process):
            self._hang_up()  # xl's stream ends: it destroys its half itself
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UNWIND):
                    await process.gone()
        await self._kill()
        self._forget()

    # ---- inside

    def _ciphers(self) -> dict[str, str] | None:
        """Without instructions for AES, ChaCha20 takes a quarter of the time; what TLS 1.3 agrees on is the receiver's
        choice, and ssl of Python 3.11 has no word for it (OpenSSL, config(5))."""
        if " aes" in Path("/proc/cpuinfo").read_text():
            return None
        path = self._folder / "openssl.cnf"
        path.write_text(_CHACHA)
        return {"OPENSSL_CONF": str(path)}

    async def _let_go(self) -> None:
        """Give xl its go; return when it has done what it would, or does not."""
        assert self._door is not None
        with contextlib.suppress(Failed, TimeoutError):
            async with asyncio.timeout(LET_RUN):
                await self._door.tell({"go": True})
                await self._door.hear()

    async def _by_hand(self, row: Row, paused: bool) -> None:
        if not paused and row.held:
            await self._xl.unpause(row.domid)
        if row.name != self._name:
            await self._xl.rename(row.domid, self._name)

    async def _row(self) -> Row | None:
        return next((row for row in await self._xl.rows() if row.uuid == self._uuid and not row.dying), None)

    async def _kill(self) -> None:
        """End xl and the relay without their doing anything more: xl first."""
        process = session.noted(self._folder / "xl")
        if process is not None:
            await session.kill(process)
        self._hang_up()
        if self._relay is not None:
            await self._relay.stop(grace=0)

    async def _news(self, wanted: str) -> dict[str, Any]:
        """The news `wanted`. Raises Failed when the relay ends before it."""
        assert self._door is not None
        while True:
            news = await self._door.hear()
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
        if self._door is not None:
            self._door.close()
            self._door = None

    def _forget(self) -> None:
        self._hang_up()
        shutil.rmtree(self._folder, ignore_errors=True)
