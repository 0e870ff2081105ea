"""High availability: what is asked for, what is remembered, what is seen, and what is to be done.

Three kinds of values. *Records* stand in the store (cluster/keys.py says under which key). The *view* is one
observation of the whole cluster at one revision of the store. *Actions* are what `ha.decide` makes of it, each with
its reason. Times that safety rests on are durations, measured by the leader's own monotonic clock (`absent`,
`settled`, ages); times in records are seconds of the epoch, and only pace things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from veery.errors import Refused
from veery.model.cluster import Owner, Reservation
from veery.model.node import Node
from veery.model.verdict import HealthRecord


# ---- what is asked for
class Policy(StrEnum):
    """What the cluster does for a domain by itself."""

    RESTART = "restart"  # moved away from sick nodes, started again when it or its node has died
    MIGRATE_ONLY = "migrate-only"  # moved away from sick nodes, never started again
    OFF = "off"  # left alone; only an ordered drain moves it


SHUTDOWN_LAPSE_S = 600.0
"""A domain whose guest was asked to shut down, and has not after so long, is wanted again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HaRecord:
    """ha/DOMAIN: what was asked for domain. Of two that wait the higher `priority` starts first; `delay` is how many
    seconds those of lower priority wait after its start. `max_restarts` tries in a row, then it is given up.
    `wanted`: it is to run; whoever ends it on purpose clears this first. `stopping`: when its guest was asked to shut
    down, in seconds of the epoch, until it has or the wish has lapsed; 0.0: it was not asked."""

    policy: Policy = Policy.OFF
    priority: int = 0
    group: str = ""
    max_restarts: int = 5
    delay: float = 0.0
    wanted: bool = True
    stopping: float = 0.0
    revision: int = 0


class GroupKind(StrEnum):
    """How the domains of one group lie."""

    APART = "apart"  # on different nodes
    TOGETHER = "together"  # on one node


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """group/NAME: `nodes` on which its domains may run (none named: all). `strict`: rather not at all than against
    the rule. A group without a record is APART and not strict."""

    kind: GroupKind = GroupKind.APART
    nodes: tuple[str, ...] = ()
    strict: bool = False


class IntentKind(StrEnum):
    """What an operator means to do with a node."""

    DRAIN = "drain"  # to be empty: its domains move away, nothing comes in, until `resume`
    RESUME = "resume"  # in use again, and what had to leave it comes home
    AWAY = "away"  # its daemon is being restarted: not judged for `away` seconds of absence


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIntent:
    """intent/NODE. `force`: the drain goes on although fewer nodes than before could then be lost."""

    kind: IntentKind
    by: str = ""
    since: float = 0.0
    force: bool = False
    away: float = 0.0
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Disarmed:
    """The key `disarmed`: while it stands nothing is decided."""

    by: str = ""
    since: float = 0.0
    reason: str = ""


# ---- what is remembered
class FenceState(StrEnum):
    """How far a fence has come. Only FENCED is proof."""

    FENCING = "fencing"  # a method is being tried
    FAILED = "failed"  # every method that can be tried has failed; they are tried again, and someone is called
    FENCED = "fenced"  # proven: the node cannot write
    ADMITTING = "admitting"  # its old copies are dead; the storage is being told to let it in again


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceRecord:
    """fence/NODE: stands from the first try until the node is in use again. While it stands the storage lets the node
    in only in ADMITTING. `tried`: what each method said, this round; `at`: epoch of the last try."""

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
    """What `method` has seen that shows that a node cannot write: one sentence."""

    method: str
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceMethods:
    """means/NODE: how the node can be fenced; it writes this itself, while it is well. `methods` in the order to be
    tried; `watchdog`: seconds after its last renewal of its lease at which its watchdog has fired for certain."""

    methods: tuple[str, ...] = ()
    watchdog: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHistory:
    """history/NODE: when it was fenced, epoch, the last few, oldest first."""

    fenced: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """run/DOMAIN: what the brain last did with it. Written before each start: its revision is the ticket with which
    the node may claim the domain, so that a late order of an earlier leader finds the gate shut.

    `tries` in a row without a run that lasted; `at`: epoch of the last; `failed`: nodes on which a start failed since
    the last that went well, the latest failure last; `home`: where it ran before the brain moved or restarted it ("":
    where it is); `unmoved`: moves by the brain that failed in a row."""

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
    """An order to start `domain` on `node`, good only while run/DOMAIN is at `revision`."""

    domain: str
    node: str
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderRecord:
    """leader: bound to its lease. `revision` guards everything that the leader writes."""

    node: str
    since: float
    revision: int = 0


