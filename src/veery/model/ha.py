"""High availability: policies, records, observations and actions.

There are three kinds of values. *Records* are in the store (cluster/keys.py has the keys). The *view* is one
observation of the whole cluster at one revision of the store. *Actions* are the decisions of `ha.decide`, each with its
reason. Times that matter for safety are durations, measured by the leader's own monotonic clock (`absent`, `settled`,
ages). Times in records are seconds of the epoch, and only set the pace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from veery.errors import Refused
from veery.model.cluster import Owner, Reservation
from veery.model.node import Node
from veery.model.verdict import HealthRecord


# ---- policies and intents
class Policy(StrEnum):
    """What the cluster does for a domain automatically."""

    RESTART = "restart"  # moved away from sick nodes, restarted if it or its node has died
    MIGRATE_ONLY = "migrate-only"  # moved away from sick nodes, never restarted
    OFF = "off"  # no automatic action; only an ordered drain moves it


SHUTDOWN_LAPSE_S = 600.0
"""If a guest does not shut down within this time after a request, its domain is wanted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HaRecord:
    """ha/DOMAIN: the policy of a domain. Domains of higher `priority` start first. `delay`: seconds that domains of
    lower priority wait after its start. `max_restarts`: tries in a row before the brain gives up. `wanted`: the domain
    should run; an order that stops it clears this first. `stopping`: when its guest was asked to shut down (epoch),
    until it has shut down or the request has lapsed; 0.0: no request."""

    policy: Policy = Policy.OFF
    priority: int = 0
    group: str = ""
    max_restarts: int = 5
    delay: float = 0.0
    wanted: bool = True
    stopping: float = 0.0
    revision: int = 0


class GroupKind(StrEnum):
    """How the domains of one group are placed."""

    APART = "apart"  # on different nodes
    TOGETHER = "together"  # on one node


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """group/NAME: the placement rule of a group. `nodes` on which its domains may run (empty: all). `strict`: never
    place a domain against the rule. A group without a record is APART and not strict."""

    kind: GroupKind = GroupKind.APART
    nodes: tuple[str, ...] = ()
    strict: bool = False


class IntentKind(StrEnum):
    """The intent of an operator for a node."""

    DRAIN = "drain"  # its domains move away, and it gets none, until `resume`
    RESUME = "resume"  # it is in service again, and the domains that left move back
    AWAY = "away"  # its veeryd restarts: the brain does not judge it for `away` seconds of absence


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIntent:
    """intent/NODE: the intent for a node. `force`: drain even if the cluster then survives fewer losses."""

    kind: IntentKind
    by: str = ""
    since: float = 0.0
    force: bool = False
    away: float = 0.0
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disarmed:
    """The key `disarmed`: while it exists, the brain decides nothing."""

    by: str = ""
    since: float = 0.0
    reason: str = ""


# ---- records of the brain
class FenceState(StrEnum):
    """The state of a fence. Only FENCED is proof."""

    FENCING = "fencing"  # a method is being tried
    FAILED = "failed"  # every possible method has failed; the brain tries them again, and sends an alarm
    FENCED = "fenced"  # proven: the node cannot write
    ADMITTING = "admitting"  # its stale instances are dead; the storage nodes admit it again


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceRecord:
    """fence/NODE: exists from the first try until the node is in service again. Until then the storage nodes admit the
    node only in state ADMITTING. `tried`: the result of each method in this round. `at`: epoch of the last try."""

    state: FenceState
    method: str = ""
    tried: tuple[tuple[str, str], ...] = ()
    proof: str = ""
    round: int = 1
    at: float = 0.0
    revision: int = 0


OPERATOR = "operator"  # the method of `veery fence confirm`
WATCHDOG = "watchdog"  # the method that needs nothing but time


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The evidence of `method` that a node cannot write: one sentence."""

    method: str
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceMethods:
    """means/NODE: how the node can be fenced. The node itself writes this while it is well. `methods`: in the order of
    tries. `watchdog`: seconds after the last renewal of its lease until its watchdog has certainly fired."""

    methods: tuple[str, ...] = ()
    watchdog: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHistory:
    """history/NODE: when the node was fenced (epoch), the last few times, oldest first."""

    fenced: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """run/DOMAIN: the last action of the brain on a domain. The brain writes it before each start. Its revision is the
    ticket with which the node may claim the domain, so a late order of an earlier leader fails.

    `tries`: starts in a row without a stable instance. `at`: epoch of the last try. `failed`: nodes on which a start
    failed since the last success, the latest failure last. `home`: where the domain ran before the brain moved or
    restarted it ("": where it is). `unmoved`: failed moves by the brain in a row."""

    node: str = ""
    at: float = 0.0
    tries: int = 0
    failed: tuple[str, ...] = ()
    error: str = ""
    home: str = ""
    unmoved: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """An order to start `domain` on `node`, valid only while run/DOMAIN is at `revision`."""

    domain: str
    node: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderRecord:
    """The key `leader`, bound to the leader's lease. `revision` guards everything that the leader writes."""

    node: str
    since: float
    revision: int = 0


