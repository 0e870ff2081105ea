"""The nodes' CHAP passwords: each node keeps its own, and in the store they are sealed.

STATE/initiator.json has a node's own credentials. The store has `initiator/NODE` without the password, and
`chap/NODE` with it, sealed with the key CHAP of vault.py: voters need it to let a node in, storage nodes to make
accounts at tgtd. A node alone says what its password is: where the store has another, or none, it gives its own to a
node that has the key (`POST /v1/initiators`). So nothing that the store loses costs a running domain its disk.

An older veery has the passwords in the clear in `initiator/NODE`, and needs them there. The way from there:

    1. voters and storage nodes get the key (vault.hold)
    2. each node keeps its own password, and says so in chap-kept/NODE (`keep`)
    3. when all nodes did both, chap-sealed is written: a newcomer's password is not written in the clear from then on
    4. each password in the clear is sealed and taken out of its record, in one transaction (`seal_all`)

Each step is one transaction and may be the last one before a crash: the next look goes on."""

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
    """Which password of `node` it is. A password is 96 random bits: nobody finds it by this."""
    return hashlib.sha256(f"veery chap password\0{node}\0{password}".encode()).hexdigest()[:32]


def load(state: Path) -> Initiator | None:
    """This node's own credentials; None where it keeps none yet."""
    return kept.take(state / FILE, Initiator)


def save(state: Path, own: Initiator) -> None:
    """Keep this node's own credentials, for root alone. Raises OSError."""
    write_atomic(state / FILE, codec.encode(own), mode=0o600, sync=True)


# ---------------------------------------------------------------- sealed records


def sealed(vault: Vault, own: Initiator) -> list[Put]:
    """What the store is to have of `own`. Raises Refused without the key."""
    name = keys.CHAP_SECRETS.key(own.node)
    secret = ChapSecret(
        id=identify(own.node, own.password), key=vault.id, sealed=vault.seal(own.password, name).decode()
    )
    return [keys.INITIATORS.put(own.node, replace(own, password="")), keys.CHAP_SECRETS.put(own.node, secret)]


def open_secret(vault: Vault, node: str, secret: ChapSecret) -> str:
    """The password in `secret` of `node`. Raises Refused without the key, Failed where it does not open it."""
    entry = Entry(keys.CHAP_SECRETS.key(node), secret.sealed.encode(), revision=0, created=0)
    password = vault.open(entry)
    if identify(node, password) != secret.id:
        raise Failed(f"{entry.key} contradicts itself", hint=vault.ring.lost)
    return password


async def enrolled(store: Store, vault: Vault | None, own: Initiator, *, keeps: bool) -> tuple[list[Put], Unchanged]:
    """The records of a newcomer's credentials, and the condition under which they are right. `keeps`: the newcomer's
    veery knows that it has to keep its password. Raises Refused, StoreUnavailable."""
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
    """Seal the password that `node` gives as its own. Raises Refused, StoreUnavailable, OutcomeUnknown."""
    if not _PASSWORD.fullmatch(password):
        raise Refused(f"{node} gives a password that no account can have", hint="is another version of veery at work?")
    record, member = await store.get(keys.INITIATORS.key(node)), await store.get(keys.NODES.key(node))
    if record is None or member is None:
        raise Refused(f"node {node} is not in the cluster", hint="veery node list shows the nodes")
    if await store.get(keys.CHAP_SEALED) is None:
        raise Refused("the cluster's CHAP passwords are not sealed yet", hint="is each node's veery of this version?")
    held = await _require_key(store, vault)
    own = replace(keys.INITIATORS.value(record), password=password)
    conditions = [Unchanged(one.key, one.revision) for one in (record, member, held)]
    if not (await store.commit(conditions, sealed(vault, own))).held:
        raise Refused(f"the records of {node} changed meanwhile", hint="it tries again by itself within seconds")
    log.info(decision("initiator.sealed", node=node))


async def _require_key(store: Store, vault: Vault) -> Entry:
    entry = await store.get(vault.ring.key)
    if entry is None or entry.value.decode() != vault.id:
        raise Refused(vault.ring.missing, hint="it gets it by itself within seconds: try again")
    return entry


# ---------------------------------------------------------------- what each node does, and each holder


async def keep(store: Store, state: Path, node: str, fresh: str) -> Initiator:
    """A node's part: keep its own credentials, and say which they are; `fresh` is the password where neither the
    node nor the store has one in the clear. Raises Failed where the node has no record, StoreUnavailable,
    OutcomeUnknown, OSError."""
    entry = await store.get(keys.INITIATORS.key(node))
    if entry is None:
        raise Failed(f"{node} has no credentials at the targets", hint="join it anew")
    record, own = keys.INITIATORS.value(entry), load(state)
    if own is None or (own.iqn, own.user) != (record.iqn, record.user):
        if own is None and not record.password:
            log.warning("%s is lost: this node has a new CHAP password; domains keep their open sessions", state / FILE)
        own = replace(record, password=record.password or (own.password if own else fresh))
        save(state, own)
    elif record.password and record.password != own.password:  # the store is older than what we keep
        await store.commit([Unchanged(entry.key, entry.revision)], [keys.INITIATORS.put(node, own)])
    mark = keys.CHAP_KEPT + node
    id, told = identify(node, own.password), await store.get(mark)
    if told is None or told.value.decode() != id:
        await store.commit([], [Put(mark, id.encode())])
    return own


async def must_offer(store: Store, own: Initiator) -> bool:
    """Whether the store is to have another password of this node, sealed, than it has. Raises StoreUnavailable."""
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
    """A holder's part: once every node keeps its own password, and all that need the key have it, seal those that
    are in the clear. Whether none is left. Raises StoreUnavailable, OutcomeUnknown, Unreadable."""
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
        clear = await _clear(store)  # a newcomer of before is among them, or it was turned away
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
    """The nodes that do not keep their own password, as far as is known. Those of an older veery never say it; they
    read everybody's in the clear."""
    marks = (await store.scan(keys.CHAP_KEPT)).entries
    told = {mark.key.removeprefix(keys.CHAP_KEPT): mark.value.decode() for mark in marks}
    nodes = (await store.scan(keys.NODES.prefix)).entries
    unkept = {name for entry in nodes if (name := keys.NODES.name(entry.key)) not in told}
    for entry in clear:
        own = keys.INITIATORS.value(entry)
        if told.get(own.node) != identify(own.node, own.password):
            unkept.add(own.node)
    return sorted(unkept)
