"""Decisions of a source about a target of another version, from the target's Ready. Pure.

Some fields of an Offer change the bytes of the stream that follows. A target that does not know such a field ignores
it, and would then misread the stream."""

from __future__ import annotations

from veery.cluster import levels
from veery.errors import Refused
from veery.migrate import wire

TAKE_IN = "take in a domain"


def knows_streams(ready: wire.Ready) -> bool:
    """Return whether the target has read `packed` and `post_copy` of the offer. Both are older than Ready's
    `hypervisor`, which is older than levels: a node that sends neither has ignored them."""
    return bool(ready.level or ready.hypervisor)


def require(target: str, ready: wire.Ready, cluster: int, *, post_copy: bool) -> None:
    """Raise Refused where node `target` cannot do the level `cluster` of the cluster, or does not know `post_copy`,
    which this move needs."""
    if trouble := levels.behind(ready.level, cluster):
        raise levels.refusal(target, TAKE_IN, trouble)
    if post_copy and not knows_streams(ready):
        raise Refused(
            f"the veery version on {target} has no post-copy",
            hint=f"use another policy (--policy balanced), or upgrade veery on {target}",
        )
