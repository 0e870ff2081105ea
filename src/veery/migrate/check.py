"""The obstacles to a move, observed on each of its two nodes; nothing is changed.

`inspect` is the one list of reasons that a node may have: the receiver goes through it for every offer, and `veery
migrate --plan` asks for it through the API, so that the list is complete even where the relocation port is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from veery.cluster import levels
from veery.cluster import owner as owners
from veery.cluster.keys import INTENTS
from veery.errors import Refused, VeeryError
from veery.host.contexts import current
from veery.migrate import bandwidth, disks, plan, postcopy, wire
from veery.migrate.base import MoveContext
from veery.migrate.policy import find
from veery.model.cluster import LEVEL
from veery.model.domain import DomainReading, DomainSpec, DomainState
from veery.model.ha import IntentKind
from veery.model.move import MoveReport, MoveSettings
from veery.model.node import Node
from veery.model.plan import Blocker, MemoryReading, Obstacle, Plan, Question, Reply
from veery.model.units import MIB
from veery.model.volume import CarriedDisk
from veery.storage import local

CONNECT_DEADLINE_S = 5.0
PROBES = 3
Ask = Callable[[str, Question], Awaitable[Reply]]
Earlier = Callable[[], Sequence[MoveReport]]
XEN = "xen"  # the driver's name
LIVING = frozenset({DomainState.RUNNING, DomainState.BLOCKED, DomainState.PAUSED})


async def inspect(
    context: MoveContext,
    spec: DomainSpec,
    luggage: msgspec.Raw,
    driver: str,
    *,
    returning: bool = False,
    post_copy: bool = False,
) -> tuple[Blocker, ...]:
    """Return every reason why this node cannot take in a domain that a `driver` elsewhere packed like this.

    With `returning` the domain runs here now: its name and its memory will be free again. `post_copy`: the rest of its
    memory would follow it."""
    found: list[Blocker] = []
    if trouble := levels.behind(LEVEL, await levels.read(context.store)):
        hint = f"upgrade veery on {context.node}: veery version -a"
        found.append(Blocker(kind=Obstacle.VERSION, reason=trouble, hint=hint))
    if driver != context.driver.name:
        hint = "move it to a node with the same driver: veery node list"
        reason = f"its driver is {context.driver.name}, the domain's is {driver}"
        found.append(Blocker(kind=Obstacle.DRIVER, reason=reason, hint=hint))
    else:
        found += await context.driver.obstacles(spec, luggage)
    if post_copy:
        found += await postcopy.obstacles(context)
    if returning:
        return tuple(each for each in found if each.kind is not Obstacle.MEMORY)
    for reading in await context.driver.list():
        if spec.uuid == reading.uuid or spec.name == reading.name:
            found.append(
                Blocker(
                    kind=Obstacle.NAME,
                    reason=f"it still has a domain {reading.name} (id {reading.domid})",
                    hint=f"look at it: veery --node {context.node} list; rename or destroy one of the two",
                )
            )
    intent = await INTENTS.get(context.store, context.node)
    if intent is not None and intent.kind is IntentKind.DRAIN:
        hint = f"veery node resume {context.node}"
        found.append(Blocker(kind=Obstacle.NODE, reason=f"it is drained by {intent.by or 'somebody'}", hint=hint))
    found += await context.attacher.blockers(spec)
    return tuple(found)


def refusal(node: str, domain: str, found: Sequence[Blocker]) -> Refused:
    """Return all of `found` as one error of one line, each hint once."""
    hints = dict.fromkeys(each.hint for each in found if each.hint)
    return Refused(
        f"{node} cannot take {domain}: {'; '.join(each.reason for each in found)}",
        hint="; ".join(hints) or "nothing was changed",
    )


async def reply(context: MoveContext, question: Question) -> Reply:
    """Return the target's answer to a question of another node."""
    luggage = msgspec.Raw(question.luggage.encode())
    spec = disks.staying(question.spec, question.disks)
    found, way_back = await asyncio.gather(
        inspect(context, spec, luggage, question.driver, post_copy=question.post_copy), port(context, question.home)
    )
    chosen = local.choose(question.disks, question.disk_dir or context.disk_folder, question.domain)
    found += disks.blockers(context.driver, chosen)
    return Reply(
        node=context.node, blockers=found, way_back=way_back, abilities=await context.driver.abilities(), level=LEVEL
    )


