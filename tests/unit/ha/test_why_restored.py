"""`veery why` while the store is not trusted."""

from __future__ import annotations

from veery.ha.why import why
from veery.model.ha import ClusterView, Rules


def test_a_brain_that_has_seen_nothing_yet_says_why() -> None:
    blank = ClusterView(
        revision=0, quorum=False, settled=0.0, witnesses=0, watched=0.0, nodes={}, domains={}, restored="it went back"
    )
    (line,) = why(blank, "web", 0.0, Rules())
    assert "it went back" in line and "veery cluster adopt --plan" in line
