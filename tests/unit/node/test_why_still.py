"""`veery why DOMAIN` names who has stopped a domain, and the command that lets it go on."""

from __future__ import annotations

from typing import Any

import pytest

from veery.model.domain import DomainReading, DomainState
from veery.node.recovery import why_still


def said(state: DomainState, *, reason: str = "", **changes: Any) -> str:
    reading = DomainReading(
        name="web", uuid="u", domid=1, state=state, memory=64, vcpus=1, cpu_seconds=0, started=0, reason=reason
    )
    told: dict[str, Any] = {"guarded": False, "at_work": "", "theirs": False}
    return why_still(reading, "test1", **(told | changes))


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.BLOCKED])
def test_what_runs_needs_no_word(state: DomainState) -> None:
    assert said(state, at_work="web is being moved (COPY, move m1)") == ""


def test_who_has_paused_it() -> None:
    paused = DomainState.PAUSED
    assert said(paused) == "paused by a user; to continue: veery --node test1 unpause web"
    assert said(paused, guarded=True, theirs=True).startswith("paused by the guard of test1")
    assert "web is being moved (LOADED, move m1)" in said(paused, at_work="web is being moved (LOADED, move m1)")
    assert "move m1 of web is being settled" in said(paused, at_work="move m1 of web is being settled", theirs=True)
    assert "another node owns the domain" in said(paused, theirs=True)
    assert "disk (virtio0: No space left)" in said(paused, reason="virtio0: No space left")
    moved = said(paused, reason="virtio0: No space left", at_work="web is being moved (COPY, move m1)")
    assert moved.startswith("stopped by an error of its disk (virtio0: No space left) on test1; ")
    assert moved.endswith("web is being moved (COPY, move m1)"), "unpause is refused while it is moved"


def test_what_has_ended_or_is_half() -> None:
    assert said(DomainState.SHUTDOWN).endswith("is kept; to remove it: veery --node test1 destroy web")
    assert said(DomainState.CRASHED).startswith("has crashed")
    assert "rest of its memory" in said(DomainState.INCOMING)
    assert "being destroyed" in said(DomainState.DYING)
