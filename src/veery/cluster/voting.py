"""A vote in the store for a node that has none, and the way back. What the node's identity then says is its journal:
a daemon that starts with an `etcd` in it runs etcd and asks for its vote, whatever was under way before.

Pure judgements, and changes of an Identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from veery.cluster.identity import EtcdStart, Identity
from veery.cluster.upkeep import Seen
from veery.model.node import Role


def judge_gain(seen: Sequence[Seen], peer: str) -> str:
    """Why the member with peer URL `peer` is to get no vote now, "" where it may. Every other member has to be well:
    one vote more can make the majority larger."""
    down = sorted(each.voter.name or "one that has not started" for each in seen if not _well(each, peer))
    return f"voter {', '.join(down)} does not answer, or has no vote yet" if down else ""


def _well(seen: Seen, peer: str) -> bool:
    return seen.well or peer in seen.voter.peers


def judge_loss(seen: Sequence[Seen], name: str) -> str:
    """Why member `name` is to keep its vote, "" where the other members that answer are a majority among themselves
    and with it."""
    voting = [each for each in seen if not each.voter.learner]
    others = [each for each in voting if each.voter.name != name]
    up = sum(each.well for each in others)
    if not others:
        return f"{name} is the last voter"
    if up <= len(others) // 2:
        return f"without {name} only {up} of {len(others)} voters would be up"
    return ""


def warn(votes: int) -> str:
    """What is to be said of a store with so many votes; "" where they are odd."""
    if votes % 2:
        return ""
    lost, most = (votes - 1) // 2, votes // 2 + 1
    return f"the store has {votes} votes now: it needs {most} and survives the loss of {lost}, as with {votes - 1}"


def with_vote(identity: Identity, start: EtcdStart) -> Identity:
    """The identity of a node whose etcd begins as `start`."""
    node = identity.node
    roles = node.roles if node.has(Role.VOTER) else (*node.roles, Role.VOTER)
    return replace(identity, node=replace(node, roles=roles), etcd=start)


def without_vote(
    identity: Identity, endpoints: Sequence[str] = (), replaced: Sequence[str] = (), *, roles: bool = True
) -> Identity:
    """The identity of a node that has no etcd, asks the members at `endpoints` (none: as before), and knows that the
    stores `replaced` were given up. Without `roles` its roles stay."""
    node = identity.node
    if roles:
        node = replace(node, roles=tuple(role for role in node.roles if role is not Role.VOTER))
    return replace(
        identity,
        node=node,
        etcd=None,
        voters=tuple(endpoints) or identity.voters,
        replaced=tuple(dict.fromkeys((*identity.replaced, *(each for each in replaced if each)))),
    )
