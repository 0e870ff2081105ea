"""The losses with a permanently lost node: domains that it owned, volumes that it held, files that were disks."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

from veery.cluster import owner as owners
from veery.cluster.keys import ALIVE, DOMAINS, OWNERS, POLICIES, RUNS, VOLUMES
from veery.cluster.store import Store, Unchanged
from veery.errors import Refused
from veery.host.log import decision

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The losses with one node. `owned`: domains that ran there, which may start elsewhere. `volumes`: volumes that it
    held. `domains`: domains that have a disk on one of these volumes, or in files of the node."""

    owned: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


async def find(store: Store, node: str) -> Losses:
    """Return the losses with `node`. Raises StoreUnavailable, Failed for an unreadable record."""
    owned = sorted(owner.domain for owner in (await OWNERS.all(store)).values() if owner.node == node)
    volumes = sorted(volume.name for volume in (await VOLUMES.all(store)).values() if volume.node == node)
    runs = await RUNS.readable(store)
    lost = []
    for name, record in sorted((await DOMAINS.all(store)).items()):
        where = record.home or (node if name in owned else runs[name].node if name in runs else "")
        files = any(disk.target and not disk.volume and not disk.cdrom for disk in record.spec.disks)
        if (files and where == node) or any(disk.volume in volumes for disk in record.spec.disks if disk.volume):
            lost.append(name)
    return Losses(owned=tuple(owned), volumes=tuple(volumes), domains=tuple(lost))


async def accept(store: Store, node: str, losses: Losses) -> None:
    """Release the domains that `node` owned, by the proof that it is fenced. HA no longer starts domains that lost a
    disk.

    Raises Refused without such a proof, StoreUnavailable, OutcomeUnknown: call it again."""
    for domain in losses.domains:
        await _unwanted(store, domain)
    for domain in losses.owned:
        if await owners.reclaim(store, domain) is None:
            owner = await owners.read(store, domain)
            if owner is not None and owner.node == node:
                raise unproven(node, losses.owned)
    for domain, run in (await RUNS.readable(store)).items():
        if run.home == node:
            stays = RUNS.put(domain, dataclasses.replace(run, home=""))
            await store.commit([Unchanged(RUNS.key(domain), run.revision)], [stays])


def unproven(node: str, owned: tuple[str, ...]) -> Refused:
    """Return the refusal to take domains from a node that may still run them."""
    return Refused(
        f"node {node} owns {', '.join(owned)}, and nothing proves that it is off",
        hint=f"veery why {node}; once it is off for certain: veery fence confirm {node}, then again",
    )


async def require(store: Store, node: str, losses: Losses, *, volumes: bool, everything: bool) -> None:
    """Raise Refused while `node` is present, while its domains may still run there, or if the caller did not allow the
    losses (`volumes`, `everything`); StoreUnavailable."""
    if await store.get(ALIVE.key(node)) is not None:
        raise Refused(f"node {node} is present", hint=f"veery node leave {node}, and stop its veeryd")
    if losses.owned and await owners.proof(store, node) is None:
        raise unproven(node, losses.owned)
    files = [name for name in losses.domains if not await _only_volumes(store, name, losses.volumes)]
    if everything or not ((losses.volumes and not volumes) or files):
        return
    lost = [f"volume {', '.join(losses.volumes)}"] if losses.volumes else []
    lost += [f"disks of domain {', '.join(losses.domains)}"] if losses.domains else []
    raise Refused(
        f"with node {node} these are lost: {'; '.join(lost)}",
        hint=f"repair the node and save them; or veery node forget {node} --with-everything",
    )


async def _only_volumes(store: Store, domain: str, volumes: tuple[str, ...]) -> bool:
    """Return whether `domain` loses volumes only, and no files of the node."""
    record = await DOMAINS.get(store, domain)
    return record is not None and any(disk.volume in volumes for disk in record.spec.disks if disk.volume)


async def _unwanted(store: Store, domain: str) -> None:
    policy = await POLICIES.get(store, domain)
    if policy is not None and policy.wanted:
        stays = POLICIES.put(domain, dataclasses.replace(policy, wanted=False))
        if not (await store.commit([Unchanged(POLICIES.key(domain), policy.revision)], [stays])).held:
            raise Refused(f"domain {domain} changed meanwhile", hint="try again")
        log.warning(decision("domain.lost", domain=domain))
