"""The domains of this node: the record of each, next to what Xen reports about it now.

Xen is asked (`look`), and each answer is compared with the records. A domain that has shut down or is gone makes an
event; one that restarted itself is created again, as xl's own watcher would do. Domains made with plain xl are left
alone, because they do not belong to veery."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from veery.config.adjust import fitting
from veery.config.check import check_uuid
from veery.errors import Failed, NotFound, Refused, VeeryError
from veery.host import tasks
from veery.host.clock import Clock
from veery.hypervisor.dmesg import Dmesg
from veery.hypervisor.xen import config, disks
from veery.hypervisor.xen.console import XenHub
from veery.hypervisor.xen.disks import Initiator
from veery.hypervisor.xen.parse import Info, Row
from veery.hypervisor.xen.statedir import Home, Record, Stage
from veery.hypervisor.xen.xenstore import Xenstore
from veery.hypervisor.xen.xl import Xl
from veery.model.domain import DomainEnd, DomainEvent, DomainReading, DomainSpec, DomainState, OnEvent
from veery.model.volume import AttachedVif, Attachments

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 5.0
"""Between two looks while xenstore reports nothing."""
FRESH_S = 5.0
"""How long Xen's answers count, while veeryd orders nothing and xenstore reports nothing. HA asks twice a second, and
in software emulation one xl takes a third of one."""
STALE_S = 30.0
"""How long `xl info` counts while no domain comes, goes or grows."""
RETRY_INTERVAL_S = 0.5
GONE_DEADLINE_S = 60.0
"""For a destroyed domain to be off Xen's list."""
TRIM_INTERVAL_S = 5.0
RESTARTS = frozenset({OnEvent.RESTART, OnEvent.COREDUMP_RESTART, OnEvent.SOFT_RESET})


class Domain:
    """One domain; `row` is Xen's last report of it, None while there is none."""

    def __init__(self, home: Home, record: Record) -> None:
        """Nothing is read before Xen has reported the domain."""
        self.home, self.record = home, record
        self.row: Row | None = None
        self.hub = XenHub(record.spec.name, home.console_log)
        self.lock = asyncio.Lock()  # one change of its devices at a time
        self.dying = False

    def update(self, **changes: Any) -> None:
        """Write `changes` to the record."""
        self.record = replace(self.record, **changes)
        self.home.write(self.record)

    def leave(self, stage: Stage) -> None:
        """Mark it as running, if `stage` is still its stage: a second caller may find that its guest has restarted
        since, and that a new instance begins."""
        if self.record.stage is stage:
            self.update(stage=Stage.RUNNING)

    def state(self) -> DomainState:
        """Return its current state."""
        record, row = self.record, self.row
        if self.dying:
            return DomainState.DYING
        if record.stage is Stage.INCOMING:
            return DomainState.INCOMING
        if record.stage is Stage.REBOOTING:
            return DomainState.RUNNING
        if row is None:
            return DomainState.PAUSED
        return row.state

    def reading(self) -> DomainReading:
        """Return the domain's reading for Driver.list."""
        record, row = self.record, self.row
        return DomainReading(
            name=record.spec.name,
            uuid=record.spec.uuid,
            domid=record.domid,
            state=self.state(),
            memory=row.memory if row else record.spec.memory,
            vcpus=record.spec.vcpus,  # xl shows those that the guest has brought up: one, while it boots
            cpu_seconds=row.cpu_seconds if row else 0.0,
            started=record.build.started,
        )