class Level(StrEnum):
    """The severity of an event."""

    INFO = "info"
    WARNING = "warning"
    ALARM = "alarm"  # an operator should act


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """event/NUMBER: one action or finding. `what`: a verb such as "fence". `subject`: a node or domain."""

    at: float
    level: Level
    what: str
    subject: str
    text: str
    by: str = ""


# ---- observations
@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHeartbeat:
    """The last heartbeat of a node on storage. `age`: seconds since then, by the clock of the reporting storage node.
    `stopped`: with it the node reported that it has stopped its domains and starts none."""

    age: float
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHeartbeats:
    """The reports of the storage nodes. `witnesses`: how many answered. A node without an entry never sent one."""

    witnesses: int
    ages: Mapping[str, StorageHeartbeat] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCopy:
    """One domain on a node in any state, as the node's veeryd reports it. `boot`: as in its Owner. `ended`: it has shut
    down or crashed and is kept (on_* = preserve), so it cannot move. `said`: why it exists but does not run, "" if it
    runs. `faulty`: an error of its disk has stopped it, as `said` says."""

    domain: str
    boot: str
    ended: bool = False
    said: str = ""
    faulty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """The report of a node's veeryd. `started`: as in its Presence. `room`: total MiB for domains, used or not. `load`:
    busy processors, 0 to 1. `unsettled`: domains whose moves the node cannot settle, each with a sentence."""

    started: float
    room: int
    load: float = 0.0
    copies: tuple[RunningCopy, ...] = ()
    unsettled: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node. `absent`: seconds for which the leader itself has continuously seen no lease. `present`: seconds with a
    lease and without a fence. Exactly one of them is not None. `reading`: the newest report of its veeryd. `fresh`: the
    report is recent, and newer than the start of its presence. `beating`: seconds for which this leader has seen its
    heartbeats on storage without a gap. `unreadable`: a sentence for each unreadable record of the node; with one, the
    brain leaves the node alone. `accelerator`: that of its domains, by its last record ("kvm", "tcg", "": unknown).
    `health`: the verdict on its sensors, by its last record. `able`: the highest level that its version supports, by
    its presence; None if it is absent."""

    record: Node
    absent: float | None = None
    present: float | None = None
    sign: StorageHeartbeat | None = None
    beating: float = 0.0
    reading: NodeReading | None = None
    fresh: bool = False
    means: FenceMethods = FenceMethods()
    accelerator: str = ""
    fence: FenceRecord | None = None
    intent: NodeIntent | None = None
    history: NodeHistory = NodeHistory()
    health: HealthRecord = field(default_factory=HealthRecord)
    able: int | None = None
    unreadable: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The node's name."""
        return self.record.name


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainView:
    """One domain. `memory`: MiB that it takes on a node. `tied`: the only node that has its disks ("": volumes, which
    every node reaches; "?": unknown). `move`: the reservation of the running move. `unreadable`: as in NodeView; then
    owner, move and other fields can be missing. `accelerator`: that of its last node, if known."""

    name: str
    memory: int
    ha: HaRecord = HaRecord()
    owner: Owner | None = None
    run: RunRecord | None = None
    move: Reservation | None = None
    tied: str = ""
    unreadable: tuple[str, ...] = ()
    accelerator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """The cluster at `revision` of the store. `quorum`: the store answered. `settled`: seconds for which it has
    answered continuously, by the leader's clock. `witnesses`: storage nodes that reported heartbeats just now.
    `watched`: seconds for which there was always one. `restored`: why the store is not trusted, "" if it is. `level`:
    the cluster's level, 0 if its record is missing or cannot be read.

    These fields are about this leader. `acting`: subjects ("domain/x", "node/y") with a running action. `resting`:
    subjects whose last action has just failed, with its error. `starting` (domain to node) and `moving` (domain to
    source and target): the running orders. `ages`: seconds since the run record of a domain or the fence record of a
    node was written, by this leader's monotonic clock; for a missing entry the wall clock applies."""

    revision: int
    quorum: bool
    settled: float
    witnesses: int
    watched: float
    nodes: Mapping[str, NodeView]
    domains: Mapping[str, DomainView]
    groups: Mapping[str, Group] = field(default_factory=dict)
    disarmed: Disarmed | None = None
    acting: frozenset[str] = frozenset()
    resting: Mapping[str, str] = field(default_factory=dict)
    starting: Mapping[str, str] = field(default_factory=dict)
    moving: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    ages: Mapping[str, float] = field(default_factory=dict)
    restored: str = ""
    level: int = 0


