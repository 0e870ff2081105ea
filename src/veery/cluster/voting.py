"""Giving a node a vote in the store, and taking it back. The node's identity is the journal of this change: a daemon
that starts with an `etcd` in it runs etcd and asks for its vote, whatever happened before.

Pure judgements, and changes of an Identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from veery.cluster.identity import EtcdStart, Identity
from veery.cluster.upkeep import Seen
from veery.model.node import Role


def judge_gain(seen: Sequence[Seen], peer: str) -> str:
    """Return why the member with peer URL `peer` may not get a vote now; "" if it may. Every other member must be
    healthy: one vote more can make the majority larger."""
    down = sorted(each.voter.name or "(never started)" for each in seen if not _well(each, peer))
    return f"voter {', '.join(down)} does not answer, or has no vote yet" if down else ""


def _well(seen: Seen, peer: str) -> bool:
    return seen.well or peer in seen.voter.peers


def judge_loss(seen: Sequence[Seen], name: str) -> str:
    """Return why member `name` must keep its vote; "" if the other members that answer are a majority both among
    themselves and with it."""
    voting = [each for each in seen if not each.voter.learner]
    others = [each for each in voting if each.voter.name != name]
    up = sum(each.well for each in others)
    if not others:
        return f"{name} is the last voter"
    if up <= len(others) // 2:
        return f"without {name} only {up} of {len(others)} voters would be up"
    return ""


def warn(votes: int) -> str:
    """Return a warning about a store with an even number of votes; "" if it is odd."""
    if votes % 2:
        return ""
    lost, most = (votes - 1) // 2, votes // 2 + 1
    return f"the store has {votes} votes now: it needs {most} and survives the loss of {lost}, as with {votes - 1}"


def with_vote(identity: Identity, start: EtcdStart) -> Identity:
    """Return the identity of a node with a vote, whose etcd starts first as `start`."""
    node = identity.node
    roles = node.roles if node.has(Role.VOTER) else (*node.roles, Role.VOTER)
    return replace(identity, node=replace(node, roles=roles), etcd=start)


def without_vote(
    identity: Identity, endpoints: Sequence[str] = (), replaced: Sequence[str] = (), *, roles: bool = True
) -> Identity:
    """Return the identity of a node without etcd. It asks the members at `endpoints` (empty: as before) and records
    that the stores `replaced` were replaced. Without `roles` its roles stay."""
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