class Registry:
    """Every domain here by its UUID; `events` is the queue behind the driver's events."""

    def __init__(self, run: Path, xl: Xl, store: Xenstore, initiator: Initiator, clock: Clock) -> None:
        """`run` holds xen/ and xen.log; it need not survive a boot of the machine."""
        self.xl, self.initiator = xl, initiator
        self.scripts: Mapping[str, str] = {}
        self.cpus = 0  # of this host, once Xen has reported them
        self._homes = run / "xen"
        self.dmesg = Dmesg(run / "xen.log", clock)
        self._store, self._clock = store, clock
        self._domains: dict[str, Domain] = {}
        self._unread: list[Path] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[tuple[Row, ...]] | None = None
        self._asked: asyncio.Task[tuple[Row, ...]] | None = None
        self._stirred = asyncio.Event()
        self._rows: tuple[Row, ...] = ()
        self._seen: dict[str, Record] = {}
        self._seen_at = float("-inf")
        self._changes = self._seen_changes = 0  # count of changes, and the count when the last look began
        self._info: tuple[tuple[tuple[int, int], ...], float, Info] | None = None
        self.events: asyncio.Queue[DomainEvent] = asyncio.Queue()

    # ---- life

    async def open(self) -> None:
        """Find the domains that run already."""
        for path in sorted(self._homes.glob("*/record.json")):
            home = Home(path.parent)
            try:
                record = home.read()
            except Failed as error:
                log.error("%s: %s; its domain is left running", home.path, error)
                self._unread.append(home.path)
                continue
            if record is not None:
                self._domains[record.spec.uuid] = Domain(home, record)
        if self._domains:
            await self._adopt()
        self.task(self._watch(), "watch xenstore")
        self.task(self._look_for_ever(), "watch domains")
        self.task(self._trim(), "trim console logs")

    async def close(self) -> None:
        """Release every domain without touching it."""
        await tasks.stop(*self._tasks)
        await tasks.stop(*(each for each in (self._looking, self._asked) if each is not None))
        for domain in self._domains.values():
            await domain.hub.close()
        self._domains.clear()

    def remembers(self) -> bool:
        """Return whether there are records of domains."""
        return any(self._homes.glob("*/record.json"))

    def unread(self) -> tuple[str, ...]:
        """See Driver.unread. They stay listed until their folders are removed."""
        self._unread = [path for path in self._unread if path.exists()]
        return tuple(str(path) for path in self._unread)

    # ---- finding

    def domains(self) -> list[Domain]:
        """Return all domains, sorted by domid."""
        return sorted(
            self._domains.values(), key=lambda domain: (domain.record.domid or 1 << 16, domain.record.spec.name)
        )

    def present(self, uuid: str) -> Domain:
        """Return the domain, for reading only: it may be just starting. Raises Refused when it is not here."""
        domain = self._domains.get(uuid)
        if domain is None:
            raise NotFound(f"no domain {uuid} here", hint="veery list shows the domains here")
        return domain

    def domain(self, uuid: str) -> Domain:
        """Return the domain, up and ready for orders. Raises Refused when it is not here, or not yet."""
        domain = self.present(uuid)
        if domain.record.stage in {Stage.STARTING, Stage.REBOOTING}:
            raise Refused(f"{domain.record.spec.name} is just starting", hint="try again when it has started")
        return domain

    def free(self, uuid: str) -> Domain:
        """Return a domain that no move and no save holds. Raises Refused."""
        domain = self.domain(uuid)
        if domain.record.stage is not Stage.RUNNING:
            raise Refused(
                f"{domain.record.spec.name} is {_DOING[domain.record.stage]}", hint="wait for its end: veery moves"
            )
        return domain

    def refuse_taken(self, spec: DomainSpec, rows: tuple[Row, ...]) -> None:
        """Raise Refused when a domain of this name, or this UUID, is here."""
        if spec.uuid in self._domains:
            raise Refused(f"{spec.name} is here already", hint="veery list shows the domains here")
        if any(row.uuid == spec.uuid and not row.dying for row in rows):
            raise Refused(f"an instance of {spec.name} runs here without veery", hint="xl list shows it; xl destroy")
        named = {domain.record.spec.name for domain in self._domains.values()} | {row.name for row in rows}
        if spec.name in named:
            raise Refused(
                f"a domain {spec.name} is here already", hint="veery list, or xl list, shows the domains here"
            )

    # ---- looking

    async def look(self) -> tuple[Row, ...]:
        """Return Xen's list as read after this call, and update the records from it. Callers that ask at the same time
        share one list."""
        if self._asked is None:
            self._asked = asyncio.create_task(self._next_look(self._looking), name="xl list")
            # it may have no waiters any more
            self._asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._asked)

    def changed(self) -> None:
        """Note that Xen's state has changed: earlier lists, and one that is being read now, are no longer valid."""
        self._changes += 1
        self._stirred.set()

    async def see(self) -> tuple[Row, ...]:
        """Return a recent list if nothing is known to have changed since; else do as `look`."""
        return self._rows if self._fresh() else await self.look()

    async def info(self) -> Info:
        """Return `xl info`; its last answer is valid while the domains and their memory are the same."""
        sizes = tuple((row.domid, row.memory) for row in await self.see())
        now = asyncio.get_running_loop().time()
        if self._info is None or self._info[0] != sizes or now - self._info[1] > STALE_S:
            self._info = (sizes, now, await self.xl.info())
        return self._info[2]

    def _fresh(self) -> bool:
        if self._changes != self._seen_changes or asyncio.get_running_loop().time() - self._seen_at > FRESH_S:
            return False
        now = {uuid: domain.record for uuid, domain in self._domains.items()}
        return now.keys() == self._seen.keys() and all(now[uuid] is self._seen[uuid] for uuid in now)

    async def row(self, uuid: str) -> Row | None:
        """Return Xen's current report of a domain of veery; None where Xen does not have it."""
        await self.look()
        return self.present(uuid).row

    async def _next_look(self, before: asyncio.Task[tuple[Row, ...]] | None) -> tuple[Row, ...]:
        if before is not None:
            await asyncio.wait({before})
        self._looking, self._asked = self._asked, None
        known = {uuid: domain.record for uuid, domain in self._domains.items()}
        begun, changes = asyncio.get_running_loop().time(), self._changes
        rows = await self.xl.rows()
        self._rows, self._seen, self._seen_at, self._seen_changes = rows, known, begun, changes
        for uuid, record in known.items():
            domain = self._domains.get(uuid)
            # one that changed while xl looked is compared at the next look
            if domain is not None and domain.record is record:
                self._compare(domain, _own(record, rows))
        return rows

    def _compare(self, domain: Domain, row: Row | None) -> None:
        domain.row = row
        record, name = domain.record, domain.record.spec.name
        if domain.dying or not record.domid:
            return
        if row is None or row.dying:
            if record.stage in {Stage.RUNNING, Stage.INCOMING, Stage.SAVING}:
                log.error("domain=%s id=%d is gone without an order", name, record.domid)
                self._lost(domain)
            return
        if not domain.hub.attached and row.reason is None:
            self.task(self._listen(domain), f"console of {name}")
        end = row.end
        if end is None or record.ended is not None or record.stage is not Stage.RUNNING:
            return
        if end is DomainEnd.REBOOT and record.spec.on_reboot in RESTARTS:
            domain.update(stage=Stage.REBOOTING)
            self.task(self.begin_again(domain), f"reboot {name}")
            return
        domain.hub.drain()
        domain.update(ended=end)
        self.dmesg.note(f"{name} ({record.domid}) ended: {end}")
        self.events.put_nowait(DomainEvent(record.spec.uuid, end))

    def _lost(self, domain: Domain) -> None:
        """Report a domain that is gone, and forget it."""
        record = domain.record
        self._domains.pop(record.spec.uuid, None)
        domain.dying = True
        self.dmesg.note(f"{record.spec.name} ({record.domid}) ended: {DomainEnd.DIED}")
        self.events.put_nowait(DomainEvent(record.spec.uuid, DomainEnd.DIED))
        self.task(self.forget(domain), f"forget {record.spec.name}")

    async def _listen(self, domain: Domain) -> None:
        """Read the domain's console as soon as xenconsoled has one for it."""
        try:
            terminal = await self._store.console(domain.record.domid)
            if terminal is not None and not domain.dying and not domain.hub.attached:
                domain.hub.attach(terminal)
        except VeeryError as error:
            log.debug("domain=%s console: %s", domain.record.spec.name, error.message)

    async def listening(self, domain: Domain, *, deadline: float = 10.0) -> None:
        """Return once the console is read. Earlier output is not lost: xenconsoled keeps it."""
        ends = asyncio.get_running_loop().time() + deadline
        while not domain.hub.attached and not domain.dying and asyncio.get_running_loop().time() < ends:
            await self._listen(domain)
            if not domain.hub.attached:
                await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        while True:
            await self._store.watch(self.changed)
            await asyncio.sleep(RETRY_INTERVAL_S)
            self.changed()  # changes may have been missed; without xenstore-watch this sets the pace

    async def _look_for_ever(self) -> None:
        last_error = ""
        while True:
            self._stirred.clear()
            try:
                await self.look()
                last_error = ""
            except VeeryError as error:
                if error.message != last_error:
                    log.warning("xl list: %s", error.message)
                last_error = error.message
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._stirred.wait()
            except TimeoutError:
                pass

    # ---- start and end

    def enter(self, record: Record, backlog: bytes = b"", devices: config.Devices | None = None) -> Domain:
        """Add a new domain and write its record. Raises Refused where its UUID is not valid."""
        check_uuid(record.spec.uuid)  # it names a folder, which is replaced
        home = Home(self._homes / record.spec.uuid)
        home.make(record, self._text(record, devices or {}), backlog)
        domain = self._domains[record.spec.uuid] = Domain(home, record)
        return domain

    def _text(self, record: Record, devices: config.Devices) -> str:
        """Return the domain file for xl. Where this host has none of the processors that a domain is pinned to, the
        domain runs on all."""
        spec = record.spec
        if self.cpus and fitting(spec, self.cpus) != spec:
            log.warning(
                "domain=%s is pinned to processors that this host lacks: it runs on all %d", spec.name, self.cpus
            )
            self.dmesg.note(f"{spec.name} is pinned to processors that this host lacks: it runs on all")
        return config.text(spec, record.attachments, devices, self.scripts, cpus=self.cpus)

    async def number(self, domain: Domain, row: Row | None = None) -> Row:
        """Return Xen's row of a domain that was just made, `row` if the caller has it; record its domid. Raises
        Failed."""
        spec = domain.record.spec
        if row is None:
            found = [row for row in await self.xl.rows() if row.uuid == spec.uuid and not row.dying]
            if not found:
                hint = "veery dmesg; was its kernel built for Xen?"
                raise Failed(f"{spec.name} ended right after its start", hint=hint)
            row = max(found, key=lambda each: each.domid)
        domain.row = row
        domain.update(domid=row.domid, attachments=numbered(domain.record.attachments, row.domid))
        return row

    async def login(self, attachments: Attachments) -> dict[str, Path]:
        """Return every LUN of `attachments` as a device. On failure log out of those that no other domain uses."""
        found: dict[str, Path] = {}
        try:
            for vdev, lun in disks.luns(attachments).items():
                found[vdev] = await self.initiator.login(lun)
        except BaseException:
            await self.logout(attachments)
            raise
        return found

    async def logout(self, attachments: Attachments) -> None:
        """Log out of the LUNs that no domain here has any more."""
        used = {lun for domain in self._domains.values() for lun in disks.luns(domain.record.attachments).values()}
        for lun in set(disks.luns(attachments).values()) - used:
            try:
                await self.initiator.logout(lun)
            except VeeryError as error:
                log.warning("iqn=%s logout failed: %s", lun.iqn, error.message)

    async def destroy(self, uuid: str) -> None:
        """See Driver.destroy. Reads Xen's list until the domain is no longer on it."""
        domain = self._domains.get(uuid)
        if domain is None:
            return
        was, domain.dying = domain.dying, True
        try:
            if domain.record.stage is Stage.REBOOTING:
                async with domain.lock:
                    pass  # a new instance that is being made is not on Xen's list yet
            await self.end(domain)
        except BaseException:
            domain.dying = was
            raise
        await self.forget(domain)
        self.dmesg.note(f"{domain.record.spec.name} ({domain.record.domid}) destroyed")

    async def end(self, domain: Domain) -> None:
        """Destroy every instance of the domain that Xen has; return when none can write any more. Raises Failed,
        OutcomeUnknown."""
        uuid, name = domain.record.spec.uuid, domain.record.spec.name
        loop = asyncio.get_running_loop()
        ends = loop.time() + GONE_DEADLINE_S
        domain.hub.drain()
        while True:
            left = [row for row in await self.xl.rows() if mine(domain.record, row)]
            if not left:
                return
            for row in left:
                try:
                    await self.xl.destroy(row.domid)
                except Failed:
                    if loop.time() > ends:
                        raise
            if all(row.dying for row in left) and loop.time() > ends - GONE_DEADLINE_S + 10.0:
                # its processors are gone and xl has removed its devices; another domain holds its last pages
                log.warning("domain=%s uuid=%s stays on Xen's list as dying", name, uuid)
                return
            if loop.time() > ends:
                raise Failed(f"{name} does not end", hint="xl list shows it; see veery dmesg")
            await asyncio.sleep(0.05)

    async def forget(self, domain: Domain) -> None:
        """Remove a domain that is gone from the list, log out of its disks, remove its folder."""
        if self._domains.get(domain.record.spec.uuid) is domain:
            del self._domains[domain.record.spec.uuid]
        domain.row = None
        await domain.hub.close()
        await self.logout(domain.record.attachments)
        domain.home.remove()

    async def begin_again(self, domain: Domain) -> None:
        """End the old instance of a guest that restarted and start a new one, as xl's own watcher does."""
        name = domain.record.spec.name
        async with domain.lock:
            try:
                domain.hub.drain()
                domain.hub.detach()
                await self.end(domain)
                if not self._has(domain):
                    return
                record = domain.record
                devices = await self.login(record.attachments)
                domain.home.config.write_text(self._text(record, devices))
                await self.xl.create(domain.home.config, paused=False)
                if not self._has(domain):
                    await self.end(domain)
                    return
                await self.number(domain)
                build = replace(domain.record.build, started=self._clock.epoch())
                domain.update(stage=Stage.RUNNING, ended=None, build=build)
                self.dmesg.note(f"{name} ({domain.record.domid}) restarted")
            except VeeryError as error:
                log.error("domain=%s did not restart: %s", name, error.message)
                self.dmesg.note(f"{name} did not restart: {error.message}")
                self._lost(domain)
                return
        await self._listen(domain)

    def _has(self, domain: Domain) -> bool:
        """Return whether the domain still belongs to this registry: it was not destroyed, and not found to be gone.
        Otherwise a new instance of it would have no owner."""
        return self._domains.get(domain.record.spec.uuid) is domain and not domain.dying

    async def _adopt(self) -> None:
        """After a restart of veeryd, settle orders that were cut short; the other domains run on."""
        for domain in self.domains():
            await strays(domain)
        rows = await self.xl.rows()
        for domain in self.domains():
            record = domain.record
            domain.row = _own(record, rows)
            if record.stage is Stage.STARTING:  # its start was never reported
                domain.dying = True
                await self.end(domain)
                await self.forget(domain)
            elif record.stage is Stage.REBOOTING:
                self.task(self.begin_again(domain), f"reboot {record.spec.name}")
            elif record.stage is Stage.SAVING:
                if domain.row is not None and domain.row.state is DomainState.PAUSED and not record.held:
                    await self.xl.unpause(record.domid)
                domain.update(stage=Stage.RUNNING)
            else:
                log.info("domain=%s found, id %d", record.spec.name, record.domid)
            if record.ended is not None:  # the earlier veeryd may have died before it handled this
                self.events.put_nowait(DomainEvent(record.spec.uuid, record.ended))

    # ---- the log, and tasks

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(TRIM_INTERVAL_S)
            for domain in self._domains.values():
                try:
                    domain.hub.trim()
                except OSError as error:
                    log.warning("domain=%s console log: %s", domain.record.spec.name, error)

    def task(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run `work` in the background until it ends or `close`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_DOING = {
    Stage.INCOMING: "on its way here",
    Stage.SENDING: "being moved",
    Stage.SAVING: "being saved",
}


def mine(record: Record, row: Row) -> bool:
    """Return whether a row is an instance of this domain; for one that restarts, also an instance whose number is not
    recorded yet."""
    unnumbered = not record.domid or record.stage is Stage.REBOOTING
    return row.uuid == record.spec.uuid and (unnumbered or row.domid == record.domid)


def _own(record: Record, rows: tuple[Row, ...]) -> Row | None:
    return next((row for row in rows if mine(record, row)), None)


def numbered(attachments: Attachments, domid: int) -> Attachments:
    """Return the same attachments, with the interfaces named as Xen names them once the domain has a number:
    vifDOMID.N."""
    vifs = []
    for index, vif in enumerate(attachments.vifs):
        place = vif.spec.devid if vif.spec.devid >= 0 else index
        vifs.append(AttachedVif(spec=vif.spec, device=vif.spec.vifname or f"vif{domid}.{place}"))
    return replace(attachments, domid=domid, vifs=tuple(vifs))


async def strays(domain: Domain, *, deadline: float = 120.0) -> None:
    """Wait for an xl that an earlier run of veeryd left at work on this domain."""
    marks = (os.fsencode(domain.home.config), os.fsencode(f"\0save\0-p\0{domain.record.domid}\0"))
    ends = asyncio.get_running_loop().time() + deadline
    while asyncio.get_running_loop().time() < ends:
        if not any(_runs(entry, marks) for entry in Path("/proc").glob("[0-9]*/cmdline")):
            return
        await asyncio.sleep(0.1)
    log.error("domain=%s: an xl of an earlier veeryd is still at work", domain.record.spec.name)


def _runs(entry: Path, marks: tuple[bytes, ...]) -> bool:
    try:
        words = entry.read_bytes()
    except OSError:
        return False
    return any(mark in words for mark in marks)
