"""Readable output of `veery migrate --plan` and `veery cluster cpu`."""

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
    """Print the plan that veeryd made. Returns the exit status: 1 if there is an obstacle."""
    from veery.model.codec import convert
    from veery.model.plan import Plan

    plan = convert(answer, Plan)
    if session.json:
        session.print_json(answer)
    else:
        print(*lines(plan), sep="\n")
    return 0 if plan.possible else 1


def lines(plan: Plan) -> Iterator[str]:
    """Yield the lines of a plan."""
    verdict = "can move" if plan.possible else "cannot move"
    yield f"{plan.domain} {verdict} from {plan.source} to {plan.target}"
    if plan.blockers:
        yield "obstacles:"
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
        yield "time", f"{_time(found.total_ms)}, with a gap of {found.gap_ms:.0f} ms for clients"
    else:
        yield "time", f"the move would give up after {_time(found.total_ms)}: {found.why}"
        yield "", f"a downtime of {found.needed:.0f} ms would be enough: --downtime {found.needed * 1.1:.0f}"
    disks = f"{format_size(found.disk_bytes)} of disks, then " if found.disk_bytes else ""
    yield "copied", f"{disks}{format_size(found.bytes)} in {found.rounds} round{'s' if found.rounds != 1 else ''}"
    size = f"{format_size(memory.used)} of {format_size(memory.total)} in use"
    yield "memory", f"{size}, {format_size(found.dirty_rate)}/s written, compresses to {memory.packed:.0%}"
    probed = f"; a probe reached {format_size(link.probed)}/s" if link.probed else ""
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
        print(f"  supported by all of {', '.join(baseline['nodes'])}")
    rows = []
    for one in answer["processors"]:
        mine = one["accelerator"], one.get("vendor", "")
        alike = [each for each in answer["baselines"] if (each["accelerator"], each.get("vendor", "")) == mine]
        base = alike[0] if alike else None
        more = (
            len(set(one["features"]) - set(base["features"])) if base else "-"
        )  # on Xen each node has its own features
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
Shows the CPU model that new domains get. Every hypervisor of the cluster supports it, so every hypervisor can take
every domain. veery computes it again when a node joins or leaves, or returns with another QEMU or processor. Running
domains keep their model until they restart; `veery migrate --plan` shows if a domain no longer fits a node.

Under KVM there is one model for each vendor: the newest CPU model of QEMU that all nodes of the vendor fully support,
and the features that all of them have. A domain cannot move between vendors, nor between KVM and TCG. Under TCG the
model is always x86-64-v2, because TCG's emulation does not depend on the machine. The column More counts the further
features of a node.""",
        examples="veery cluster cpu",
        json=True,
    ),
}
