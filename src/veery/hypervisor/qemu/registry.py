"""The domains of this node: started, found again after a restart of veeryd, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

from veery.errors import Failed, NotFound, Refused, VeeryError
from veery.host import kept, tasks
from veery.host.clock import Clock
from veery.host.files import write_atomic
from veery.host.owner import Owner, Owners
from veery.host.process import Process, trim_log
from veery.hypervisor.dmesg import Dmesg
from veery.hypervisor.qemu import cgroup, disklimits, hotplug, lending, machine, migration
from veery.hypervisor.qemu.argv import Command
from veery.hypervisor.qemu.build import Build
from veery.hypervisor.qemu.cgroup import Groups
from veery.hypervisor.qemu.choice import Choice
from veery.hypervisor.qemu.domain import Domain
from veery.hypervisor.qemu.process import Home, Record, Stage
from veery.model.domain import DomainEnd, DomainEvent, DomainSpec
from veery.model.volume import Attachments, LocalDisk

log = logging.getLogger(__name__)

START_DEADLINE_S = 30.0
"""Before QEMU answers, it logs into its LUNs and allocates the memory that is allocated at once."""
TRIM_INTERVAL_S = 5.0


class Registry:
    """Every domain here by its UUID; `events` is the queue behind the driver's events."""

    def __init__(self, run: Path, clock: Clock, groups: Groups | None = None) -> None:
        """`run` holds domains/ and qemu.log. `groups` has the cgroups of domains; None: they have no limits."""
        self._homes, self._clock = run / "domains", clock
        self.dmesg = Dmesg(run / "qemu.log", clock)
        self._groups = groups
        self._domains: dict[str, Domain] = {}
        self._starting: dict[str, str] = {}
        self._unread: list[Home] = []
        self._promised: dict[str, int] = {}  # MiB, for domains that start or move in
        self._tasks: set[asyncio.Task[None]] = set()
        self.choice = Choice()  # settings of new domains here
        self.owners: Owners | None = None  # users that run new domains' QEMUs; None: root
        self.events: asyncio.Queue[DomainEvent] = asyncio.Queue()

    async def open(self) -> None:
        """Find the domains that run already."""
        stamp = self._homes / "boot"
        if self._homes.exists() and _of_another_boot(stamp):
            shutil.rmtree(self._homes)  # pids of an earlier boot are meaningless
        write_atomic(stamp, machine.boot_id())
        for domid in self._domids():
            await self._adopt(Home(self._homes / str(domid)))
        if self._groups is not None and (missing := self._groups.open()):
            self._unlimited(missing)
        self._task(self._trim(), "trim console logs")

    async def close(self) -> None:
        """Release every domain without touching it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for domain in self._domains.values():
            await domain.let_go()
        self._domains.clear()

    def _domids(self) -> list[int]:
        return sorted(int(path.name) for path in self._homes.glob("[0-9]*") if path.name.isdecimal())

    def unread(self) -> tuple[str, ...]:
        """See Driver.unread."""
        self._unread = [home for home in self._unread if home.process() is not None]
        return tuple(f"process {process.pid}, {home.path}" for home in self._unread if (process := home.process()))

    def domains(self) -> list[Domain]:
        """Return all domains, sorted by domid."""
        return sorted(self._domains.values(), key=lambda domain: domain.record.domid)

    def present(self, uuid: str) -> Domain:
        """Return the domain, for reading only: it may be just starting. Raises Refused when it is not here."""
        domain = self._domains.get(uuid)
        if domain is None:
            raise NotFound(f"no domain {uuid} here", hint="veery list shows the domains here")
        return domain

    def domain(self, uuid: str) -> Domain:
        """Return the domain, up and ready for orders. Raises Refused when it is not here, or not yet."""
        domain = self.present(uuid)
        if uuid in self._starting:
            raise Refused(f"{domain.record.spec.name} is just starting", hint="try again when it has started")
        return domain

    def free(self, uuid: str) -> Domain:
        """Return a domain that no move and no save holds. Raises Refused."""
        domain = self.domain(uuid)
        if domain.record.stage is not Stage.RUNNING:
            raise Refused(
                f"{domain.record.spec.name} is {domain.record.stage}: a move or a save holds it",
                hint="wait for its end, or cancel it",
            )
        return domain

    def refuse_taken(self, uuid: str, name: str) -> None:
        """Raise Refused where another domain has `name`."""
        names = {one.record.spec.uuid: one.record.spec.name for one in self._domains.values()} | self._starting
        if any(taken == name for other, taken in names.items() if other != uuid):
            raise Refused(f"{name} is the name of another domain here", hint="veery list shows the domains here")

    def take_domid(self) -> int:
        """See Driver.take_domid."""
        counter = self._homes / "next"
        try:
            domid = int(counter.read_bytes()) if counter.exists() else 1
        except ValueError as error:
            kept.put_aside(counter, str(error))
            domid = max(self._domids(), default=0) + 1
        write_atomic(counter, str(domid + 1))
        return domid

    def left(self, total: int, available: int) -> int:
        """Return the MiB that may still be promised of the machine's memory (see machine.left)."""
        here = {uuid: domain.record.build.memory for uuid, domain in self._domains.items()}
        if self.choice.huge:  # a domain's overhead does not use these pages
            pages = max(0, self.choice.free_pages() - sum(self._promised.values()))
            available = pages + machine.overhead(pages)
        return machine.left(total, available, (self._promised | here).values())

    def promise(self, spec: DomainSpec, memory: int, total: int, available: int) -> None:
        """Reserve `memory` MiB for a domain. This awaits nothing, so two domains cannot get the same memory. Raises
        Refused."""
        free, wanted = self.left(total, available), memory + machine.overhead(memory)
        if wanted > free:
            raise Refused(
                f"{spec.name}: not enough memory: {memory} MiB and {wanted - memory} for QEMU are needed, "
                f"{free} are free",
                hint="give it less memory=, or end another domain",
            )
        self._promised[spec.uuid] = memory

    # ---- start and end

    @contextlib.asynccontextmanager
    async def launching(
        self,
        spec: DomainSpec,
        attachments: Attachments,
        build: Build,
        stage: Stage,
        *,
        command: Command,
        backlog: bytes = b"",
    ) -> AsyncIterator[Domain]:
        """Start a new QEMU, connect to it and list it. When the body fails, nothing is left of it."""
        if spec.uuid in self._domains or spec.uuid in self._starting:
            raise Refused(f"{spec.name} is here already", hint="veery list shows the domains here")
        self.refuse_taken(spec.uuid, spec.name)
        _check(spec, attachments)
        host = await machine.reading(None)
        self.promise(spec, build.memory, host.memory_total, host.memory_free)
        self._starting[spec.uuid] = spec.name
        domid = attachments.domid or self.take_domid()
        home, domain = Home(self._homes / str(domid)), None
        try:
            record = Record(domid=domid, spec=spec, attachments=attachments, build=build, stage=stage)
            owner = self._owner(domid)
            home.make(record, backlog, owner)
            if owner is not None:
                await asyncio.to_thread(home.copy_boot_files, spec, owner)
            process = home.spawn(command, attachments, build, choice=self.choice, owner=owner)
            domain = self._new(home, record, process)
            self._limit(domain)
            await domain.connect(deadline=domain.patience(START_DEADLINE_S))
            await lending.settle(domain)
            await disklimits.limit(domain, *spec.disks)
            yield domain
            self.dmesg.note(f"{spec.name} ({domid}) {'is arriving' if stage is Stage.INCOMING else 'started'}")
            self.note_warnings(domain)
        except BaseException:
            if domain is not None:
                await tasks.to_the_end(self._kill(domain))
            home.remove()
            raise
        finally:
            del self._starting[spec.uuid], self._promised[spec.uuid]

    def _limit(self, domain: Domain) -> None:
        """Limit a new QEMU's share of the machine, as far as the host permits."""
        if self._groups is None:
            return
        memory, vcpus = domain.record.build.memory, domain.record.spec.maxvcpus or domain.record.spec.vcpus
        wanted = cgroup.limits(memory, machine.overhead(memory), vcpus)
        if failed := self._groups.admit(_group(domain.record), domain.process.pid, wanted):
            self._unlimited(f"{domain.record.spec.name}: {failed}")

    def _unlimited(self, why: str) -> None:
        log.warning("limits of domains: %s", why)
        self.dmesg.note(f"some limits are not in force: {why}")

    def _owner(self, domid: int) -> Owner | None:
        """Return the user that runs the QEMU of a new domain. Raises Refused where no user is left."""
        if self.owners is None:
            return None
        return self.owners.choose(domid, {Home(self._homes / str(each)).uid() for each in self._domids()})

    async def destroy(self, uuid: str) -> None:
        """See Driver.destroy. Sends SIGKILL and awaits the end of the process on its pidfd."""
        domain = self._domains.get(uuid)
        if domain is not None:
            await self._kill(domain)
            self.dmesg.note(f"{domain.record.spec.name} ({domain.record.domid}) destroyed")

    async def _kill(self, domain: Domain) -> None:
        await domain.kill()
        await self._forget(domain)

    async def _forget(self, domain: Domain) -> None:
        """Remove a domain whose process is gone from the list, and its folder."""
        if self._domains.get(domain.record.spec.uuid) is domain:
            del self._domains[domain.record.spec.uuid]
        await domain.let_go()
        if self._groups is not None:
            self._groups.remove(_group(domain.record))
        self.note_warnings(domain)
        words = domain.home.words()
        if words:
            self.dmesg.note(f"{domain.record.spec.name} ({domain.record.domid}) QEMU said: {words}")
        domain.home.remove()

    def note_warnings(self, domain: Domain) -> None:
        """Add the warnings of the domain's QEMU to the log, each once."""
        for warning in domain.home.warnings():
            if warning not in domain.warned:
                domain.warned.add(warning)
                self.dmesg.note(f"{domain.record.spec.name} ({domain.record.domid}) QEMU: {warning}")

    def _new(self, home: Home, record: Record, process: Process) -> Domain:
        domain = Domain(home, record, process, self._clock, self._ended)
        hotplug.watch_unplugs(domain)
        self._domains[record.spec.uuid] = domain
        return domain

    async def _adopt(self, home: Home) -> None:
        try:
            record = home.read()
        except Failed as error:
            log.error("%s cannot be read: %s; its QEMU is left running", home.path / "record.json", error)
            self._unread.append(home)
            return
        process = home.process()
        if record is None or process is None or record.stage is Stage.STARTING:
            if process is not None:  # its start was never reported
                await process.stop(grace=0)
            if record is not None and record.stage in {Stage.RUNNING, Stage.ARRIVING, Stage.SWITCHING}:
                log.error("domain=%s ended while veeryd was down: %s", record.spec.name, home.words() or "no message")
                self.events.put_nowait(DomainEvent(record.spec.uuid, DomainEnd.DIED))
            home.remove()
            return
        domain = self._new(home, record, process)
        domain.adopt()
        log.info("domain=%s found running, pid %d", record.spec.name, process.pid)
        if record.ended is not None:  # the earlier veeryd may have died before it handled this
            self.events.put_nowait(DomainEvent(record.spec.uuid, record.ended))
        self._task(self._settle(domain), f"settle {record.spec.name}")

    async def _settle(self, domain: Domain) -> None:
        """Complete what a restart of veeryd interrupted."""
        try:
            await domain.met()
            async with domain.lock:
                await lending.settle(domain)
            await hotplug.settle_unplugs(domain)
            if domain.record.stage is Stage.SAVING:
                await migration.resume(domain, self._clock)
        except VeeryError as error:
            log.error("domain=%s %s", domain.record.spec.name, error)

    def _ended(self, domain: Domain, end: DomainEnd) -> None:
        record = domain.record
        if end is DomainEnd.DIED:
            if domain.dying or record.spec.uuid in self._starting:
                return
            log.error("domain=%s QEMU ended: %s", record.spec.name, domain.home.words() or "no message")
            self._task(self._forget(domain), f"forget {record.spec.name}")
        self.dmesg.note(f"{record.spec.name} ({record.domid}) ended: {end}")
        self.events.put_nowait(DomainEvent(record.spec.uuid, end))  # of a half domain too: this node may own it by now

    # ---- the log, and tasks

    async def _trim(self) -> None:
        while True:
            await asyncio.sleep(TRIM_INTERVAL_S)
            for domain in self._domains.values():
                try:
                    domain.console.trim()
                    trim_log(domain.home.qemu_log)
                except OSError as error:
                    log.warning("domain=%s console log: %s", domain.record.spec.name, error)

    def _task(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _group(record: Record) -> str:
    """Return the name of a domain's cgroup; a domain may be on two nodes that share a machine."""
    return f"{record.spec.uuid}-{record.domid}"


def _of_another_boot(stamp: Path) -> bool:
    """Return whether the folders beside `stamp` are of another boot. A stamp that cannot be read says nothing: then
    each folder's own pid and start time decide."""
    if not stamp.exists():
        return True
    words = stamp.read_bytes().decode(errors="replace").strip()
    if len(words) != len(machine.boot_id()) or not words.isprintable():
        log.error("%s cannot be read: assuming that the domains here are of this boot", stamp)
        return False
    return words != machine.boot_id()


def _check(spec: DomainSpec, attachments: Attachments) -> None:
    """Raise Refused for problems that are visible before anything is started."""
    if not spec.uuid:
        raise Refused(f"{spec.name} has no UUID", hint="its record in the store must give it one")
    for what, path in (("kernel", spec.kernel), ("ramdisk", spec.ramdisk)):
        if path and not Path(path).is_file():
            raise Refused(f"{spec.name}: {what} {path} does not exist", hint="each node needs its own copy of it")
    for disk in attachments.disks:
        if isinstance(disk.source, LocalDisk) and not Path(disk.source.path).exists():
            raise Refused(f"{spec.name}: disk {disk.spec.vdev}: {disk.source.path} does not exist")
