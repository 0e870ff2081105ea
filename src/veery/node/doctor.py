"""Looks at all that a cluster needs, before it is missed: each node at itself, one of them at what must be alike."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509

import veery
from veery.cluster import keys, levels, upkeep
from veery.cluster.etcd import EtcdStore
from veery.cluster.keys import NODES
from veery.cluster.trust import ADOPT_HINT, Trust
from veery.errors import Refused, VeeryError
from veery.host import kept, pathmtu
from veery.host.clock import Clock
from veery.host.pathmtu import PathReading
from veery.host.process import Service
from veery.hypervisor.base import Driver
from veery.model import codec, defects
from veery.model.alarm import AlarmWay
from veery.model.cluster import LEVEL
from veery.model.domain import HostReading
from veery.model.health import Finding, Health, Heard, Level
from veery.model.node import Node, Role
from veery.model.units import format_size
from veery.network.bridge import bridges
from veery.node import storehealth
from veery.node.exposure import Exposure
from veery.node.fencing import Fencing
from veery.node.guard import Guard, Stance
from veery.node.peers import Peers
from veery.node.storage_heartbeats import HeartbeatWriter
from veery.node.watchdog import WatchdogKeeper
from veery.storage import room

DAY = 86400.0
ASK = 20.0  # seconds for one node's answer
CONNECT = 3.0
CLOCK_WARN, CLOCK_BAD = 1.0, 10.0  # seconds by which clocks may differ
CA = "cluster's CA"
CERT_WARN = 30.0  # days before a certificate ends
ENDS_WITHIN_S, ENDS_BAD = 600.0, 3  # so many ends of a program in so many seconds are no upgrade any more
COPY_OLD = 2.0  # days
ROOM_WARN, ROOM_BAD = 0.10, 0.02  # of a disk that is free


# ---- pure
def judge_clock(heard: Heard) -> Finding:
    """How far a node's clock is from ours, as far as the time of its answer lets that be told."""
    between = (heard.asked + heard.answered) / 2
    doubt = (heard.answered - heard.asked) / 2
    off = heard.health.epoch - between
    sure = max(abs(off) - doubt, 0.0)
    level = Level.BAD if sure > CLOCK_BAD else Level.WARN if sure > CLOCK_WARN else Level.OK
    told = f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} ours" if sure > CLOCK_WARN else "as ours"
    advice = "run chrony or systemd-timesyncd there" if level is not Level.OK else ""
    return Finding(node=heard.health.node, what="clock", level=level, told=told, advice=advice)


def judge_levels(healths: Sequence[Health], cluster: int) -> list[Finding]:
    """The nodes whose version cannot do the cluster's level."""
    advice = "install the version of the others there; until then no domain moves to it"
    return [
        Finding(node=one.node, what="level", level=Level.BAD, told=trouble, advice=advice)
        for one in healths
        if (trouble := levels.behind(one.able, cluster))
    ]


def judge_versions(healths: Sequence[Health]) -> list[Finding]:
    """Each node's version, against the one that most have."""
    usual = Counter(one.version for one in healths).most_common(1)[0][0] if healths else ""
    return [
        Finding(node=one.node, what="version", level=Level.OK, told=one.version)
        if one.version == usual
        else Finding(
            node=one.node,
            what="version",
            level=Level.WARN,
            told=f"{one.version}, where others have {usual}",
            advice="upgrade the older ones: domains may not be able to come back from a newer node",
        )
        for one in healths
    ]


