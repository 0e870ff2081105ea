"""The rate limit of an interface (`rate=` in its spec), by tc(8) on its tap.

Traffic to the guest is queued (tc-tbf(8)). Traffic from the guest is dropped above the rate (tc-police(8)), since a tap
has no queue in that direction. Xen's netback limits only the traffic from the guest.
"""

from __future__ import annotations

from dataclasses import dataclass

from veery.errors import Failed, VeeryError
from veery.host.run import run

DEADLINE_S = 10.0
BURST_MIN_BYTES = 70_000
"""A tap passes up to 64 KiB at once (GSO). With a smaller burst the policer would drop all of these."""
FRAME_MAX_BYTES = 131_072
LATENCY_MS = 50


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of `rate` bytes a second, after a burst of `burst` bytes."""

    rate: int
    burst: int


def limit_of(per_interval: int, interval_us: int) -> Limit | None:
    """Return the limit of `per_interval` bytes in each interval (microseconds); None if there is no limit."""
    if per_interval <= 0 or interval_us <= 0:
        return None
    return Limit(max(per_interval * 1_000_000 // interval_us, 1), max(per_interval, BURST_MIN_BYTES))


def orders(device: str, limit: Limit) -> tuple[tuple[str, ...], ...]:
    """Return the calls of tc that set `limit` on tap `device`."""
    rate, burst = f"{limit.rate}bps", f"{limit.burst}b"  # in tc, bps is bytes a second
    shape = f"qdisc replace dev {device} root tbf rate {rate} burst {burst} latency {LATENCY_MS}ms"
    ingress = f"qdisc replace dev {device} ingress"
    police = (
        f"filter replace dev {device} parent ffff: protocol all prio 1 handle 800::1 u32 match u32 0 0 "
        f"police rate {rate} burst {burst} mtu {FRAME_MAX_BYTES}b drop flowid :1"
    )
    return tuple(("tc", *words.split()) for words in (shape, ingress, police))


async def apply(device: str, limit: Limit) -> None:
    """Set `limit` on tap `device`. Raises Failed with each direction that is not limited; the other one is."""
    to_guest, *from_guest = orders(device, limit)
    wrong: list[str] = []
    for direction, calls in (("to", (to_guest,)), ("from", tuple(from_guest))):
        try:
            for call in calls:
                await run(call, deadline=DEADLINE_S)
        except VeeryError as error:
            wrong.append(f"traffic {direction} the guest is not limited ({error.message})")
    if wrong:
        raise Failed("; ".join(wrong), hint="modprobe sch_tbf sch_ingress cls_u32 act_police")
