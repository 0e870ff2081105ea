"""The daemon's side of membership: open the store from the state folder, and keep the two consistent.

The daemon uses it in this order:
    identity = identity.load(state)
    store    = open_store(settings, identity)
    a voter runs server.service(...), with ready() as its `started`
    await bootstrap(store, state, identity)      repeated until it succeeds
    tasks: promote(...), Heartbeat(...).run(), refresh(...) at intervals"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

from veery.cluster import initiators, keys, losses, revocation, vault
from veery.cluster.etcd import EtcdStore
from veery.cluster.identity import Identity, client_url, describe, load_bootstrap, peer_url, save
from veery.cluster.losses import Losses
from veery.cluster.store import Delete, Entry, Put, Store, StoreUnavailable, Unchanged
from veery.cluster.trust import Trust
from veery.cluster.voters import Voters
from veery.config.settings import Settings
from veery.errors import Failed, NotFound, OutcomeUnknown, Refused
from veery.host import tls
from veery.host.contexts import Source
from veery.host.log import decision
from veery.model import codec, newer
from veery.model.cluster import Incarnation
from veery.model.node import Node

log = logging.getLogger(__name__)

PROMOTION_PAUSE_S = 1.0  # between two attempts of a learner


def open_store(
    settings: Settings, identity: Identity, trust: Trust | None = None, *, context: Source | None = None
) -> EtcdStore:
    """Return the store of this node's cluster; no request is sent yet. `context` is the TLS context of its connections
    (default: one from the present certificates). Raises Refused if the certificates are unusable."""
    context = context or tls.client_context(Path(settings.state) / "tls")
    return EtcdStore(_own_first(settings, identity), tls=context, deadline=settings.etcd.deadline, trust=trust)


async def bootstrap(store: Store, state: Path, identity: Identity) -> None:
    """Write the first node's records into the store once, with the CA's key and the CHAP password sealed. Then delete
    the clear CA key on this node.

    Do nothing on any other node, or later. Raises Failed if the store is another cluster's, StoreUnavailable,
    OutcomeUnknown: call it again."""
    first = load_bootstrap(state)
    if first is None:
        return
    node, own = identity.node, vault.Vault(state)
    sealing, sealed = own.make(), vault.sealed_name(identity.cluster.ca)
    chap = own.beside(vault.CHAP)
    chap_id = chap.make()
    if initiators.load(state) is None:
        initiators.save(state, first.initiator)
    done = await store.commit(
        [Unchanged(keys.CLUSTER, 0)],
        [
            Put(keys.CLUSTER, codec.encode(identity.cluster)),
            keys.INCARNATIONS.put(keys.INCARNATION, Incarnation(id=secrets.token_hex(8))),
            Put(keys.SEALING, sealing.encode()),
            Put(keys.SEALED_BY + node.name, sealing.encode()),
            Put(sealed, own.seal(first.ca_key, sealed)),
            Put(keys.CHAP_SEALING, chap_id.encode()),
            Put(keys.CHAP_SEALED_BY + node.name, chap_id.encode()),
            Put(keys.CHAP_SEALED, b"1"),
            keys.NODES.put(node.name, node),
            *initiators.sealed(chap, first.initiator),
        ],
    )
    if done.held:
        log.info(decision("cluster.made", cluster=identity.cluster.name, node=node.name))
    elif (await keys.cluster(store)).id != identity.cluster.id:
        raise Failed("the store belongs to another cluster", hint="is another etcd on this node's ports?")
    (state / "bootstrap.json").unlink(missing_ok=True)


async def incarnate(store: Store) -> None:
    """Give the store an incarnation if it has none, because an older veery made it. Raises StoreUnavailable,
    OutcomeUnknown."""
    if await store.get(keys.INCARNATION) is None:
        made = keys.INCARNATIONS.put(keys.INCARNATION, Incarnation(id=secrets.token_hex(8)))
        await store.commit([Unchanged(keys.INCARNATION, 0)], [made])


async def promote(voters: Voters, settings: Settings, identity: Identity) -> None:
    """Return once this node's etcd has its vote (at once if the node is no voter). A learner asks until it is promoted.

    Raises Refused if etcd no longer knows this member."""
    if identity.etcd is None:
        return
    peer = peer_url(settings, identity.node)
    while True:
        try:
            own = next((member for member in await voters.all() if peer in member.peers), None)
            if own is None:
                raise Refused(
                    f"etcd does not know this node at {peer}",
                    hint="was the node removed? on another node, veery node list shows the members",
                )
            if not own.learner:
                return
            await voters.promote(own.id)
            log.info(decision("voter.promoted", node=identity.node.name))
            return
        except (StoreUnavailable, OutcomeUnknown) as error:
            log.warning(decision("voter.waits", node=identity.node.name, reason=str(error)))
        except Refused as error:
            if "in sync" not in error.message:
                raise
        await asyncio.sleep(PROMOTION_PAUSE_S)


def point(store: EtcdStore, settings: Settings, identity: Identity) -> None:
    """Make `store` ask the members that `identity` names."""
    store.gateway.use(_own_first(settings, identity))


async def refresh(store: EtcdStore, settings: Settings, identity: Identity) -> Identity:
    """Read the present voters, and update `store` and the state folder. Raises StoreUnavailable."""
    members = await store.voters.all()
    urls = tuple(sorted(url for member in members if not member.learner for url in member.clients))
    if urls and set(urls) != set(identity.voters):
        identity = dataclasses.replace(identity, voters=urls)
        save(Path(settings.state), identity)
        log.info(decision("voters.changed", voters=",".join(urls)))
    point(store, settings, identity)
    return identity


def current(settings: Settings, identity: Identity) -> Node:
    """Return this node's record by its present settings and version."""
    old = identity.node
    node = describe(settings, name=old.name, address=old.address, roles=old.roles, driver=old.driver)
    return dataclasses.replace(node, initiator=old.initiator, former=old.former)