def judge_bridges(healths: Sequence[Health]) -> list[Finding]:
    """Each hypervisor's bridges, against those that any of them has: a domain finds its bridge wherever it goes."""
    everywhere = {name for one in healths for name in one.bridges}
    sizes = {name: Counter(one.bridges[name] for one in healths if name in one.bridges) for name in everywhere}
    found = []
    for one in healths:
        lacks = sorted(everywhere - set(one.bridges))
        odd = [name for name, mtu in sorted(one.bridges.items()) if mtu != sizes[name].most_common(1)[0][0]]
        if lacks:
            told, level, advice = (
                f"lacks {', '.join(lacks)}",
                Level.WARN,
                "make it, or domains that use it cannot come",
            )
        elif odd:
            told, level, advice = (
                f"MTU of {', '.join(odd)} is not the others'",
                Level.WARN,
                "set the same MTU everywhere",
            )
        else:
            told, level, advice = ", ".join(sorted(one.bridges)) or "none", Level.OK, ""
        found.append(Finding(node=one.node, what="bridges", level=level, told=told, advice=advice))
    return found


def judge_room(node: str, what: str, total: int, free: int) -> Finding:
    """How full a disk is; sizes in bytes."""
    part = free / total if total else 0.0
    level = Level.BAD if part < ROOM_BAD else Level.WARN if part < ROOM_WARN else Level.OK
    told = f"{format_size(free)} of {format_size(total)} free"
    advice = "make room: etcd and tgtd stop when it is full" if level is not Level.OK else ""
    return Finding(node=node, what=what, level=level, told=told, advice=advice)


def judge_end(node: str, what: str, ends: float, now: float) -> Finding:
    """When a certificate ends; both in seconds of the epoch."""
    days = (ends - now) / DAY
    if days <= 0:
        told, level = f"ended {-days:.0f} days ago", Level.BAD
    else:
        told, level = f"good for {days:.0f} days", Level.WARN if days < CERT_WARN else Level.OK
    if level is Level.OK:
        advice = ""
    elif what == CA:
        advice = "veery cluster ca renew, then veery cluster ca show"
    elif days > 0:
        advice = f"veery node renew {node} tells why it was not renewed by itself"
    else:
        advice = f"its time is over, and no node answers it: on another, veery node forget {node}, then join it anew"
    return Finding(node=node, what=what, level=level, told=told, advice=advice)


def judge_ends(node: str, service: str, ends: int) -> Finding:
    """Whether `service`, which ended `ends` times in the last ENDS_WITHIN_S seconds, ends again and again."""
    if ends < ENDS_BAD:
        return Finding(node=node, what=service, level=Level.OK, told="it stays up")
    told = f"it ended {ends} times in {ENDS_WITHIN_S / 60:.0f} minutes"
    return Finding(node=node, what=service, level=Level.BAD, told=told, advice=f"see {service}.log in the run folder")


def judge_promises(node: str, usage: room.Usage) -> Finding:
    """Whether the volumes' files could take all the room that they were promised."""
    told = f"{format_size(usage.promised)} promised, {format_size(usage.taken)} taken, {format_size(usage.free)} free"
    if usage.promised - usage.taken <= usage.free:
        return Finding(node=node, what="pool", level=Level.OK, told=told)
    advice = "give the pool more room before guests fill it: they would get write errors"
    return Finding(node=node, what="pool", level=Level.WARN, told=told, advice=advice)


def judge_shared(node: str, pool: Path, usage: room.Usage) -> Finding:
    """Whether guests can fill the disk that veeryd and etcd need."""
    if not usage.shared:
        return Finding(node=node, what="pool's disk", level=Level.OK, told="a filesystem of its own")
    told = f"{pool} is on the filesystem of veery's own state"
    advice = "put it on another (storage.pool): when guests fill this one, etcd and fencing stop"
    return Finding(node=node, what="pool's disk", level=Level.WARN, told=told, advice=advice)


def judge_copies(node: str, newest: float, now: float) -> Finding:
    """How old the newest daily copy of the store is; both in seconds of the epoch, `newest` 0 where there is none."""
    if newest and now - newest < COPY_OLD * DAY:
        told = f"the newest is {(now - newest) / 3600:.0f} hours old"
        return Finding(node=node, what="copies of the store", level=Level.OK, told=told)
    told = f"the newest is {(now - newest) / DAY:.0f} days old" if newest else "there is none yet"
    return Finding(node=node, what="copies of the store", level=Level.WARN, told=told, advice="veeryd's log tells why")


