"""`veery doctor`: checks everything that a cluster needs. Each node checks itself, and one node checks what must be
alike on all."""

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
from veery.errors import NotFound, VeeryError
from veery.host import kept, pathmtu
from veery.host.clock import Clock
from veery.host.pathmtu import PathReading
from veery.host.process import Service
from veery.hypervisor.base import Driver
from veery.model import codec, defects
from veery.model.alarm import AlarmWay
from veery.model.cluster import LEVEL
from veery.model.domain import DomainReading, HostReading
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

DAY_S = 86400.0
ANSWER_TIMEOUT_S = 20.0  # seconds for the answer of one node
CONNECT_TIMEOUT_S = 3.0
CLOCK_WARN_S, CLOCK_BAD_S = 1.0, 10.0  # seconds by which clocks may differ
CA = "cluster's CA"
CERT_WARN_DAYS = 30.0  # days before a certificate ends
ENDS_WITHIN_S, ENDS_BAD = 600.0, 3  # this many ends of a program within this time are more than an upgrade
COPY_OLD_DAYS = 2.0  # days
ROOM_WARN, ROOM_BAD = 0.10, 0.02  # free part of a disk


# ---- pure
def judge_clock(heard: Heard) -> Finding:
    """Judge how far a node's clock differs from this node's, less the uncertainty from the time of its answer."""
    between = (heard.asked + heard.answered) / 2
    doubt = (heard.answered - heard.asked) / 2
    off = heard.health.epoch - between
    sure = max(abs(off) - doubt, 0.0)
    level = Level.BAD if sure > CLOCK_BAD_S else Level.WARN if sure > CLOCK_WARN_S else Level.OK
    told = (
        f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} the clock here"
        if sure > CLOCK_WARN_S
        else "as the clock here"
    )
    advice = "run chrony or systemd-timesyncd there" if level is not Level.OK else ""
    return Finding(node=heard.health.node, what="clock", level=level, told=told, advice=advice)


def judge_levels(healths: Sequence[Health], cluster: int) -> list[Finding]:
    """Return findings on nodes whose version does not support the cluster's level."""
    advice = "install the version of the other nodes there; until then no domain moves to it"
    return [
        Finding(node=one.node, what="level", level=Level.BAD, told=trouble, advice=advice)
        for one in healths
        if (trouble := levels.behind(one.able, cluster))
    ]


def judge_versions(healths: Sequence[Health]) -> list[Finding]:
    """Compare each node's version with the most common one."""
    usual = Counter(one.version for one in healths).most_common(1)[0][0] if healths else ""
    return [
        Finding(node=one.node, what="version", level=Level.OK, told=one.version)
        if one.version == usual
        else Finding(
            node=one.node,
            what="version",
            level=Level.WARN,
            told=f"{one.version}, while most nodes have {usual}",
            advice="upgrade the older nodes: domains may not be able to move back from a newer node",
        )
        for one in healths
    ]


def judge_bridges(healths: Sequence[Health]) -> list[Finding]:
    """Compare each hypervisor's bridges with those of all others: a domain needs its bridge wherever it goes."""
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
                "create it, or domains that use it cannot move here",
            )
        elif odd:
            told, level, advice = (
                f"MTU of {', '.join(odd)} differs from the other nodes",
                Level.WARN,
                "set the same MTU on all nodes",
            )
        else:
            told, level, advice = ", ".join(sorted(one.bridges)) or "none", Level.OK, ""
        found.append(Finding(node=one.node, what="bridges", level=level, told=told, advice=advice))
    return found


def judge_room(node: str, what: str, total: int, free: int) -> Finding:
    """Judge how full a disk is; sizes in bytes."""
    part = free / total if total else 0.0
    level = Level.BAD if part < ROOM_BAD else Level.WARN if part < ROOM_WARN else Level.OK
    told = f"{format_size(free)} of {format_size(total)} free"
    advice = "free some space: etcd and tgtd stop when it is full" if level is not Level.OK else ""
    return Finding(node=node, what=what, level=level, told=told, advice=advice)