class Level(StrEnum):
    """How much an event matters."""

    INFO = "info"
    WARNING = "warning"
    ALARM = "alarm"  # somebody should come


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """event/NUMBER: one thing that was done or found. `what` is a verb such as "fence", `subject` a node or domain."""

    at: float
    level: Level
    what: str
    subject: str
    text: str
    by: str = ""


# ---- what is seen
@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHeartbeat:
    """A node's last heartbeat on storage. `age`: seconds since, by the clock of the storage node that tells it;
    `stopped`: with it the node said that it has ended its domains and starts none."""

    age: float
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHeartbeats:
    """What the storage nodes tell: `witnesses` of them answered; a node without an entry never gave a sign."""

    witnesses: int
    ages: Mapping[str, StorageHeartbeat] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningCopy:
    """One domain on a node, as the node's daemon tells it, in whatever state; `boot` as in its Owner. `ended`: it has
    shut down or crashed and is kept (on_* = preserve), so it cannot be moved. `said`: why it does not run although it
    is there, "" where it runs."""

    domain: str
    boot: str
    ended: bool = False
    said: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """What a node's daemon says of itself. `started` is that of its Presence; `room`: MiB for domains in all, used or
    not; `load`: processors busy, 0 to 1; `unsettled`: domains whose moves cannot be settled there, each with a
    sentence."""

    started: float
    room: int
    load: float = 0.0
    copies: tuple[RunningCopy, ...] = ()
    unsettled: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node. `absent`/`present`: seconds for which the leader itself has seen its lease gone, or there with no
    fence standing, without break; exactly one of them is not None. `reading`: the newest
    that its daemon gave, `fresh`: given since it is present,
    and just now. `beating`: seconds for which its heartbeats on storage have gone on before this leader's eyes.
    `unreadable`: a sentence for each of its records that cannot be read; while there is one, it is left alone.
    `accelerator`: what it runs domains under, as it wrote down last ("kvm", "tcg", "": not known). `health`: the
    verdict on its sensors, as it wrote it down last."""

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
    unreadable: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The node's name."""
        return self.record.name


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainView:
    """One domain. `memory` MiB it takes on a node; `tied`: the one node that has its disks ("": they are volumes, any
    node reaches them; "?": nobody knows). `move`: the promise of the move under way. `unreadable`: as of a NodeView;
    then owner, move and the rest may be missing here. `accelerator`: that of the node on which it ran last, as far as
    that is known."""

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
    answered without break, by the leader's clock. `witnesses`: storage nodes that told of heartbeats just now;
    `watched`: seconds for which there was one without break. `restored`: why the store is not trusted, "" where it is.
    Of this leader itself: `acting`, subjects ("domain/x", "node/y") with an action under way; `resting`, those whose
    last action failed a moment ago, with what was said; `starting`, domain to node, and `moving`, domain to
    (source, target), the orders under way; `ages`, seconds since the run of a domain or the fence of a node was
    written, by this leader's steady clock (where it is not told, the wall clock is asked)."""

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


