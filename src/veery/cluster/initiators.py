"""The nodes' CHAP passwords: each node keeps its own; the store has them sealed.

STATE/initiator.json has a node's own credentials. The store has `initiator/NODE` without the password, and
`chap/NODE` with the password, sealed with the key CHAP of vault.py. Voters need that key to admit a node, storage
nodes to make accounts at tgtd. Only the node itself decides its password: if the store has another one, or none, the
node sends its own to a node that has the key (`POST /v1/initiators`). So no loss in the store costs a running domain
its disk.

An older veery has the passwords in the clear in `initiator/NODE`, and needs them there. The migration:

    1. voters and storage nodes get the key (vault.hold)
    2. each node keeps its own password, and records that in chap-kept/NODE (`keep`)
    3. when all nodes did both, chap-sealed is written: from then on no new node's password is written in the clear
    4. each password in the clear is sealed and removed from its record, in one transaction (`seal_all`)

Each step is one transaction, so after a crash the next run continues with the next step."""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import replace
from pathlib import Path

from veery.cluster import keys
from veery.cluster.store import Entry, Put, Store, Unchanged
from veery.cluster.vault import CHAP, Held, Vault
from veery.errors import Failed, Refused
from veery.host import kept
from veery.host.files import write_atomic
from veery.host.log import decision
from veery.model import codec
from veery.model.volume import ChapSecret, Initiator

log = logging.getLogger(__name__)

FILE = "initiator.json"
_PASSWORD = re.compile(r"[A-Za-z0-9_=-]{12,64}", re.ASCII)


def identify(node: str, password: str) -> str:
    """Return the id of a password of `node`. A password is 96 random bits, so the id does not reveal it."""
    return hashlib.sha256(f"veery chap password\0{node}\0{password}".encode()).hexdigest()[:32]


def load(state: Path) -> Initiator | None:
    """Return this node's own credentials; None if it keeps none yet."""
    return kept.take(state / FILE, Initiator)


def save(state: Path, own: Initiator) -> None:
    """Write this node's own credentials, readable for root only. Raises OSError."""
    write_atomic(state / FILE, codec.encode(own), mode=0o600, sync=True)


# ---------------------------------------------------------------- sealed records


def sealed(vault: Vault, own: Initiator) -> list[Put]:
    """Return the operations that write `own` sealed into the store. Raises Refused without the key."""
    name = keys.CHAP_SECRETS.key(own.node)
    secret = ChapSecret(
        id=identify(own.node, own.password), key=vault.id, sealed=vault.seal(own.password, name).decode()
    )
    return [keys.INITIATORS.put(own.node, replace(own, password="")), keys.CHAP_SECRETS.put(own.node, secret)]


def open_secret(vault: Vault, node: str, secret: ChapSecret) -> str:
    """Return the password in `secret` of `node`. Raises Refused without the key, Failed if it cannot be opened."""
    entry = Entry(keys.CHAP_SECRETS.key(node), secret.sealed.encode(), revision=0, created=0)
    password = vault.open(entry)
    if identify(node, password) != secret.id:
        raise Failed(f"the password and the id in {entry.key} do not match", hint=vault.ring.lost)
    return password


async def enrolled(store: Store, vault: Vault | None, own: Initiator, *, keeps: bool) -> tuple[list[Put], Unchanged]:
    """Return the records of a new node's credentials, and the condition under which they are valid. `keeps`: the new
    node's veery keeps its password itself. Raises Refused, StoreUnavailable."""
    entry = await store.get(keys.CHAP_SEALED)
    if entry is None:
        return [keys.INITIATORS.put(own.node, own)], Unchanged(keys.CHAP_SEALED, 0)
    if not keeps:
        raise Refused(f"the veery on {own.node} is older than this cluster's", hint="install the same version there")
    if vault is None:
        raise Refused(CHAP.missing, hint=f"ask a {CHAP.holder}: veery node list")
    await _require_key(store, vault)
    return sealed(vault, own), Unchanged(entry.key, entry.revision)


async def accept(store: Store, vault: Vault, node: str, password: str) -> None:
    """Seal the password that `node` sent as its own. Raises Refused, StoreUnavailable, OutcomeUnknown."""
    if not _PASSWORD.fullmatch(password):
        raise Refused(f"{node} sent a password that no account can have", hint="does it run another version of veery?")
    record, member = await store.get(keys.INITIATORS.key(node)), await store.get(keys.NODES.key(node))
    if record is None or member is None:
        raise Refused(f"node {node} is not in the cluster", hint="veery node list shows the nodes")
    if await store.get(keys.CHAP_SEALED) is None:
        raise Refused("the cluster's CHAP passwords are not sealed yet", hint="do all nodes run this version of veery?")
    held = await _require_key(store, vault)
    own = replace(keys.INITIATORS.value(record), password=password)
    conditions = [Unchanged(one.key, one.revision) for one in (record, member, held)]
    if not (await store.commit(conditions, sealed(vault, own))).held:
        raise Refused(f"the records of {node} changed meanwhile", hint="it tries again by itself within seconds")
    log.info(decision("initiator.sealed", node=node))