def judge_files(node: str, aside: Sequence[Path], unread: Sequence[str]) -> list[Finding]:
    """The files of veeryd's own that it could not read: `aside` were put aside at its start, `unread` are records of
    domains that run."""
    found = [
        Finding(
            node=node,
            what="own files",
            level=Level.BAD,
            told=f"{path} could not be read",
            advice="docs/hosts.md tells what was in it; then remove it",
        )
        for path in aside
    ]
    found += [
        Finding(
            node=node,
            what="own files",
            level=Level.BAD,
            told=f"the record of a domain that runs cannot be read: {one}",
            advice="end that process, remove the folder, restart veeryd: until then no name is given back here",
        )
        for one in unread
    ]
    return found or [Finding(node=node, what="own files", level=Level.OK, told="all can be read")]


def judge_packets(node: str, storage: str, address: str, reading: PathReading | str) -> Finding:
    """Whether full-size packets get to storage node `storage`; `reading` is a text where it could not be tried."""
    what = f"packets to {storage}"
    if isinstance(reading, str):
        return Finding(node=node, what=what, level=Level.WARN, told=f"{address}: {reading}")
    if reading.lost and reading.small:
        told = f"small ones reach {address}, those of {reading.mtu} bytes do not: {reading.lost}"
        advice = "give every card and switch of that network the same MTU (ip link); disks hang like this"
        return Finding(node=node, what=what, level=Level.BAD, told=told, advice=advice)
    told = f"{address} answers no echo request: not tried" if reading.lost else f"{reading.mtu} bytes reach {address}"
    return Finding(node=node, what=what, level=Level.OK, told=told)


def judge_alarms(node: str, ways: Sequence[AlarmWay]) -> Finding:
    """Whether somebody was reached when the last message was sent."""
    broken = [f"{way.name}: {way.error}" for way in ways if way.error]
    if broken:
        advice = f"mend [alarms] in veery.toml there, restart veeryd, then: veery --node {node} alarm test"
        return Finding(node=node, what="alarms", level=Level.WARN, told="; ".join(broken), advice=advice)
    told = f"sent by {', '.join(way.name for way in ways)}" if ways else "none are sent: [alarms] in veery.toml"
    return Finding(node=node, what="alarms", level=Level.OK, told=told)


def judge_accelerator(node: str, host: HostReading) -> Finding:
    """Whether domains can start here at all, and what runs them."""
    reason = host.facts.get("accelerator_reason", "")
    if not host.accelerator and reason:
        advice = 'see dmesg of the machine; accel = "tcg" under [qemu] runs domains without KVM, slowly'
        return Finding(node=node, what="accelerator", level=Level.BAD, told=reason, advice=advice)
    told = " ".join(filter(None, (host.accelerator or "the hypervisor's own", f"({reason})" if reason else "")))
    return Finding(node=node, what="accelerator", level=Level.OK, told=told)


def judge_hypervisor(node: str, host: HostReading) -> tuple[Finding, ...]:
    """Known defects in migration of this node's QEMU; none where it is another hypervisor."""
    return tuple(
        Finding(
            node=node,
            what="qemu version",
            level=Level.WARN,
            told=f"QEMU {host.software['qemu']}: {each.told}",
            advice=f"{each.hint} ({each.source})",
        )
        for each in defects.known(host.software.get("qemu", ""), host.accelerator)
    )