async def port(context: MoveContext, node: Node) -> tuple[Blocker, ...]:
    """Return why `node` does not accept a connection of this node on its relocation port, by address and by
    certificate."""
    try:
        channel = await wire.open_control(
            node.relocation_address or node.address,
            node.relocation_port,
            node.name,
            current(context.client_tls),
            CONNECT_DEADLINE_S,
        )
    except VeeryError as error:
        hint = error.hint
        if "hosts_allow" in error.message:
            hint = f"let {context.node} in: relocation.hosts_allow in veery.toml of {node.name}"
        return (Blocker(kind=Obstacle.PORT, reason=error.message, hint=hint),)
    await channel.close()
    return ()


async def here(context: MoveContext, reading: DomainReading, target: Node) -> tuple[Blocker, ...]:
    """Return why the domain cannot leave this node: its state, its owner, a move of it that began elsewhere."""
    found: list[Blocker] = []
    name = reading.name
    if reading.state not in LIVING:
        hint = f"only a live domain can move: veery destroy {name}, then create it on {target.name}"
        found.append(Blocker(kind=Obstacle.DOMAIN, reason=f"{name} is {reading.state.value}", hint=hint))
    found += stopped(reading, context.driver.name)
    owner, promise = await asyncio.gather(owners.read(context.store, name), owners.reservation(context.store, name))
    if owner is None or owner.node != context.node:
        belongs = f"{name} belongs to {owner.node if owner else 'no node'}, not to {context.node}"
        found.append(Blocker(kind=Obstacle.DOMAIN, reason=belongs, hint="veery list --cluster shows where it runs"))
    if promise is not None:
        reason = f"move {promise.move} of {name} to {promise.target} is under way"
        found.append(
            Blocker(kind=Obstacle.DOMAIN, reason=reason, hint=f"wait for its end, or: veery move cancel {promise.move}")
        )
    return tuple(found)


def stopped(reading: DomainReading, driver: str) -> tuple[Blocker, ...]:
    """Return why a paused domain cannot move: under Xen the guest itself takes part in its suspension."""
    if driver != XEN or reading.state is not DomainState.PAUSED:
        return ()
    reason = f"{reading.name} is paused: under Xen a domain takes part in its own move"
    return (Blocker(kind=Obstacle.DOMAIN, reason=reason, hint=f"veery unpause {reading.name}"),)


async def _unsampled(memory: int) -> MemoryReading:
    """Return a reading of `memory` MiB without a sample."""
    return MemoryReading(total=memory * MIB, used=memory * MIB)


