"""What stands in the way of a move, observed on each of its two nodes; nothing is changed.

`inspect` is the one list of reasons that a node may have: the receiver goes through it for every offer, and
`veery migrate --plan` asks for it through the API, so that all of it is told even where the relocation port is shut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from veery.cluster import owner as owners
from veery.errors import Refused, VeeryError
from veery.migrate import wire
from veery.migrate.base import Ground
from veery.model.domain import DomainReading, DomainSpec, DomainState
from veery.model.node import Node
from veery.model.plan import Blocker, Obstacle, Question, Remark

CONNECT_DEADLINE = 5.0
LIVING = frozenset({DomainState.RUNNING, DomainState.BLOCKED, DomainState.PAUSED})


async def inspect(
    ground: Ground, spec: DomainSpec, luggage: msgspec.Raw, driver: str, *, returning: bool = False
) -> tuple[Blocker, ...]:
    """Why this node cannot take a domain in that was packed like this by a `driver` elsewhere: every reason.

    With `returning` the domain is one that runs here now: its name and its memory will be free again."""
    found: list[Blocker] = []
    if driver != ground.driver.name:
        hint = "move it to a node with the same driver: veery node list"
        reason = f"its driver is {ground.driver.name}, the domain's is {driver}"
        found.append(Blocker(kind=Obstacle.DRIVER, reason=reason, hint=hint))
    else:
        found += await ground.driver.obstacles(spec, luggage)
    if returning:
        return tuple(each for each in found if each.kind is not Obstacle.MEMORY)
    for reading in await ground.driver.list():
        if spec.uuid == reading.uuid or spec.name == reading.name:
            found.append(
                Blocker(
                    kind=Obstacle.NAME,
                    reason=f"it still has a domain {reading.name} (id {reading.domid})",
                    hint=f"look at it: veery --node {ground.node} list; rename or destroy one of the two",
                )
            )
    found += await ground.attacher.blockers(spec)
    return tuple(found)


def refusal(node: str, domain: str, found: Sequence[Blocker]) -> Refused:
    """All of `found` as one error of one line, each hint once."""
    hints = dict.fromkeys(each.hint for each in found if each.hint)
    return Refused(
        f"{node} cannot take {domain}: {'; '.join(each.reason for each in found)}",
        hint="; ".join(hints) or "nothing was changed",
    )


async def remark(ground: Ground, question: Question) -> Remark:
    """The target's answer to a question of another node."""
    spec, home = question.spec, question.home
    found, way_back = await asyncio.gather(
        inspect(ground, spec, msgspec.Raw(question.luggage.encode()), question.driver), port(ground, home)
    )
    return Remark(node=ground.node, blockers=found, way_back=way_back, abilities=await ground.driver.abilities())


async def port(ground: Ground, node: Node) -> tuple[Blocker, ...]:
    """Whether `node` takes a connection of ours on its relocation port, by address and by certificate."""
    try:
        channel = await wire.open_control(
            node.relocation_address or node.address,
            node.relocation_port,
            node.name,
            ground.client_tls,
            CONNECT_DEADLINE,
        )
    except VeeryError as error:
        hint = error.hint
        if "hosts_allow" in error.message:
            hint = f"let {ground.node} in: relocation.hosts_allow in veery.toml of {node.name}"
        return (Blocker(kind=Obstacle.PORT, reason=error.message, hint=hint),)
    await channel.close()
    return ()


async def here(ground: Ground, reading: DomainReading, target: Node) -> tuple[Blocker, ...]:
    """Why the domain cannot leave this node: its state, its owner, a move of it that was begun elsewhere."""
    found: list[Blocker] = []
    name = reading.name
    if reading.state not in LIVING:
        hint = f"only a living domain can move: veery destroy {name}, then create it on {target.name}"
        found.append(Blocker(kind=Obstacle.DOMAIN, reason=f"{name} is {reading.state.value}", hint=hint))
    owner, promise = await asyncio.gather(owners.read(ground.store, name), owners.reservation(ground.store, name))
    if owner is None or owner.node != ground.node:
        belongs = f"{name} belongs to {owner.node if owner else 'no node'}, not to {ground.node}"
        found.append(Blocker(kind=Obstacle.DOMAIN, reason=belongs, hint="veery list --cluster shows where it runs"))
    if promise is not None:
        reason = f"move {promise.move} of {name} to {promise.target} is under way"
        found.append(
            Blocker(kind=Obstacle.DOMAIN, reason=reason, hint=f"wait for its end, or: veery move cancel {promise.move}")
        )
    return tuple(found)
