"""What a source does about a target of another version, by what that told in its Ready. Pure.

Some fields of an Offer change the bytes of the stream that follows. A target that does not know such a field passes it
over, and would then take the stream for something else."""

from __future__ import annotations

from veery.cluster import levels
from veery.errors import Refused
from veery.migrate import wire


def knows_streams(ready: wire.Ready) -> bool:
    """Whether the target has read `packed` and `post_copy` of the offer. Both are older than Ready's `hypervisor`, and
    that is older than levels: a node that tells neither has passed them over."""
    return bool(ready.level or ready.hypervisor)


def require(target: str, ready: wire.Ready, cluster: int, *, post_copy: bool) -> None:
    """Raises Refused where node `target` cannot do the level `cluster` of the cluster, or does not know `post_copy`,
    which this move needs."""
    if trouble := levels.behind(ready.level, cluster):
        raise Refused(f"{target} takes no domain in: {trouble}", hint=f"upgrade veery on {target}: veery version -a")
    if post_copy and not knows_streams(ready):
        raise Refused(
            f"the veery on {target} does not know post-copy",
            hint=f"take another policy (--policy balanced), or upgrade veery on {target}",
        )
