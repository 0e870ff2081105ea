"""Policies of a copy: what is done about a domain that is written to faster than it can be copied.

They are data. `veery.migrate.converge` reads them; docs/moves.md pictures them."""

from __future__ import annotations

from dataclasses import dataclass

from veery.errors import Refused
from veery.model.move import Compress, MoveSettings
from veery.model.units import MIB_PER_GIB

GUARD_PER_GIB_MS = 2.0
"""More for a switch-over before it is taken back, for each GiB of the domain's memory. The last look for written pages
and the end of dirty logging take longer with more memory: domains of 192 GiB stood for some 250 to 350 ms, idle ones
too, with a limit of 300 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One named way to bring a copy to its end.

    `downtime`: the limits (ms) that may be allowed, rung by rung; the user's own limit is the first, those below it
    fall away. `climbs`: rungs above the user's own limit may be taken at all. `throttle`: percent of the processors'
    time that may be taken away, rung by rung, when no limit on the downtime is enough. `patience`: rounds without
    progress before the next step, and before giving up after the last. `delta`: send differences of pages where the
    bandwidth is capped. `bound`: seconds within which the copy ends, at least, where the user named none (0: none);
    `passes`: and at least so many times what one pass over the memory takes. `stop`: the domain is stopped when the
    bound is near, so that it holds. `guard`: times the limit after which a switch-over is taken back (0: never);
    a large domain is given more (`taken_back_after`).
    `post_copy`: sent once, the domain goes on at the target and the rest follows; `risk` says in one line what
    that risks."""

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
    post_copy: bool = False
    risk: str = ""

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
POST_COPY = Policy(
    name="post-copy",
    about="sent once, it goes on at the target whatever it writes, and fetches the rest from the source",
    climbs=False,
    post_copy=True,
    risk="once it runs there it cannot come back, and lives on both nodes until the rest has followed: "
    "if either one's QEMU dies in that time, the run is lost and on_crash is answered",
)
POLICIES: tuple[Policy, ...] = (GENTLE, BALANCED, MUST_FINISH, POST_COPY)
DEFAULT = BALANCED.name


def taken_back_after(policy: Policy, downtime: int, memory: int) -> float:
    """Milliseconds after which the switch-over of a domain with `memory` MiB is taken back, `downtime` being the limit;
    0.0: never."""
    return policy.guard * downtime + memory / MIB_PER_GIB * GUARD_PER_GIB_MS if policy.guard else 0.0


def find(name: str) -> Policy:
    """The policy called `name`. Raises Refused."""
    for policy in POLICIES:
        if policy.name == name:
            return policy
    raise Refused(f"there is no policy {name!r}", hint="one of " + ", ".join(policy.name for policy in POLICIES))


def check(settings: MoveSettings) -> None:
    """Raises Refused for a policy that is unknown, or does not go with the other settings."""
    if find(settings.policy).post_copy and settings.compress is Compress.YES:
        raise Refused("post-copy is not compressed: what is fetched must not wait", hint="leave --compress out")
    if find(settings.policy).post_copy and settings.with_disks:
        raise Refused(
            "post-copy takes no disks along: past COMMIT their copy could not be taken back",
            hint="put them into volumes first (veery volume create --help), or take another policy: --policy balanced",
        )


def context(policy: Policy) -> str:
    """The policy's ladder as docs/moves.md shows it, the first rung at the foot; a test keeps the two alike."""
    steps = [f"limit {limit:>4} ms" for limit in policy.limits(50)]
    steps += [f"throttle {percent:>2} %, limit {policy.limits(50)[-1]} ms" for percent in policy.throttle]
    end = "the domain is stopped for the rest" if policy.stop else "given up: the domain runs on"
    title = f"{policy.name}: {policy.about}"
    if policy.post_copy:
        steps.append("limit passed: it goes over")
        end = "it runs at the target, the rest follows: no way back"
    rungs = [f"  |  {step:<28}|" for step in reversed(steps)]
    if policy.post_copy:
        return "\n".join([title, f"  ^  {end}", *rungs, "     the step comes when all of its memory was sent once"])
    return "\n".join([title, f"  ^  {end}", *rungs, f"     a step after {policy.patience} rounds without progress"])