def judge_end(node: str, what: str, ends: float, now: float) -> Finding:
    """Judge when a certificate ends; both times in epoch seconds."""
    days = (ends - now) / DAY_S
    if days <= 0:
        told, level = f"ended {-days:.0f} days ago", Level.BAD
    else:
        told, level = f"good for {days:.0f} days", Level.WARN if days < CERT_WARN_DAYS else Level.OK
    if level is Level.OK:
        advice = ""
    elif what == CA:
        advice = "veery cluster ca renew, then veery cluster ca show"
    elif days > 0:
        advice = f"veery node renew {node} tells why it was not renewed automatically"
    else:
        advice = (
            f"it has expired, and no node answers it: on another node, veery node forget {node}; then join it again"
        )
    return Finding(node=node, what=what, level=level, told=told, advice=advice)


def judge_ends(node: str, service: str, ends: int) -> Finding:
    """Judge whether `service`, which ended `ends` times in the last ENDS_WITHIN_S seconds, keeps ending."""
    if ends < ENDS_BAD:
        return Finding(node=node, what=service, level=Level.OK, told="it keeps running")
    told = f"it ended {ends} times in {ENDS_WITHIN_S / 60:.0f} minutes"
    return Finding(node=node, what=service, level=Level.BAD, told=told, advice=f"see {service}.log in the run folder")


def judge_promises(node: str, usage: room.Usage) -> Finding:
    """Judge whether the files of the volumes could all grow to the size that was promised."""
    told = f"{format_size(usage.promised)} promised, {format_size(usage.taken)} taken, {format_size(usage.free)} free"
    if usage.promised - usage.taken <= usage.free:
        return Finding(node=node, what="pool", level=Level.OK, told=told)
    advice = "give the pool more room before guests fill it: they would get write errors"
    return Finding(node=node, what="pool", level=Level.WARN, told=told, advice=advice)


def judge_shared(node: str, pool: Path, usage: room.Usage) -> Finding:
    """Judge whether guests can fill the disk that veeryd and etcd need."""
    if not usage.shared:
        return Finding(node=node, what="pool's disk", level=Level.OK, told="on a filesystem of its own")
    told = f"{pool} is on the filesystem of veery's own state"
    advice = "move it to another filesystem (storage.pool): if guests fill this one, etcd and fencing stop"
    return Finding(node=node, what="pool's disk", level=Level.WARN, told=told, advice=advice)


def judge_domains(node: str, readings: Sequence[DomainReading], at_work: Callable[[str], str]) -> list[Finding]:
    """Return findings on the domains that an error of their disk has stopped. `at_work` returns the move or order that
    is at work on a domain, "" if there is none."""
    found = []
    for each in readings:
        if each.faulty:
            work = at_work(each.name)
            told = f"{each.name} is stopped by an error of its disk ({each.reason})"
            advice = (
                f"it tries again when that has ended ({work})"
                if work
                else f"after the repair: veery --node {node} unpause {each.name}"
            )
            found.append(Finding(node=node, what="domains", level=Level.BAD, told=told, advice=advice))
    return found or [Finding(node=node, what="domains", level=Level.OK, told="no disk has stopped one")]


def judge_copies(node: str, newest: float, now: float) -> Finding:
    """Judge how old the newest daily copy of the store is. Both times in epoch seconds; `newest` is 0 if there is no
    copy."""
    if newest and now - newest < COPY_OLD_DAYS * DAY_S:
        told = f"the newest is {(now - newest) / 3600:.0f} hours old"
        return Finding(node=node, what="copies of the store", level=Level.OK, told=told)
    told = f"the newest is {(now - newest) / DAY_S:.0f} days old" if newest else "there is none yet"
    return Finding(
        node=node, what="copies of the store", level=Level.WARN, told=told, advice="see veeryd's log for the reason"
    )


def judge_files(node: str, aside: Sequence[Path], unread: Sequence[str]) -> list[Finding]:
    """Judge veeryd's own files that it could not read. `aside` were put aside at its start; `unread` are records of
    running domains."""
    found = [
        Finding(
            node=node,
            what="own files",
            level=Level.BAD,
            told=f"{path} could not be read",
            advice="docs/hosts.md says what it contained; then remove it",
        )
        for path in aside
    ]
    found += [
        Finding(
            node=node,
            what="own files",
            level=Level.BAD,
            told=f"the record of a running domain cannot be read: {one}",
            advice="end that process, remove the folder, restart veeryd: until then no name is released here",
        )
        for one in unread
    ]
    return found or [Finding(node=node, what="own files", level=Level.OK, told="all can be read")]


