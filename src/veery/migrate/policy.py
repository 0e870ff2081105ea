"""Policies of a copy: the steps against a domain that writes memory faster than it can be copied.

Policies are data. `veery.migrate.converge` reads them; docs/moves.md pictures them."""

from __future__ import annotations

from dataclasses import dataclass

from veery.errors import Refused
from veery.model.move import Compress, MoveSettings
from veery.model.units import MIB_PER_GIB

GUARD_PER_GIB_MS = 2.0
"""Additional time before a switch-over is taken back, for each GiB of the domain's memory. With more memory, the last
scan for written pages and the end of dirty logging take longer: domains of 192 GiB were paused for some 250 to 350 ms,
idle ones too, with a limit of 300 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One named way to bring a copy to its end.

    `downtime`: the limits (ms) that may be allowed, rung by rung. The user's own limit comes first, lower rungs are
    dropped. `climbs`: rungs above the user's own limit may be used at all. `throttle`: percent of the processors' time
    to take away, rung by rung, when no limit on the downtime is enough. `patience`: rounds without progress before the
    next step, and before giving up after the last. `delta`: send differences of pages where the bandwidth is capped.
    `bound`: seconds within which the copy ends, at least, where the user named no time (0: no bound); `passes`: and at
    least so many times the time of one pass over the memory. `stop`: the domain is stopped when the bound is near, so
    that the bound holds. `guard`: times the limit after which a switch-over is taken back (0: never); a large domain
    gets more (`taken_back_after`). `post_copy`: once all of the memory was sent, the domain runs at the target and the
    rest follows; `risk` says in one line what that risks."""

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
        """Return the rungs of the downtime ladder (ms) for a user who asked for `first`."""
        return (first, *(rung for rung in self.downtime if rung > first)) if self.climbs else (first,)


GENTLE = Policy(
    name="gentle",
    about="never pauses the domain longer than its limit; gives up where that is not possible, and the domain runs on",
    climbs=False,
    patience=4,
    guard=2.0,
)
BALANCED = Policy(
    name="balanced",
    about="raises the limit step by step when the copy makes no progress, then slows the domain's processors",
    downtime=(50, 100, 200, 400),
    throttle=(30, 60, 80, 90, 95),
    patience=2,
    delta=True,
)
MUST_FINISH = Policy(
    name="must-finish",
    about="ends within its bound: like balanced, but goes further and at last stops the domain for the rest",
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
    about="sends the memory once, then the domain runs at the target and fetches the rest from the source",
    climbs=False,
    post_copy=True,
    risk="once it runs there it cannot come back, and depends on both nodes until the rest has followed: "
    "if the QEMU of either node dies in that time, this instance is lost and on_crash applies",
)
POLICIES: tuple[Policy, ...] = (GENTLE, BALANCED, MUST_FINISH, POST_COPY)
DEFAULT = BALANCED.name


def taken_back_after(policy: Policy, downtime: int, memory: int) -> float:
    """Return after how many milliseconds the switch-over of a domain with `memory` MiB is taken back, `downtime` being
    the limit; 0.0: never."""
    return policy.guard * downtime + memory / MIB_PER_GIB * GUARD_PER_GIB_MS if policy.guard else 0.0


def find(name: str) -> Policy:
    """Return the policy called `name`. Raises Refused."""
    for policy in POLICIES:
        if policy.name == name:
            return policy
    raise Refused(f"there is no policy {name!r}", hint="one of " + ", ".join(policy.name for policy in POLICIES))


def check(settings: MoveSettings) -> None:
    """Raise Refused for a policy that is unknown, or does not fit the other settings."""
    if find(settings.policy).post_copy and settings.compress is Compress.YES:
        raise Refused("post-copy cannot be compressed: what is fetched must not wait", hint="leave --compress out")
    if find(settings.policy).post_copy and settings.with_disks:
        raise Refused(
            "post-copy cannot take disks along: after COMMIT their copy could not be undone",
            hint="put them into volumes first (veery volume create --help), or use another policy: --policy balanced",
        )


def ladder(policy: Policy) -> str:
    """Return the policy's ladder as docs/moves.md shows it, the first rung at the bottom; a test keeps the two
    alike."""
    steps = [f"limit {limit:>4} ms" for limit in policy.limits(50)]
    steps += [f"throttle {percent:>2} %, limit {policy.limits(50)[-1]} ms" for percent in policy.throttle]
    end = "the domain is stopped for the rest" if policy.stop else "given up: the domain runs on"
    title = f"{policy.name}: {policy.about}"
    if policy.post_copy:
        steps.append("limit passed: switch-over")
        end = "it runs at the target, the rest follows: no way back"
    rungs = [f"  |  {step:<28}|" for step in reversed(steps)]
    if policy.post_copy:
        return "\n".join([title, f"  ^  {end}", *rungs, "     the step comes when all of its memory was sent once"])
    return "\n".join([title, f"  ^  {end}", *rungs, f"     a step after {policy.patience} rounds without progress"])