async def _require_key(store: Store, vault: Vault) -> Entry:
    entry = await store.get(vault.ring.key)
    if entry is None or entry.value.decode() != vault.id:
        raise Refused(vault.ring.missing, hint="the node gets the key by itself within seconds: try again")
    return entry


# ---------------------------------------------------------------- the parts of each node, and of each holder of the key


async def keep(store: Store, state: Path, node: str, fresh: str) -> Initiator:
    """Keep this node's own credentials, and record their id in the store: the part of each node. `fresh` is the
    password to use if neither the node nor the store has one in the clear.

    Raises Failed if the node has no record, StoreUnavailable, OutcomeUnknown, OSError."""
    entry = await store.get(keys.INITIATORS.key(node))
    if entry is None:
        raise Failed(f"{node} has no credentials at the targets", hint="join it again")
    record, own = keys.INITIATORS.value(entry), load(state)
    if own is None or (own.iqn, own.user) != (record.iqn, record.user):
        if own is None and not record.password:
            log.warning("%s is lost: this node has a new CHAP password; domains keep their open sessions", state / FILE)
        own = replace(record, password=record.password or (own.password if own else fresh))
        save(state, own)
    elif record.password and record.password != own.password:  # the store is older than this node's file
        await store.commit([Unchanged(entry.key, entry.revision)], [keys.INITIATORS.put(node, own)])
    mark = keys.CHAP_KEPT + node
    id, recorded = identify(node, own.password), await store.get(mark)
    if recorded is None or recorded.value.decode() != id:
        await store.commit([], [Put(mark, id.encode())])
    return own


async def must_offer(store: Store, own: Initiator) -> bool:
    """Return whether the store lacks this node's present password, sealed. Raises StoreUnavailable."""
    record = await keys.INITIATORS.get(store, own.node)
    if record is None or record.password:
        return False
    current = await store.get(keys.CHAP_SEALING)
    try:
        secret = await keys.CHAP_SECRETS.get(store, own.node)
    except keys.Unreadable:
        return True
    if secret is None or current is None:
        return True
    return (secret.id, secret.key) != (identify(own.node, own.password), current.value.decode())


async def seal_all(store: Store, vault: Vault, held: Held) -> bool:
    """Seal the passwords that are in the clear, once every node keeps its own and all holders have the key: the part of
    each holder. Return whether none is left. Raises StoreUnavailable, OutcomeUnknown, Unreadable."""
    clear = await _clear(store)
    flag = await store.get(keys.CHAP_SEALED)
    if not clear and flag is not None:
        return True
    if held.without or await _unkept(store, clear):
        return False
    if flag is None:
        done = await store.commit([Unchanged(keys.CHAP_SEALED, 0), held.same], [Put(keys.CHAP_SEALED, b"1")])
        if not done.held:
            return False
        clear = await _clear(store)  # again: a node may have joined before the flag was set
        if await _unkept(store, clear):
            return False
    for entry in clear:
        own = keys.INITIATORS.value(entry)
        if not (await store.commit([Unchanged(entry.key, entry.revision), held.same], sealed(vault, own))).held:
            return False
        log.info(decision("initiator.sealed", node=own.node))
    return True


async def _clear(store: Store) -> list[Entry]:
    entries = (await store.scan(keys.INITIATORS.prefix)).entries
    return [entry for entry in entries if keys.INITIATORS.value(entry).password]


async def _unkept(store: Store, clear: list[Entry]) -> list[str]:
    """Return the nodes that have not recorded that they keep their own password. Nodes with an older veery never do;
    they read all passwords in the clear."""
    marks = (await store.scan(keys.CHAP_KEPT)).entries
    recorded = {mark.key.removeprefix(keys.CHAP_KEPT): mark.value.decode() for mark in marks}
    nodes = (await store.scan(keys.NODES.prefix)).entries
    unkept = {name for entry in nodes if (name := keys.NODES.name(entry.key)) not in recorded}
    for entry in clear:
        own = keys.INITIATORS.value(entry)
        if recorded.get(own.node) != identify(own.node, own.password):
            unkept.add(own.node)
    return sorted(unkept)
