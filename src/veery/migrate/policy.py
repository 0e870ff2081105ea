"""Policies of a copy: what is done about a domain that is written to faster than it can be copied.

They are data. `veery.migrate.converge` reads them; docs/moves.md pictures them."""

from __future__ import annotations

from dataclasses import dataclass

from veery.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One named way to bring a copy to its end.

    `downtime`: the limits (ms) that may be allowed, rung by rung; the user's own limit is the first, those below it
    fall away. `climbs`: rungs above the user's own limit may be taken at all. `throttle`: percent of the processors'
    time that may be taken away, rung by rung, when no limit on the downtime is enough. `patience`: rounds without
    progress before the next step, and before giving up after the last. `delta`: send differences of pages where the
    bandwidth is capped. `bound`: seconds within which the copy ends, at least, where the user named none (0: none);
    `passes`: and at least so many times what one pass over the memory takes. `stop`: the domain is stopped when the
    bound is near, so that it holds. `guard`: times the limit after which a switch-over is taken back (0: never)."""

    name: str
    about: str
    climbs: bool = True
    downtime: tuple[int, ...] = ()
    throttle: tuple[int, ...] = ()
    patience: int = 2
    delta: bool = False
    bound: float = 0.0
    passes: float = 0.0
    stop: bool = False
    guard: float = 0.0

    def limits(self, first: int) -> tuple[int, ...]:
        """The rungs of the downtime ladder (ms) of a user who asked for `first`."""
        return (first, *(rung for rung in self.downtime if rung > first)) if self.climbs else (first,)


GENTLE = Policy(
    name="gentle",
    about="never stands longer than its limit; gives up where that cannot be, and the domain runs on",
    climbs=False,
    patience=4,
    guard=2.0,
)
BALANCED = Policy(
    name="balanced",
    about="raises the limit step by step when the copy does not get on, then slows the domain's processors",
    downtime=(50, 100, 200, 400),
    throttle=(30, 60, 80, 90, 95),
    patience=2,
    delta=True,
)
MUST_FINISH = Policy(
    name="must-finish",
    about="ends within its bound: as balanced but further, and at last the domain is stopped for the rest",
    downtime=(50, 100, 200, 400, 800),
    throttle=(50, 80, 95, 99),
    patience=1,
    delta=True,
    bound=30.0,
    passes=3.0,
    stop=True,
)
POLICIES: tuple[Policy, ...] = (GENTLE, BALANCED, MUST_FINISH)
DEFAULT = BALANCED.name


def find(name: str) -> Policy:
    """The policy called `name`. Raises Refused."""
    for policy in POLICIES:
        if policy.name == name:
            return policy
    hint = "one of " + ", ".join(policy.name for policy in POLICIES)
    if name == "post-copy":
        hint += "; post-copy is not offered: a domain whose target dies in it is lost"
    raise Refused(f"there is no policy {name!r}", hint=hint)


def picture(policy: Policy) -> str:
    """The policy's ladder as docs/moves.md shows it, the first rung at the foot; a test keeps the two alike."""
    steps = [f"limit {limit:>4} ms" for limit in policy.limits(50)]
    steps += [f"throttle {percent:>2} %, limit {policy.limits(50)[-1]} ms" for percent in policy.throttle]
    end = "the domain is stopped for the rest" if policy.stop else "given up: the domain runs on"
    rungs = [f"  |  {step:<28}|" for step in reversed(steps)]
    title = f"{policy.name}: {policy.about}"
    return "\n".join([title, f"  ^  {end}", *rungs, f"     a step after {policy.patience} rounds without progress"])
