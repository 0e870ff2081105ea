"""The context that all rules of one decision share: the view, what follows from it, and what earlier rules have
assigned."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from veery.ha.placement import Book
from veery.ha.states import LEAVING, NodeState, judge, usable, waited
from veery.model.ha import ClusterView, DomainView, Level, Note, Policy, Rules


@dataclass(slots=True)
class DecisionContext:
    """The state of one decision. `book` and the counts change as rules assign domains; the view never changes."""

    view: ClusterView
    now: float
    rules: Rules
    states: dict[str, NodeState]
    book: Book
    on: dict[str, list[DomainView]]  # domains by owning node, each list in `order`
    out: Counter[str] = field(default_factory=Counter)  # moves under way, by source
    into: Counter[str] = field(default_factory=Counter)
    links: Counter[tuple[str, str]] = field(default_factory=Counter)
    usable: tuple[str, ...] = ()  # the nodes that may receive domains

    @classmethod
    def of(cls, view: ClusterView, now: float, rules: Rules) -> DecisionContext:
        """Build the context for `view` at `now` (epoch)."""
        states = judge(view, now, rules)
        on: dict[str, list[DomainView]] = {name: [] for name in view.nodes}
        leaving = [name for name, state in states.items() if state in LEAVING]
        fit = usable(view, states)
        made = cls(view, now, rules, states, Book(view, fit, leaving), on, usable=fit)
        for domain in view.domains.values():
            if domain.owner and domain.owner.node in on:
                on[domain.owner.node].append(domain)
            move = (domain.move.source, domain.move.target) if domain.move else view.moving.get(domain.name)
            if move:
                made.count(*move)
        for each in on.values():
            each.sort(key=order)
        return made

    def count(self, source: str, target: str) -> None:
        """Count one more move as under way."""
        self.out[source] += 1
        self.into[target] += 1
        self.links[source, target] += 1

    def may_move(self, source: str, target: str) -> bool:
        """Return True if one more move keeps the limits. The limits are wider out of a node that may die at any moment.
        Only one move at a time leaves a node whose memory is suspect."""
        out, into = self.rules.out, self.rules.into
        if self.states.get(source) is NodeState.SICK:
            health = self.view.nodes[source].health
            if health.severe:
                out, into = max(out, self.rules.severe), max(into, self.rules.severe)
            elif health.singly:
                out = 1
        return self.out[source] < out and self.into[target] < into and self.links[source, target] < out

    def busy(self, domain: DomainView) -> bool:
        """Return True if an action on the domain is under way, or if the domain is left alone, so that no other action
        may begin."""
        name = domain.name
        return (
            bool(domain.unreadable)
            or domain.move is not None
            or name in self.view.moving
            or name in self.view.starting
            or f"domain/{name}" in self.view.acting
        )

    def kept(self, domain: DomainView) -> str:
        """Return why a domain that has ended but is kept on its node cannot move; "" for any other domain."""
        owner = domain.owner
        reading = self.view.nodes[owner.node].reading if owner and owner.node in self.view.nodes else None
        if (
            owner is None
            or reading is None
            or not any(copy.ended for copy in reading.copies if (copy.domain, copy.boot) == (domain.name, owner.boot))
        ):
            return ""
        return f"it has ended and is kept, so it cannot be moved: veery --node {owner.node} destroy {domain.name}"

    def waited(self, subject: str, at: float, seconds: float) -> bool:
        """Return True if the record of `subject`, written at `at` (epoch), is at least `seconds` old."""
        age = self.view.ages.get(subject)
        return waited(self.now, at, seconds) if age is None else age >= seconds

    def resting(self, subject: str) -> str:
        """Return the error of an action about `subject` that failed recently; "" if there is none."""
        return self.view.resting.get(subject, "")


def order(domain: DomainView) -> tuple[int, int, str]:
    """Return the sort key of a domain: higher priority first, then more memory (as in `survival.stranded`), then
    name."""
    return -domain.ha.priority, -domain.memory, domain.name


def restarts(domain: DomainView) -> bool:
    """Return True if the brain starts the domain when it does not run."""
    if domain.unreadable:
        return False
    return domain.ha.policy is Policy.RESTART and domain.ha.wanted and domain.ha.max_restarts > 0


def failed_tries(domain: DomainView) -> int:
    """Return how many starts in a row have failed.

    A start that succeeded is not counted. If the domain later dies together with its node, the node was lost and the
    domain did not fail."""
    run = domain.run
    if run is None:
        return 0
    went_well = domain.owner is not None and domain.owner.node == run.node and run.node not in run.failed
    return max(0, run.tries - 1) if went_well else run.tries


def given_up(domain: DomainView) -> bool:
    """Return True if so many starts in a row have failed that the brain does not try again."""
    return 0 < failed_tries(domain) >= domain.ha.max_restarts


def note(subject: str, state: str, reason: str, level: Level = Level.INFO) -> Note:
    """Return a Note: a finding that needs no action."""
    return Note(subject=subject, reason=reason, state=state, level=level)


def seconds(value: float) -> str:
    """Format seconds for a reason. They are rounded up to whole seconds, so that a line changes at most once a
    second."""
    return f"{-int(-value // 1)} s"
