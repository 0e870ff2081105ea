"""Secrets in the store, sealed: only the nodes that need one have the key that opens it.

There are two sealing keys (`Ring`): CA, which voters have, for the CA's key; CHAP, which voters and storage nodes have,
for the initiators' passwords (initiators.py). What follows is said of the CA's; the other is kept in the same way.

STATE/sealing.key (32 bytes, root alone) is made by the first voter. `sealing` in the store has its id, `sealing/NODE`
says that voter NODE has it too. Other voters ask one that has it, over TLS (`POST /v1/sealing`). Where no voter of the
cluster has it any more, the next one makes another: what the old one sealed is lost, and a new CA is the way out.

A cluster of an older veery has the CA's key in the clear under ca/key. It is sealed, and ca/key removed in the same
transaction, once every voter has the sealing key: so the loss of one voter's disk never takes it away."""

from __future__ import annotations

import base64
import hashlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from veery.cluster import keys
from veery.cluster.store import Delete, Entry, Put, Store, Unchanged
from veery.errors import Failed, Refused, VeeryError
from veery.host import tls
from veery.host.files import write_atomic
from veery.host.log import decision
from veery.model.node import Node, Role

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """One sealing key: its file in STATE, the key of the store that has its id, the prefix under which each holder says
    that it has it, and who these are. `again`: what it sealed is known elsewhere too, so a key that is lost may be
    replaced without anybody's word. The others are for messages."""

    file: str
    key: str
    held: str
    roles: tuple[Role, ...]
    holder: str
    missing: str
    lost: str
    again: bool = False

    def holds(self, node: Node) -> bool:
        """Whether `node` is to have it."""
        return any(node.has(role) for role in self.roles)


NO_VOTE = "a node without a vote does not have the CA's key"
CA = Ring(
    file="sealing.key",
    key=keys.SEALING,
    held=keys.SEALED_BY,
    roles=(Role.VOTER,),
    holder="voter",
    missing=NO_VOTE,
    lost="bring sealing.key back from a copy of a voter's state folder, or: veery cluster ca renew",
)
CHAP = Ring(
    file="chap.key",
    key=keys.CHAP_SEALING,
    held=keys.CHAP_SEALED_BY,
    roles=(Role.VOTER, Role.STORAGE),
    holder="voter or storage node",
    missing="this node does not have the key of the nodes' CHAP passwords",
    lost="veery doctor --all; the node of that name seals its password anew within seconds",
    again=True,
)

FILE = CA.file
MARK = b"veery-sealed-1:"
KEY_BYTES, NONCE_BYTES = 32, 12  # ChaCha20-Poly1305, RFC 8439

Ask = Callable[[str], Awaitable[str]]
"""The sealing key (base64) of the holder of that name. Raises VeeryError."""


class Vault:
    """One sealing key of this node, and what it opens."""

    def __init__(self, state: Path, ring: Ring = CA) -> None:
        """Nothing is read before it is needed."""
        self.ring, self._state, self._file = ring, state, state / ring.file

    def beside(self, ring: Ring) -> Vault:
        """Another sealing key of the same node."""
        return Vault(self._state, ring)

    @property
    def id(self) -> str:
        """The id of the sealing key here; "" where there is none."""
        key = self._read()
        return identify(key) if key else ""

    def make(self) -> str:
        """Make the sealing key where there is none; its id. Raises OSError."""
        if not self._read():
            write_atomic(self._file, secrets.token_bytes(KEY_BYTES), mode=0o600, sync=True)
        return self.id

    def export(self) -> str:
        """The sealing key for another holder, base64. Raises Refused where there is none."""
        key = self._read()
        if not key:
            raise Refused("this node has no sealing key", hint=f"ask a {self.ring.holder}: veery node list")
        return base64.b64encode(key).decode()

    def take(self, key: str, id: str) -> None:
        """Keep the sealing key that another holder gave. Raises Failed where it is not the one called `id`, OSError."""
        try:
            data = base64.b64decode(key, validate=True)
        except ValueError:
            data = b""
        if len(data) != KEY_BYTES or identify(data) != id:
            raise Failed("another sealing key than the cluster's was given", hint="veery doctor --all")
        write_atomic(self._file, data, mode=0o600, sync=True)

    def forget(self) -> None:
        """Remove the key. Raises OSError."""
        self._file.unlink(missing_ok=True)

    def seal(self, text: str, name: str) -> bytes:
        """`text`, to be kept under the key `name` of the store and no other. Raises Refused without a sealing key."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + ChaCha20Poly1305(self._key()).encrypt(nonce, text.encode(), name.encode())
        return MARK + base64.b64encode(sealed)

    def open(self, entry: Entry) -> str:
        """What was sealed. Raises Refused without a sealing key, Failed where it does not open it."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        key = self._key()
        try:
            data = base64.b64decode(entry.value.removeprefix(MARK), validate=True)
            cipher = ChaCha20Poly1305(key)
            return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], entry.key.encode()).decode()
        except (ValueError, InvalidTag) as error:
            raise Failed(
                f"the sealing key does not open {entry.key}",
                hint=self.ring.lost,
            ) from error

    def _key(self) -> bytes:
        key = self._read()
        if not key:
            raise Refused(self.ring.missing, hint=f"ask a {self.ring.holder}: veery node list")
        return key

    def _read(self) -> bytes:
        try:
            key = self._file.read_bytes()
        except FileNotFoundError:
            return b""
        return key if len(key) == KEY_BYTES else b""