def judge_packets(node: str, storage: str, address: str, reading: PathReading | str) -> Finding:
    """Judge whether full-size packets reach storage node `storage`. `reading` is a text if that could not be tested."""
    what = f"packets to {storage}"
    if isinstance(reading, str):
        return Finding(node=node, what=what, level=Level.WARN, told=f"{address}: {reading}")
    if reading.lost and reading.small:
        told = f"small packets reach {address}, but packets of {reading.mtu} bytes do not: {reading.lost}"
        advice = "set the same MTU on every card and switch of that network (ip link); disks hang until then"
        return Finding(node=node, what=what, level=Level.BAD, told=told, advice=advice)
    told = f"{address} answers no echo request: not tested" if reading.lost else f"{reading.mtu} bytes reach {address}"
    return Finding(node=node, what=what, level=Level.OK, told=told)


def judge_alarms(node: str, ways: Sequence[AlarmWay]) -> Finding:
    """Judge whether the last message of each alarm method was delivered."""
    broken = [f"{way.name}: {way.error}" for way in ways if way.error]
    if broken:
        advice = f"correct [alarms] in veery.toml there, restart veeryd, then: veery --node {node} alarm test"
        return Finding(node=node, what="alarms", level=Level.WARN, told="; ".join(broken), advice=advice)
    told = (
        f"sent by {', '.join(way.name for way in ways)}" if ways else "none are sent: [alarms] is not set in veery.toml"
    )
    return Finding(node=node, what="alarms", level=Level.OK, told=told)


def judge_accelerator(node: str, host: HostReading) -> Finding:
    """Judge whether domains can start here at all, and report what runs them."""
    reason = host.facts.get("accelerator_reason", "")
    if not host.accelerator and reason:
        advice = 'see dmesg of the machine; accel = "tcg" under [qemu] runs domains without KVM, slowly'
        return Finding(node=node, what="accelerator", level=Level.BAD, told=reason, advice=advice)
    told = " ".join(filter(None, (host.accelerator or "the hypervisor's own", f"({reason})" if reason else "")))
    return Finding(node=node, what="accelerator", level=Level.OK, told=told)


