"""Saves domains of this node to files, and starts them from there."""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path

from veery.cluster import owner as owners
from veery.cluster.keys import DOMAINS
from veery.cluster.presence import Heartbeat
from veery.cluster.store import Store
from veery.errors import Refused, hinting
from veery.model.cluster import DomainRecord
from veery.model.domain import DomainReading, DomainSpec
from veery.node import savefile
from veery.node.domains import Domains, alive

log = logging.getLogger(__name__)


class Saving:
    """The orders `save` and `restore`. A `ref` is a name, a domid or a UUID."""

    def __init__(self, domains: Domains, store: Store, heartbeat: Heartbeat) -> None:
        self._domains, self._store, self._heartbeat = domains, store, heartbeat
        self._driver = domains.driver

    async def save(self, ref: str, path: Path, leave: str) -> None:
        """Write the domain's state to `path`; afterwards the domain is `leave`: "destroyed", "running" or "paused".

        Only the file of a destroyed domain can be restored as it is, because otherwise the domain writes to its disks
        afterwards. On failure the domain runs on, and an older file at `path` is kept."""
        savefile.check_place(path)
        async with self._domains.held(ref) as reading:
            owner = await self._domains.ours(reading.name)
            alive(reading)
            token = secrets.token_hex(8)
            part = path.with_name(f".{path.name}.part")
            spec, luggage = await self._driver.pack(reading.uuid)
            with hinting("the domain runs on; save it where there is enough room"):
                await self._driver.save(reading.uuid, part)
            try:
                backlog = await self._driver.backlog(reading.uuid)
                saved = savefile.Saved(spec=spec, token=token, luggage=luggage, backlog=backlog, paused=reading.held)
                await asyncio.to_thread(savefile.finish, part, path, saved)
                if leave == "destroyed":
                    await self._promise(spec, token, path)
            except BaseException:
                part.unlink(missing_ok=True)
                if not reading.held:
                    await self._driver.unpause(reading.uuid)
                raise
            if leave == "destroyed":
                await self._domains.wanted.say(reading.name, wanted=False)
                await self._domains.end(reading, owner)
            elif leave == "running" and not reading.held:
                await self._driver.unpause(reading.uuid)

    async def _promise(self, spec: DomainSpec, token: str, path: Path) -> None:
        """Record that the file at `path` may be restored. If that cannot be recorded, delete the file."""
        try:
            await self._domains.remember(DomainRecord(spec=spec, saved=token))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def restore(self, path: Path, *, paused: bool = False, force: bool = False) -> DomainReading:
        """Start the domain that `save` wrote. Raises Refused if its disks have been written since (unless `force`)."""
        saved = await asyncio.to_thread(savefile.read, path)
        spec = saved.spec
        await self._heartbeat.require()
        async with self._domains.locks.hold(spec.name):
            await self._domains.conflicts.name(spec.name)
            record = await DOMAINS.get(self._store, spec.name)
            if not force and (record is None or record.saved != saved.token):
                raise Refused(
                    f"{path} is stale: {spec.name} has run since it was saved, and its disks have changed",
                    hint="start it again with veery create; restore --force risks its filesystems",
                )
            await self._domains.check_attachable(spec)
            self._domains.conflicts.home(spec, record)
            await owners.refuse_written(self._store, spec, record, self._domains.node)
            async with self._domains.claimed(spec, record) as owner:
                reading = await self._load(path, saved, paused=paused)
                log.info("domain=%s id=%d restored boot=%s", spec.name, reading.domid, owner.boot)
                await self._domains.wanted.say(spec.name, wanted=True)
                return reading

    async def _load(self, path: Path, saved: savefile.Saved, *, paused: bool) -> DomainReading:
        attacher = self._domains.attacher
        attachments = await attacher.attach(saved.spec)
        try:
            with hinting(f"if {path.name} is damaged, veery create starts {saved.spec.name} again"):
                reading = await self._driver.restore(
                    saved.spec, attachments, saved.luggage, path, backlog=saved.backlog, paused=paused or saved.paused
                )
        except BaseException:
            await attacher.detach(attachments)
            raise
        attacher.taken(attachments)
        return reading