# ---- what is to be done
@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What is to be done about `subject`, and why: the reason is the log line, the event, and what `veery why` says."""

    subject: str  # "node/NAME" or "domain/NAME"
    reason: str

    @property
    def name(self) -> str:
        """The node's or domain's name."""
        return self.subject.partition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(Action):
    """Nothing is to be done, and that is why. `state` is the NodeState or Standing found."""

    state: str
    level: Level = Level.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence(Action):
    """Try `method` on a silent node. `record` as it was seen (None: this begins it); `absent` seconds by our clock."""

    method: str
    absent: float
    record: FenceRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUpRound(Action):
    """Every method that can be tried has failed: say so, and begin again after a while."""

    record: FenceRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit(Action):
    """Let a node in again: its old copies are dead (or it was never proven fenced, and none was started elsewhere)."""

    record: FenceRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Action):
    """End the copy `boot` of a domain on `node`: it is stale, or its node has lost the storage. Of the second kind
    `run` is the domain's record, and `tries` is how many count from now on."""

    node: str
    boot: str
    run: RunRecord | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(Action):
    """Take a domain from a node that is proven fenced: only while `owner` and `fence` are as seen. `tries`: how many
    count from now on."""

    owner: Owner
    fence: FenceRecord
    run: RunRecord | None = None
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(Action):
    """Start a domain that nobody owns on `node`."""

    node: str
    ha: HaRecord
    run: RunRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move(Action):
    """Move a running domain from `source` to `target`. `homeward`: it comes back to where it was. `urgent`: its node
    may die at any moment."""

    source: str
    target: str
    owner: Owner
    homeward: bool = False
    urgent: bool = False
    run: RunRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(Action):
    """Take away the promise of a move whose target is proven fenced."""

    promise: Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady(Action):
    """A domain has run long enough: its tries are forgotten."""

    run: RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Clear(Action):
    """An intent is fulfilled: take it away."""

    intent: NodeIntent


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The brain's figures: seconds, unless said otherwise. `check` says which belong together."""

    cycle: float = 1.0  # from one observation to the next
    leader_ttl: int = 6  # whole seconds of the leader's lease
    node_ttl: int = 10  # whole seconds of a node's lease (settings: presence_ttl)
    silence: float = 1.0  # absent for so long before a node is judged
    grace: float = 12.0  # the store has answered for so long before anyone is judged
    blind: float = 4.0  # a longer pause between two observations forgets who was absent since when
    sign: float = 3.0  # a heartbeat on storage that is younger is a sign of life
    use: float = 3.0  # present for so long before it is given domains
    cutoff: float = (
        20.0  # present, but without a heartbeat on storage for so long, while another has them: it lost the storage
    )
    margin: float = 5.0  # a watchdog has fired for certain so long after its deadline
    retry: float = 15.0  # between two rounds of fencing methods
    backoff: float = 5.0  # before the second try to start; doubles
    backoff_max: float = 300.0
    stable: float = 300.0  # a run that lasted longer clears the tries
    starts: int = 4  # starts under way per node
    out: int = 1  # moves out of a node, into a node, and of one link, at once
    into: int = 1
    severe: int = 4  # moves out of a node that may die at any moment, and into one from there
    damp_count: int = 3  # fenced so often within
    damp_window: float = 3600.0  # this time: given nothing until it has passed since the last
    fence_deadline: float = 30.0  # one method
    start_deadline: float = 120.0
    move_deadline: float = 3600.0

    def check(self) -> None:
        """Raises Refused for figures that do not fit together."""
        if self.cycle * 2 > self.leader_ttl:
            raise Refused("rules: a leader's lease holds two cycles at least", hint="raise leader_ttl or lower cycle")
        if self.blind > self.node_ttl:
            raise Refused("rules: blind is at most a node's lease", hint="a node could come and go unseen")
        if self.grace < self.node_ttl:
            raise Refused("rules: grace is at least a node's lease", hint="after a pause all leases begin anew")
        if min(self.out, self.into, self.starts, self.severe) < 1:
            raise Refused("rules: limits are 1 or more")