def judge_hypervisor(node: str, host: HostReading) -> tuple[Finding, ...]:
    """Return the known migration defects of this node's QEMU; none for another hypervisor."""
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
    """The doctor of a daemon."""

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
        at_work: Callable[[str], str] = lambda name: "",
        exposure: Exposure | None = None,
        quota: int,
        services: Callable[[], Sequence[Service]] = tuple,
        pool: Path | None = None,
        copies: Path | None = None,
        alarms: Callable[[], Sequence[AlarmWay]] = tuple,
        sessions: Callable[[], Finding] | None = None,
        sensors: Callable[[], Finding] | None = None,
    ) -> None:
        """`folders`: folders by name whose disks must not be full. `tls`: the folder of this node's certificates.
        `unsettled` returns the moves that do not settle, `unread` the driver's unreadable records. `quota`: that of the
        store, in bytes. `services` returns the programs that veeryd keeps running. `pool`: the folder of the volumes'
        files. `copies`: the folder of daily copies of the store (None: this node has none). `alarms` returns the alarm
        methods of this node. `at_work`: as in judge_domains. `sessions` and `sensors` return the findings on iSCSI
        sessions here and on this node's health."""
        self._sessions, self._sensors, self._at_work = sessions, sensors, at_work
        self._node, self._store, self._peers, self._fencing = node, store, peers, fencing
        self._keeper, self._guard, self._writer, self._clock = keeper, guard, writer, clock
        self._folders, self._tls, self._driver, self._trust = folders, tls, driver, trust
        self._unsettled, self._unread, self._exposure = unsettled, unread, exposure
        self._quota, self._services, self._pool, self._copies, self._alarms = quota, services, pool, copies, alarms

    # ---- this node
    async def health(self) -> Health:
        """Return the health of this node as it sees itself. Raises nothing: a failed check is a finding."""
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
            found += judge_domains(self._node.name, await self._driver.list(), self._at_work)
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
        """Return a finding on this node: bad with `trouble`, otherwise good."""
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
                found.append(self._say(what, f"{name}: {error}", "", advice="join the node again"))
                continue
            ends = cert.not_valid_after_utc.timestamp()
            found.append(judge_end(self._node.name, what, ends, self._clock.epoch()))
        return found

    def _watchdog(self) -> Finding:
        armed = f"armed, with {self._keeper.timeout} s" if self._keeper.timeout else "none is set (watchdog.device)"
        return self._say("watchdog", self._keeper.trouble, armed, advice="check watchdog.device in veery.toml")

    def _moves(self) -> Finding:
        advice = "check what it waits for; veery destroy NAME ends the domain"
        return self._say("moves", "; ".join(self._unsettled()), "all are settled", advice=advice)

    def _trusted(self) -> Finding:
        return self._say(
            "trust in the store", self._trust.reason, "it is the store that this node knows", advice=ADOPT_HINT
        )

    def _guarded(self, guard: Guard) -> Finding:
        trouble = "" if guard.ruling.stance is Stance.RUN else f"{guard.ruling.stance}: {guard.ruling.reason}"
        return self._say("guard", trouble, "domains run", advice="check veery fence list, and the members of the store")

    def _paths(self, writer: HeartbeatWriter) -> list[Finding]:
        advice = "check that tgtd runs there, and that the network path is up"
        return [
            self._say(f"path to {name}", writer.troubles.get(name, ""), "heartbeats are accepted", advice=advice)
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
        trouble = f"stale copies of {stale}" if stale else ""
        return self._say("leftovers", trouble, "none", level=Level.WARN, advice="veeryd ends them within seconds")

    # ---- the cluster
    async def examine(self, name: str = "") -> list[Finding]:
        """Return the findings on node `name`, or ("") on every node and on what they share. Raises Refused for an
        unknown node, StoreUnavailable."""
        nodes = await NODES.readable(self._store)
        if name and name not in nodes:
            raise NotFound(f"no node {name!r}", hint="veery node list shows the nodes")
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
                told = await self._peers.call(node.name, "GET", "/v1/health", deadline=ANSWER_TIMEOUT_S)
                health = codec.convert(told, Health)
        except VeeryError as error:
            advice = "check that the node is on and veeryd runs there; docs/hosts.md lists the ports"
            return Finding(node=node.name, what="daemon", level=Level.BAD, told=error.message, advice=advice)
        return Heard(health=health, asked=asked, answered=self._clock.epoch())

    async def _relocation(self, node: Node) -> Finding:
        where = f"{node.relocation_address or node.address} port {node.relocation_port}"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(node.relocation_address or node.address, node.relocation_port)
                writer.close()
        except (OSError, TimeoutError) as error:
            told = f"{where} is not reachable: {error or 'no answer'}"
            advice = "open this port in the firewall: domains cannot move here"
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
        return Finding(node=node.name, what="fencing", level=Level.BAD, told="no fence method works", advice=advice)

    async def _records(self) -> list[Finding]:
        """Return findings on the store's records that cannot be read: their subjects are left alone."""
        bad = await keys.unreadable(self._store)
        advice = f"its subject is left alone: {bad[0].hint}" if bad else ""
        return [
            Finding(node=self._node.name, what="records", level=Level.BAD, told=error.message, advice=advice)
            for error in bad
        ] or [Finding(node=self._node.name, what="records", level=Level.OK, told="all can be read")]

    async def _level(self, healths: Sequence[Health]) -> list[Finding]:
        """Return the cluster's level, and findings on the nodes that are below it."""
        try:
            now, told = await levels.read(self._store), await levels.told(self._store)
        except VeeryError as error:
            return [Finding(node=self._node.name, what="cluster's level", level=Level.BAD, told=error.message)]
        found = Finding(node=self._node.name, what="cluster's level", level=Level.OK, told=told)
        return [found, *judge_levels(healths, now)]

    async def _members(self, chosen: Sequence[Node], nodes: Sequence[Node]) -> list[Finding]:
        """Return findings on the store's members on the `chosen` nodes. If these are all `nodes`, also findings on the
        store as a whole."""
        try:
            reading = await storehealth.read(self._store.voters, nodes)
        except VeeryError as error:
            return [Finding(node=self._node.name, what="store", level=Level.BAD, told=error.message)]
        found = storehealth.judge_members(reading, quota=self._quota)
        if len(chosen) == len(nodes):
            return [*found, *storehealth.judge_store(self._node.name, reading, quota=self._quota)]
        names = {node.name for node in chosen}
        return [one for one in found if one.node in names]
