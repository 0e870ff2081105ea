"""`list -l`: the domains' configurations as the JSON that xl prints.

On a Xen node the JSON is that of Xen's own xl, with the name of the volume added to each disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from veery.cli import foreign, sxp
from veery.cli.session import Session
from veery.client.http import domain_path
from veery.config.xljson import domain_json, print_list
from veery.errors import Refused
from veery.model.codec import convert
from veery.model.domain import DomainReading, DomainSpec


def print_long(session: Session, chosen: Sequence[DomainReading], *, everything: bool = False) -> None:
    """Print the configuration of each of `chosen`. `everything` is true if `chosen` is all domains of the node.
    Domain-0 has a configuration on Xen only. A domain that ends meanwhile is skipped. xm has its own format."""
    specs = {item.domid: spec for item in chosen if item.domid and (spec := _spec(session, item)) is not None}
    if session.tool == "xm":
        for item in chosen:
            if not item.domid or item.domid in specs:
                print(sxp.domain(item, specs.get(item.domid)))
        return
    rows = _xl_json(session, chosen, specs, everything=everything)
    if rows is None:
        rows = [domain_json(spec, domid) for domid, spec in specs.items()]
    print(print_list(rows), end="")


def _spec(session: Session, item: DomainReading) -> DomainSpec | None:
    try:
        return convert(session.client.get(domain_path(item.uuid))["spec"], DomainSpec)
    except Refused:
        return None


def _xl_json(
    session: Session, chosen: Sequence[DomainReading], specs: dict[int, DomainSpec], *, everything: bool
) -> list[dict[str, Any]] | None:
    """Return the JSON of Xen's own xl, with volume names added; None if there is no such xl or it fails."""
    answer = foreign.real_text(session, "list", ["-l"])
    if answer is None or answer[0]:
        return None
    try:
        rows: list[dict[str, Any]] = json.loads(answer[1])
        wanted = {item.domid for item in chosen}
        kept = [row for row in rows if everything or row["domid"] in wanted]
        for row in kept:
            spec = specs.get(row["domid"])
            volumes = {disk.vdev: disk.volume for disk in spec.disks if disk.volume} if spec else {}
            for disk in row["config"].get("disks", ()):
                if disk.get("vdev") in volumes:
                    disk["volume"] = volumes[disk["vdev"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return kept