async def update(store: Store, node: Node) -> None:
    """Make the store's record of this node equal to `node` (see `current`). Raises Refused if the node was removed,
    StoreUnavailable, OutcomeUnknown."""
    entry = await store.get(keys.NODES.key(node.name))
    if entry is None:
        raise Refused(f"node {node.name} is no longer in the cluster", hint="join it again with an empty state folder")
    known = keys.NODES.value(entry)
    if known != node or newer.of(known):  # fields from a newer version that ran here before
        await store.commit([Unchanged(entry.key, entry.revision)], [keys.NODES.put(node.name, node)])


async def leave(store: Store, voters: Voters, settings: Settings, name: str) -> None:
    """Remove node `name` from the cluster: its vote, then its records. The other nodes no longer know it, and etcd
    accepts no new connection with its certificate.

    Raises Refused while it has domains or volumes, or if its vote is needed; StoreUnavailable, OutcomeUnknown:
    call it again."""
    entry = await _idle(store, name)
    volumes = await _volumes(store, name)
    if volumes:
        raise Refused(f"node {name} holds volume {', '.join(volumes)}", hint="delete them first")
    await _take_vote(voters, settings, entry)
    await _erase(store, entry)


async def forget(
    store: Store, voters: Voters, settings: Settings, name: str, *, volumes: bool = False, everything: bool = False
) -> Losses:
    """Remove a permanently lost node; return what is lost with it. The domains that it owned may start elsewhere.

    `volumes` allows the loss of the volumes that it held: their records are deleted too. `everything` also allows
    domains to lose disks that were files of that node: those domains keep their records, and are not started any more.

    Raises Refused while the node is present, while it owns a domain and is not proven to be off, if the loss is not
    allowed, or if its vote is needed; StoreUnavailable, OutcomeUnknown: call it again."""
    entry = await store.get(keys.NODES.key(name))
    if entry is None:
        raise NotFound(f"no node {name!r}", hint="see `veery node list`")
    found = await losses.find(store, name)
    await losses.require(store, name, found, volumes=volumes, everything=everything)
    await _take_vote(voters, settings, entry)  # first: etcd may refuse it, and nothing is changed yet
    await losses.accept(store, name, found)
    await _erase(store, entry, absent=True, volumes=found.volumes)
    return found


async def _idle(store: Store, name: str) -> Entry:
    """Return the record of a node that owns no domain. Raises Refused."""
    entry = await store.get(keys.NODES.key(name))
    if entry is None:
        raise NotFound(f"no node {name!r}", hint="see `veery node list`")
    domains = [owner.domain for owner in (await keys.OWNERS.all(store)).values() if owner.node == name]
    if domains:
        present = await store.get(keys.ALIVE.key(name)) is not None
        hint = f"veery node drain {name}, or destroy them" if present else f"if it is lost: veery node forget {name}"
        raise Refused(f"node {name} runs {', '.join(domains)}", hint=hint)
    return entry


async def _volumes(store: Store, name: str) -> list[str]:
    return [volume.name for volume in (await keys.VOLUMES.all(store)).values() if volume.node == name]


async def _take_vote(voters: Voters, settings: Settings, entry: Entry) -> None:
    """Remove the node's etcd member. Call it before `_erase`: without the record the member cannot be found."""
    node = keys.NODES.value(entry)
    peer = peer_url(settings, node)
    for member in await voters.all():
        if member.name == node.name or peer in member.peers:
            await voters.remove(member.id)


async def _erase(store: Store, entry: Entry, *, absent: bool = False, volumes: Sequence[str] = ()) -> None:
    """Delete all records of a node. With `absent`, only while the node is still absent."""
    node = keys.NODES.value(entry)
    kinds = (
        keys.NODES,
        keys.INITIATORS,
        keys.CHAP_SECRETS,
        keys.ALIVE,
        keys.PROCESSORS,
        keys.FENCES,
        keys.ARMED,
        keys.INTENTS,
        keys.HISTORIES,
        keys.MEANS,
        keys.HEALTHS,
        keys.TRUSTS,
    )
    gone: list[Put | Delete] = [Delete(kind.key(node.name)) for kind in kinds]
    gone += [Delete(prefix + node.name) for prefix in (keys.SEALED_BY, keys.CHAP_SEALED_BY, keys.CHAP_KEPT)]
    gone += await revocation.revoke(store, node.name)
    made = (await keys.TOKENS.readable(store)).items()
    gone += [Delete(keys.TOKENS.key(hash)) for hash, token in made if token.node == node.name]
    gone += [Delete(keys.VOLUMES.key(volume)) for volume in volumes]
    conditions = [Unchanged(entry.key, entry.revision)]
    if absent:
        conditions.append(Unchanged(keys.ALIVE.key(node.name), 0))
    if not (await store.commit(conditions, gone)).held:
        raise Refused(f"node {node.name} changed meanwhile", hint="check again: veery node list")
    log.info(decision("node.forgotten" if absent else "node.left", node=node.name))


def _own_first(settings: Settings, identity: Identity) -> tuple[str, ...]:
    """Return the voters' URLs, this node's own first because it is the nearest."""
    own = client_url(settings, identity.node)
    return tuple(sorted(identity.voters, key=lambda url: url != own))