# ---- actions
@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """An action on `subject` and its reason. Log line, event and `veery why` show the reason."""

    subject: str  # "node/NAME" or "domain/NAME"
    reason: str

    @property
    def name(self) -> str:
        """The name of the node or domain."""
        return self.subject.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(Action):
    """The reason why nothing is done. `state`: the NodeState or Standing found."""

    state: str
    level: Level = Level.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence(Action):
    """Try fence `method` on a silent node. `record`: as seen (None: a new fence). `absent`: seconds by our clock."""

    method: str
    absent: float
    record: FenceRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUpRound(Action):
    """Record that every possible method has failed. The brain starts another round after a while."""

    record: FenceRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit(Action):
    """Admit a node again: its stale instances are dead, or it was never proven fenced and none started elsewhere."""

    record: FenceRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Action):
    """Stop instance `boot` of a domain on `node`: it is stale, or its node has lost the storage. In the second case
    `run` is the record of the domain, and `tries` its new count of tries."""

    node: str
    boot: str
    run: RunRecord | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Action):
    """Take a domain from a node that is proven fenced, only while `owner` and `fence` are as seen. `tries`: the new
    count of tries."""

    owner: Owner
    fence: FenceRecord
    run: RunRecord | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Action):
    """Start a domain without an owner on `node`."""

    node: str
    ha: HaRecord
    run: RunRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move(Action):
    """Move a running domain from `source` to `target`. `homeward`: it moves back to its home node. `urgent`: its node
    may die at any moment. `verdict`: the sign behind the verdict that causes the move ("": no verdict causes it)."""

    source: str
    target: str
    owner: Owner
    homeward: bool = False
    urgent: bool = False
    verdict: str = ""
    run: RunRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(Action):
    """Delete the reservation of a move whose target is proven fenced."""

    promise: Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady(Action):
    """Reset the tries of a domain that has run long enough."""

    run: RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear(Action):
    """Delete an intent that is fulfilled."""

    intent: NodeIntent


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The parameters of the brain, in seconds unless noted otherwise. `check` verifies their relations."""

    cycle: float = 1.0  # from one observation to the next
    leader_ttl: int = 6  # whole seconds of the leader's lease
    node_ttl: int = 10  # whole seconds of a node's lease (settings: presence_ttl)
    silence: float = 1.0  # absence of a node before the brain judges it
    grace: float = 12.0  # the store must answer for so long before the brain judges any node
    blind: float = 4.0  # after a longer pause between two observations, absences count from zero
    sign: float = 3.0  # a heartbeat on storage that is younger is a sign of life
    use: float = 3.0  # presence of a node before it gets domains
    cutoff: float = (
        20.0  # a present node without a heartbeat on storage for so long, while another has one, lost the storage
    )
    margin: float = 5.0  # after its deadline plus this, a watchdog has certainly fired
    retry: float = 15.0  # between two rounds of fencing methods
    backoff: float = 5.0  # before the second try to start; doubles
    backoff_max: float = 300.0
    stable: float = 300.0  # an instance that runs longer resets the tries
    starts: int = 4  # simultaneous starts per node
    out: int = 1  # moves out of a node, into a node, and of one link, at once
    into: int = 1
    severe: int = 4  # moves out of a node that may die at any moment, and from there into one node
    damp_count: int = 3  # a node that was fenced so often
    damp_window: float = 3600.0  # within this time gets no domains until it has passed since the last fence
    fence_deadline: float = 30.0  # one method
    start_deadline: float = 120.0
    move_deadline: float = 3600.0

    def check(self) -> None:
        """Raise Refused for parameters that contradict each other."""
        if self.cycle * 2 > self.leader_ttl:
            raise Refused(
                "rules: a leader's lease must hold at least two cycles", hint="raise leader_ttl or lower cycle"
            )
        if self.blind > self.node_ttl:
            raise Refused("rules: blind must be at most a node's lease", hint="else a node could come and go unseen")
        if self.grace < self.node_ttl:
            raise Refused("rules: grace must be at least a node's lease", hint="after a pause all leases start again")
        if min(self.out, self.into, self.starts, self.severe) < 1:
            raise Refused("rules: limits must be at least 1")