class Doctor:
    """One a daemon."""

    def __init__(
        self,
        node: Node,
        store: EtcdStore,
        *,
        peers: Peers,
        fencing: Fencing,
        keeper: WatchdogKeeper,
        guard: Guard | None,
        writer: HeartbeatWriter | None,
        trust: Trust,
        clock: Clock,
        folders: dict[str, Path],
        tls: Path,
        unsettled: Callable[[], Sequence[str]],
        unread: Callable[[], tuple[str, ...]] = tuple,
        driver: Driver | None = None,
        exposure: Exposure | None = None,
        quota: int,
        services: Callable[[], Sequence[Service]] = tuple,
        pool: Path | None = None,
        copies: Path | None = None,
        alarms: Callable[[], Sequence[AlarmWay]] = tuple,
        sessions: Callable[[], Finding] | None = None,
        sensors: Callable[[], Finding] | None = None,
    ) -> None:
        """`folders` are those whose disks must not be full, by what they are; `tls` holds our certificates;
        `unsettled` names the moves that do not settle; `unread` is the driver's; `quota` is the store's, in bytes;
        `services` gives the programs that we keep running; `pool` holds the volumes' files, `copies` the daily copies
        of the store (None: there are none here); `alarms` tells how this node calls somebody; `sessions`
        tells of those at our targets, `sensors` of this node's health."""
        self._sessions, self._sensors = sessions, sensors
        self._node, self._store, self._peers, self._fencing = node, store, peers, fencing
        self._keeper, self._guard, self._writer, self._clock = keeper, guard, writer, clock
        self._folders, self._tls, self._driver, self._trust = folders, tls, driver, trust
        self._unsettled, self._unread, self._exposure = unsettled, unread, exposure
        self._quota, self._services, self._pool, self._copies, self._alarms = quota, services, pool, copies, alarms

    # ---- this node
    async def health(self) -> Health:
        """This node, as it sees itself. Raises nothing: what cannot be looked at is a finding."""
        found = [*self._disks(), *self._certificates(), self._watchdog(), self._moves(), self._trusted()]
        found += judge_files(self._node.name, kept.unreadable(self._folders.values()), self._unread())
        found += [judge_ends(self._node.name, each.name, each.ends(ENDS_WITHIN_S)) for each in self._services()]
        found.append(judge_alarms(self._node.name, self._alarms()))
        if self._pool is not None:
            found += self._pooled(self._pool)
        if self._copies is not None:
            found.append(self._copied(self._copies))
        if self._sessions is not None:
            found.append(self._sessions())
        if self._sensors is not None:
            found.append(self._sensors())
        if self._guard is not None:
            found.append(self._guarded(self._guard))
        if self._writer is not None:
            found += self._paths(self._writer)
            found += await self._packets(self._writer)
            found.append(await self._leftovers())
        if self._driver is not None:
            host = await self._driver.host()
            found += [judge_accelerator(self._node.name, host), *judge_hypervisor(self._node.name, host)]
        known = await bridges() if self._node.has(Role.HYPERVISOR) else ()
        if self._exposure is not None:
            found += await self._exposure.findings(known)
        return Health(
            node=self._node.name,
            version=veery.__version__,
            epoch=self._clock.epoch(),
            bridges={one.name: one.mtu for one in known},
            findings=tuple(found),
            able=LEVEL,
        )

    def _say(self, what: str, trouble: str, good: str, *, level: Level = Level.BAD, advice: str = "") -> Finding:
        """A finding of ours: bad with `trouble`, or else good."""
        if trouble:
            return Finding(node=self._node.name, what=what, level=level, told=trouble, advice=advice)
        return Finding(node=self._node.name, what=what, level=Level.OK, told=good)

    def _disks(self) -> list[Finding]:
        found = []
        for what, path in self._folders.items():
            with contextlib.suppress(OSError):
                usage = shutil.disk_usage(path)
                found.append(judge_room(self._node.name, f"disk of {what}", usage.total, usage.free))
        return found

    def _pooled(self, pool: Path) -> list[Finding]:
        try:
            usage = room.read(pool, self._folders["state"])
        except OSError as error:
            return [self._say("pool", f"{pool}: {error.strerror}", "", level=Level.WARN)]
        return [judge_promises(self._node.name, usage), judge_shared(self._node.name, pool, usage)]

    def _copied(self, folder: Path) -> Finding:
        try:
            newest = max((path.stat().st_mtime for path in upkeep.kept(folder)), default=0.0)
        except OSError as error:
            return self._say("copies of the store", f"{folder}: {error.strerror}", "", level=Level.WARN)
        return judge_copies(self._node.name, newest, self._clock.epoch())

    def _certificates(self) -> list[Finding]:
        found = []
        for what, name in (("certificate", "server-cert.pem"), (CA, "ca-cert.pem")):
            try:
                cert = x509.load_pem_x509_certificate((self._tls / name).read_bytes())
            except (OSError, ValueError) as error:
                found.append(self._say(what, f"{name}: {error}", "", advice="join the node anew"))
                continue
            ends = cert.not_valid_after_utc.timestamp()
            found.append(judge_end(self._node.name, what, ends, self._clock.epoch()))
        return found

    def _watchdog(self) -> Finding:
        armed = f"armed, with {self._keeper.timeout} s" if self._keeper.timeout else "none is set (watchdog.device)"
        return self._say("watchdog", self._keeper.trouble, armed, advice="see to watchdog.device in veery.toml")

    def _moves(self) -> Finding:
        advice = "see to what it waits for; veery destroy NAME ends the domain"
        return self._say("moves", "; ".join(self._unsettled()), "all are settled", advice=advice)

    def _trusted(self) -> Finding:
        return self._say("trust in the store", self._trust.reason, "it is the one known here", advice=ADOPT_HINT)

    def _guarded(self, guard: Guard) -> Finding:
        trouble = "" if guard.ruling.stance is Stance.RUN else f"{guard.ruling.stance}: {guard.ruling.reason}"
        return self._say("guard", trouble, "domains run", advice="see veery fence list, and the store's members")

    def _paths(self, writer: HeartbeatWriter) -> list[Finding]:
        advice = "is tgtd running there, and the path up?"
        return [
            self._say(f"path to {name}", writer.troubles.get(name, ""), "heartbeats are taken", advice=advice)
            for name in writer.storage()
        ]

    async def _packets(self, writer: HeartbeatWriter) -> list[Finding]:
        async def one(name: str, address: str) -> Finding:
            try:
                return judge_packets(self._node.name, name, address, await pathmtu.read(address))
            except OSError as error:
                return judge_packets(self._node.name, name, address, error.strerror or str(error))

        others = {name: address for name, address in writer.addresses().items() if name != self._node.name}
        return list(await asyncio.gather(*(one(*pair) for pair in others.items())))

    async def _leftovers(self) -> Finding:
        try:
            stale = ", ".join((await self._fencing.clean()).stale)
        except VeeryError as error:
            return self._say("leftovers", error.message, "", level=Level.WARN)
        trouble = f"copies of {stale} that nothing lets run" if stale else ""
        return self._say("leftovers", trouble, "none", level=Level.WARN, advice="veeryd ends them within seconds")

    # ---- the cluster
    async def examine(self, name: str = "") -> list[Finding]:
        """The findings on node `name`, or ("") on every node and what they share. Raises Refused for an unknown one,
        StoreUnavailable."""
        nodes = await NODES.readable(self._store)
        if name and name not in nodes:
            raise Refused(f"no node {name!r}", hint="veery node list shows the nodes")
        chosen = [node for node in nodes.values() if name in ("", node.name)]
        told = await asyncio.gather(*(self._hear(node) for node in chosen))
        heard = [one for one in told if isinstance(one, Heard)]
        found = [one for one in told if isinstance(one, Finding)]
        for one in heard:
            found += [judge_clock(one), *one.health.findings]
        healths = [one.health for one in heard]
        found += judge_versions(healths)
        found += [one for one in await self._level(healths) if name in ("", one.node)]
        found += judge_bridges([one for one in healths if nodes[one.node].has(Role.HYPERVISOR)])
        more = await asyncio.gather(
            *(self._relocation(node) for node in chosen if node.has(Role.HYPERVISOR)),
            *(self._fences(node) for node in chosen if node.has(Role.HYPERVISOR)),
        )
        found += [
            *more,
            *(await self._members(chosen, list(nodes.values()))),
            *(await self._records() if not name else ()),
        ]
        return sorted(found, key=lambda one: (one.node, one.what))

    async def _hear(self, node: Node) -> Heard | Finding:
        asked = self._clock.epoch()
        try:
            if node.name == self._node.name:
                health = await self.health()
            else:
                told = await self._peers.call(node.name, "GET", "/v1/health", deadline=ASK)
                health = codec.convert(told, Health)
        except VeeryError as error:
            advice = "is it on, and veeryd running there? the ports are in docs/hosts.md"
            return Finding(node=node.name, what="daemon", level=Level.BAD, told=error.message, advice=advice)
        return Heard(health=health, asked=asked, answered=self._clock.epoch())

    async def _relocation(self, node: Node) -> Finding:
        where = f"{node.relocation_address or node.address} port {node.relocation_port}"
        try:
            async with asyncio.timeout(CONNECT):
                _, writer = await asyncio.open_connection(node.relocation_address or node.address, node.relocation_port)
                writer.close()
        except (OSError, TimeoutError) as error:
            told = f"{where} is not reached: {error or 'no answer'}"
            advice = "let it through the firewall: domains cannot come here"
            return Finding(node=node.name, what="relocation port", level=Level.BAD, told=told, advice=advice)
        return Finding(node=node.name, what="relocation port", level=Level.OK, told=where)

    async def _fences(self, node: Node) -> Finding:
        try:
            rows = await self._fencing.test(node.name)
        except VeeryError as error:
            return Finding(node=node.name, what="fencing", level=Level.BAD, told=error.message)
        ways = [str(row["method"]) for row in rows if row["works"]]
        if ways:
            return Finding(node=node.name, what="fencing", level=Level.OK, told=f"by {', '.join(ways)}")
        advice = f"veery fence test {node.name} tells why; its domains could not be started elsewhere"
        return Finding(node=node.name, what="fencing", level=Level.BAD, told="no way works", advice=advice)

    async def _records(self) -> list[Finding]:
        """The records in the store that cannot be read: what they are about stands still."""
        bad = await keys.unreadable(self._store)
        advice = f"what it is about is left alone: {bad[0].hint}" if bad else ""
        return [
            Finding(node=self._node.name, what="records", level=Level.BAD, told=error.message, advice=advice)
            for error in bad
        ] or [Finding(node=self._node.name, what="records", level=Level.OK, told="all can be read")]

    async def _level(self, healths: Sequence[Health]) -> list[Finding]:
        """The cluster's level, and the nodes that are below it."""
        try:
            now, told = await levels.read(self._store), await levels.told(self._store)
        except VeeryError as error:
            return [Finding(node=self._node.name, what="cluster's level", level=Level.BAD, told=error.message)]
        found = Finding(node=self._node.name, what="cluster's level", level=Level.OK, told=told)
        return [found, *judge_levels(healths, now)]

    async def _members(self, chosen: Sequence[Node], nodes: Sequence[Node]) -> list[Finding]:
        """The store's members: those on the `chosen` nodes; where these are all `nodes`, also what members share."""
        try:
            reading = await storehealth.read(self._store.voters, nodes)
        except VeeryError as error:
            return [Finding(node=self._node.name, what="store", level=Level.BAD, told=error.message)]
        found = storehealth.judge_members(reading, quota=self._quota)
        if len(chosen) == len(nodes):
            return [*found, *storehealth.judge_store(self._node.name, reading, quota=self._quota)]
        names = {node.name for node in chosen}
        return [one for one in found if one.node in names]