def identify(key: bytes) -> str:
    """The id of a sealing key, which tells nothing of it."""
    return hashlib.sha256(b"veery sealing key" + key).hexdigest()


def sealed_name(ca: str) -> str:
    """Where the private key of this CA (PEM) stands."""
    return keys.CA_SEALED + tls.authority_id(ca)


async def ca_key(store: Store, vault: Vault | None, ca: str) -> str:
    """The private key (PEM) of `ca` (PEM). Raises Refused on a node without a vote, Failed where it is nowhere,
    StoreUnavailable."""
    entry = await store.get(sealed_name(ca))
    if entry is not None:
        if vault is None:
            raise Refused(NO_VOTE, hint="ask a voter: veery node list")
        return vault.open(entry)
    clear = await store.get(keys.CA_KEY)
    if clear is None:
        raise Failed("the cluster's CA key is not in the store", hint="is veeryd running on the node of `veery init`?")
    return clear.value.decode()


@dataclass(frozen=True, slots=True)
class Held:
    """This node has the sealing key. `id` is the entry of its id in the store; `without` are the nodes that are to
    have it too and do not."""

    id: Entry
    without: tuple[str, ...]

    @property
    def same(self) -> Unchanged:
        """The condition that it still is the cluster's."""
        return Unchanged(self.id.key, self.id.revision)


async def hold(store: Store, vault: Vault, node: str, ask: Ask) -> Held | None:
    """A holder's part: have the sealing key, and say so. None while that is not done: call it again. Raises
    StoreUnavailable, OutcomeUnknown, OSError, and Failed where no holder gives the key."""
    ring = vault.ring
    holders = [each.name for each in (await keys.NODES.readable(store)).values() if ring.holds(each)]
    marks = (await store.scan(ring.held)).entries
    told = {mark.key.removeprefix(ring.held): mark.value.decode() for mark in marks}
    entry = await store.get(ring.key)
    id = entry.value.decode() if entry else ""
    if ring.again and id and told.get(node) == id != vault.id:  # ours is lost: if everybody's is, one makes another
        await store.commit([], [Delete(ring.held + node)])
    having = [each for each in holders if each != node and told.get(each) == id]
    if entry is None or (vault.id != id and not having):
        made = vault.make().encode()  # in the store together with who has it, or another one would make one too
        operations = [Put(ring.key, made), Put(ring.held + node, made)]
        await store.commit([Unchanged(ring.key, entry.revision if entry else 0)], operations)
        return None  # others may have been first: look again
    if vault.id != id:
        await _fetch(vault, id, having, ask)
    if told.get(node) != id:
        await store.commit([], [Put(ring.held + node, id.encode())])
        told[node] = id
    return Held(entry, tuple(each for each in sorted(holders) if told.get(each) != id))


async def let_go(store: Store, vault: Vault, node: Node) -> bool:
    """The part of a node that is to hold the sealing key no more, for example after it gave its vote up: remove the
    key here once another holder has it. Whether that was done. Raises StoreUnavailable, OutcomeUnknown, OSError."""
    ring = vault.ring
    if not vault.id or ring.holds(node):
        return False
    known = await keys.NODES.readable(store)
    if node.name in known and ring.holds(known[node.name]):
        return False  # its record does not say so yet
    told = {mark.key.removeprefix(ring.held): mark.value.decode() for mark in (await store.scan(ring.held)).entries}
    if not any(ring.holds(each) and told.get(each.name) == vault.id for each in known.values()):
        return False
    await store.commit([], [Delete(ring.held + node.name)])
    vault.forget()
    log.info(decision("sealing.gone", node=node.name, key=ring.file))
    return True


async def carry(store: Store, vault: Vault, node: str, ask: Ask) -> bool:
    """A voter's part: have the sealing key, say so, and seal the CA's key. Whether all of that is done. Raises
    StoreUnavailable, OutcomeUnknown, OSError, and Failed where no voter gives the sealing key: call it again."""
    held = await hold(store, vault, node, ask)
    if held is None:
        return False
    clear = await store.get(keys.CA_KEY)
    if clear is None:
        return True
    if held.without:
        return False
    name = sealed_name((await keys.cluster(store)).ca)
    conditions = [Unchanged(clear.key, clear.revision), held.same]
    done = await store.commit(conditions, [Put(name, vault.seal(clear.value.decode(), name)), Delete(keys.CA_KEY)])
    if done.held:
        log.info(decision("ca.sealed", by=node))
    return done.held


async def _fetch(vault: Vault, id: str, having: list[str], ask: Ask) -> None:
    why = f"there is no other {vault.ring.holder}"
    for each in having:
        try:
            vault.take(await ask(each), id)
        except VeeryError as error:
            why = f"{each}: {error.message}"
            continue
        log.info(decision("sealing.taken", of=each))
        return
    raise Failed(
        f"no {vault.ring.holder} gives the sealing key ({why})",
        hint=f"bring {vault.ring.file} back from a copy of the state folder of a {vault.ring.holder}",
    )