class Scout:
    """Observes both nodes for the source, before a move."""

    def __init__(self, context: MoveContext, node: Node, earlier: Earlier, paths: bandwidth.Paths, ask: Ask) -> None:
        """`node` is this node's record. `earlier` returns the reports of its moves, the newest last, and `paths` what
        they showed of the paths. `ask` puts a question to another node's API."""
        self._context, self._node, self._earlier, self._paths, self._ask = context, node, earlier, paths, ask

    async def plan(self, reading: DomainReading, target: Node, settings: MoveSettings, *, quick: bool = False) -> Plan:
        """Return the obstacles, time and gap of a move of the domain to `target`. Takes about two seconds, most of them
        to sample the domain's memory; changes nothing. `quick`: without samples and probes, as if all memory were in
        use and none were written. Raises Failed where the store or the domain's hypervisor does not answer."""
        context = self._context
        spec, luggage = await context.driver.pack(reading.uuid)
        going, cannot = await self._going(reading, target, settings)
        question = Question(
            domain=spec.name,
            source=context.node,
            driver=context.driver.name,
            spec=spec,
            luggage=bytes(luggage).decode(),
            home=self._node,
            disks=going,
            disk_dir=settings.disk_dir,
            post_copy=find(settings.policy).post_copy,
        )
        mine, home, way, (answer, silence), memory = await asyncio.gather(
            here(context, reading, target),
            inspect(context, spec, luggage, context.driver.name, returning=True),
            port(context, target),
            self._answer(target, question),
            _unsampled(spec.memory) if quick else context.driver.sample(reading.uuid),
        )
        probed = 0.0
        if not way and not quick:
            for _ in range(PROBES):  # the best counts: a busy processor makes a probe slow, nothing makes it too fast
                with contextlib.suppress(VeeryError):
                    probed = max(probed, await bandwidth.probe(target, current(context.client_tls)))
        return plan.make(
            plan.Observations(
                domain=spec.name,
                source=context.node,
                target=target.name,
                settings=settings,
                here=(*mine, *cannot),
                way=way,
                silence=silence,
                reply=answer,
                home=home,
                abilities=await context.driver.abilities(),
                memory=memory,
                earlier=tuple(self._earlier()),
                probed=probed,
                path=self._paths.slow(target.name),
                disk_bytes=sum(disk.allocated for disk in going),
            )
        )

    async def way_back(self, reading: DomainReading, target: Node) -> str:
        """Return, in one line, what would keep the domain from coming back from `target`; "" where nothing does, or
        where the target does not say (the move itself finds out). Takes some 20 ms."""
        context = self._context
        spec, luggage = await context.driver.pack(reading.uuid)
        question = Question(
            domain=spec.name,
            source=context.node,
            driver=context.driver.name,
            spec=spec,
            luggage=bytes(luggage).decode(),
            home=self._node,
        )
        home, (answer, _) = await asyncio.gather(
            inspect(context, spec, luggage, context.driver.name, returning=True), self._answer(target, question)
        )
        found = dict.fromkeys(each.reason for each in (*home, *(answer.way_back if answer else ())))
        return f"it could not come back to {context.node}: {'; '.join(found)}" if found else ""

    async def _going(
        self, reading: DomainReading, target: Node, settings: MoveSettings
    ) -> tuple[tuple[CarriedDisk, ...], tuple[Blocker, ...]]:
        """Return the disks that would go along, or why they cannot."""
        driver, node = self._context.driver, self._context.node
        try:
            going = await disks.carried(
                driver, reading.uuid, settings, node=node, name=reading.name, target=target.name
            )
        except Refused as error:
            return (), (Blocker(kind=Obstacle.STORAGE, reason=error.message, hint=error.hint),)
        return going, ()

    async def reply(self, question: Question) -> Reply:
        """Return this node's answer as the target."""
        return await reply(self._context, question)

    async def _answer(self, target: Node, question: Question) -> tuple[Reply | None, tuple[Blocker, ...]]:
        """Return the target's reply, or why there is none."""
        try:
            answer = await self._ask(target.name, question)
            trouble = levels.behind(answer.level, await levels.read(self._context.store))
        except VeeryError as error:
            if old := await self._old(target.name):
                return None, (old,)
            reason = f"{target.name} does not say whether it could take {question.domain}: {error.message}"
            return None, (Blocker(kind=Obstacle.NODE, reason=reason, hint=error.hint or "compare `veery version`"),)
        if not trouble or any(each.kind is Obstacle.VERSION and each.reason == trouble for each in answer.blockers):
            return answer, ()
        return answer, (Blocker(kind=Obstacle.VERSION, reason=trouble, hint=f"upgrade veery on {target.name}"),)

    async def _old(self, target: str) -> Blocker | None:
        """Return the blocker of a target whose presence shows that it does not support the cluster's level, if so. Such
        a target may be unable to answer a question of this version."""
        with contextlib.suppress(VeeryError):
            trouble, _ = await levels.fault(self._context.store, target)
            if trouble:
                return Blocker(kind=Obstacle.VERSION, reason=trouble, hint=f"upgrade veery on {target}")
        return None
