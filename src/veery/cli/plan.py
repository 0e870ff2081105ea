"""`veery migrate --plan` and `veery cluster cpu`, for people."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.migrate.policy import find
from veery.model.units import format_size

if TYPE_CHECKING:
    from veery.cli.session import Session
    from veery.model.plan import Plan


def tell(session: Session, answer: dict[str, Any]) -> int:
    """Print the plan that the daemon made; the exit status: 1 when something stands in the way."""
    from veery.model.codec import convert
    from veery.model.plan import Plan

    plan = convert(answer, Plan)
    if session.json:
        session.print_json(answer)
    else:
        print(*lines(plan), sep="\n")
    return 0 if plan.possible else 1


def lines(plan: Plan) -> Iterator[str]:
    """A plan as a page."""
    verdict = "can go" if plan.possible else "cannot go"
    yield f"{plan.domain} {verdict} from {plan.source} to {plan.target}"
    if plan.blockers:
        yield "in the way:"
        for one in plan.blockers:
            yield f"  {one.kind:<8} {one.reason}"
            if one.hint:
                yield f"  {'':<8}   hint: {one.hint}"
    yield from tables.plain(("", ""), _rows(plan)) if plan.forecast else ()
    for caution in plan.cautions:
        yield f"caution: {caution}"
    if plan.back:
        yield f"it could not come back to {plan.source}:"
        for one in plan.back:
            yield f"  {one.kind:<8} {one.reason}"
            if one.hint:
                yield f"  {'':<8}   hint: {one.hint}"


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    found, memory, link = plan.forecast, plan.memory, plan.link
    assert found is not None and memory is not None and link is not None
    if found.converges:
        yield "time", f"{_time(found.total_ms)}, in which a client misses it for {found.gap_ms:.0f} ms"
    else:
        yield "time", f"it would give up after {_time(found.total_ms)}: {found.why}"
        yield "", f"a downtime of {found.needed:.0f} ms would do: --downtime {found.needed * 1.1:.0f}"
    disks = f"{format_size(found.disk_bytes)} of disks, then " if found.disk_bytes else ""
    yield "copied", f"{disks}{format_size(found.bytes)} in {found.rounds} round{'s' if found.rounds != 1 else ''}"
    size = f"{format_size(memory.used)} of {format_size(memory.total)} in use"
    yield "memory", f"{size}, {format_size(found.dirty_rate)}/s written, compresses to {memory.packed:.0%}"
    probed = f"; a probe got {format_size(link.probed)}/s through" if link.probed else ""
    yield "link", f"{format_size(link.rate)}/s by {link.source}{probed}"
    settings = plan.settings
    words = [f"policy {settings.policy}", f"downtime limit {settings.downtime} ms", "TLS" if settings.tls else "no TLS"]
    words += [f"at most {format_size(settings.bandwidth)}/s"] if settings.bandwidth else []
    words += [f"timeout {settings.timeout:g} s"] if settings.timeout else []
    yield "settings", ", ".join(words)
    for step in found.steps:
        yield "policy", step
    if risk := find(settings.policy).risk:
        yield "risk", risk


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"


# ---- cluster cpu
def _cpu(session: Session, args: Namespace) -> int:
    answer = session.client.get("/v1/cpu")
    if session.json:
        session.print_json(answer)
        return 0
    for baseline in answer["baselines"]:
        of = f" ({baseline['vendor']})" if baseline.get("vendor") else ""
        print(f"{baseline['accelerator']}{of}: x86-64-v{baseline['level']}, given to new domains as {baseline['cpu']}")
        print(f"  what {', '.join(baseline['nodes'])} can all give")
    rows = []
    for one in answer["processors"]:
        mine = one["accelerator"], one.get("vendor", "")
        alike = [each for each in answer["baselines"] if (each["accelerator"], each.get("vendor", "")) == mine]
        base = alike[0] if alike else None
        more = len(set(one["features"]) - set(base["features"])) if base else "-"  # Xen gives each node's own
        rows.append(
            (one["node"], one["accelerator"], one["version"], f"x86-64-v{one['level']}", str(more), one["model"])
        )
    print(*tables.plain(("Node", "Accelerator", "QEMU", "Level", "More", "Processor"), rows), sep="\n")
    return 0


VERBS: dict[str, Verb] = {
    "cluster cpu": Verb(
        run=_cpu,
        declare=lambda parser: None,
        about="""
Shows the processor that new domains get: what every hypervisor of the cluster can give, so that each of them can take
each domain in. It is worked out anew when a node joins, leaves, or comes back with another QEMU or processor; domains
that run keep theirs until they are started anew, and `veery migrate --plan` tells where one no longer fits.

Under KVM there is one for each vendor: the newest of QEMU's processor models that all nodes of that vendor can give
whole, and the features that all of them have. No domain moves from one vendor to another, nor between KVM and TCG.
Under TCG it is always the same, x86-64-v2: what TCG emulates does not depend on the machine. The column More counts
the features that a node has besides.""",
        examples="veery cluster cpu",
        json=True,
    ),
}
