"""`list -l`: the domains' configurations as the JSON that xl prints."""

from __future__ import annotations

from collections.abc import Sequence

from veery.cli.session import Session
from veery.client.http import domain_path
from veery.config.xljson import domain_json, print_list
from veery.errors import Refused
from veery.model.codec import convert
from veery.model.domain import DomainReading, DomainSpec


def print_long(session: Session, chosen: Sequence[DomainReading]) -> None:
    """Print the configuration of each of `chosen`; Domain-0 has none, and a domain that ends meanwhile is left out."""
    rows = []
    for item in chosen:
        if item.domid:
            try:
                answer = session.client.get(domain_path(item.uuid))
            except Refused:
                continue
            rows.append(domain_json(convert(answer["spec"], DomainSpec), item.domid))
    print(print_list(rows), end="")
