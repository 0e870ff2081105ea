"""Sealed secrets in the store: only the nodes that need a secret have the key that opens it.

There are two sealing keys (`Ring`): CA for the CA's key, held by voters; CHAP for the initiators' passwords
(initiators.py), held by voters and storage nodes. This text describes the CA's; the other works in the same way.

The first voter makes STATE/sealing.key (32 bytes, root only). `sealing` in the store has its id; `sealing/NODE` records
that voter NODE has the key too. Other voters request it from a holder, over TLS (`POST /v1/sealing`). If no voter of
the cluster has it any more, the next voter makes another: the secrets sealed with the old key are lost, and the
cluster needs a new CA.

A cluster of an older veery has the CA's key in the clear under ca/key. Once every voter has the sealing key, one
transaction seals it and deletes ca/key: so the loss of one voter's disk never loses the CA's key."""

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
    """The description of one sealing key. `file`: its file in STATE. `key`: the store's key with its id. `held`: the
    prefix under which each holder records that it has the key. `roles`: the roles of the holders. `again`: the sealed
    secrets are known elsewhere too, so a lost key may be replaced automatically. The other fields are for messages."""

    file: str
    key: str
    held: str
    roles: tuple[Role, ...]
    holder: str
    missing: str
    lost: str
    again: bool = False

    def holds(self, node: Node) -> bool:
        """Return whether `node` should have this key."""
        return any(node.has(role) for role in self.roles)


NO_VOTE = "a node without a vote does not have the CA's key"
CA = Ring(
    file="sealing.key",
    key=keys.SEALING,
    held=keys.SEALED_BY,
    roles=(Role.VOTER,),
    holder="voter",
    missing=NO_VOTE,
    lost="restore sealing.key from a copy of a voter's state folder, or: veery cluster ca renew",
)
CHAP = Ring(
    file="chap.key",
    key=keys.CHAP_SEALING,
    held=keys.CHAP_SEALED_BY,
    roles=(Role.VOTER, Role.STORAGE),
    holder="voter or storage node",
    missing="this node does not have the key of the nodes' CHAP passwords",
    lost="veery doctor --all; the node of that name seals its password again within seconds",
    again=True,
)

FILE = CA.file
MARK = b"veery-sealed-1:"
KEY_BYTES, NONCE_BYTES = 32, 12  # ChaCha20-Poly1305, RFC 8439

Ask = Callable[[str], Awaitable[str]]
"""Requests the sealing key (base64) from the holder of that name. Raises VeeryError."""


class Vault:
    """One sealing key of this node, with the functions to seal and to open."""

    def __init__(self, state: Path, ring: Ring = CA) -> None:
        """`state` is the state folder. The key's file is read only when it is needed."""
        self.ring, self._state, self._file = ring, state, state / ring.file

    def beside(self, ring: Ring) -> Vault:
        """Return the vault of another sealing key of the same node."""
        return Vault(self._state, ring)

    @property
    def id(self) -> str:
        """Return the id of this node's sealing key; "" if it has none."""
        key = self._read()
        return identify(key) if key else ""

    def make(self) -> str:
        """Make the sealing key if there is none; return its id. Raises OSError."""
        if not self._read():
            write_atomic(self._file, secrets.token_bytes(KEY_BYTES), mode=0o600, sync=True)
        return self.id

    def export(self) -> str:
        """Return the sealing key for another holder, base64. Raises Refused if this node has none."""
        key = self._read()
        if not key:
            raise Refused("this node has no sealing key", hint=f"ask a {self.ring.holder}: veery node list")
        return base64.b64encode(key).decode()

    def take(self, key: str, id: str) -> None:
        """Write the sealing key that another holder sent. Raises Failed if its id is not `id`, OSError."""
        try:
            data = base64.b64decode(key, validate=True)
        except ValueError:
            data = b""
        if len(data) != KEY_BYTES or identify(data) != id:
            raise Failed("the received sealing key is not the cluster's", hint="veery doctor --all")
        write_atomic(self._file, data, mode=0o600, sync=True)

    def forget(self) -> None:
        """Delete the key. Raises OSError."""
        self._file.unlink(missing_ok=True)

    def seal(self, text: str, name: str) -> bytes:
        """Return `text` sealed for the store's key `name` and no other. Raises Refused without a sealing key."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = nonce + ChaCha20Poly1305(self._key()).encrypt(nonce, text.encode(), name.encode())
        return MARK + base64.b64encode(sealed)

    def open(self, entry: Entry) -> str:
        """Return the sealed text. Raises Refused without a sealing key, Failed if the key does not open it."""
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
    """Return the id of a sealing key, which reveals nothing of the key."""
    return hashlib.sha256(b"veery sealing key" + key).hexdigest()


def sealed_name(ca: str) -> str:
    """Return the store's key for the sealed private key of this CA (PEM)."""
    return keys.CA_SEALED + tls.authority_id(ca)


async def ca_key(store: Store, vault: Vault | None, ca: str) -> str:
    """Return the private key (PEM) of `ca` (PEM). Raises Refused on a node without a vote, Failed if the store has no
    such key, StoreUnavailable."""
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
    """The state in which this node has the sealing key. `id`: the store's entry with the key's id. `without`: the nodes
    that should have the key too and do not."""

    id: Entry
    without: tuple[str, ...]

    @property
    def same(self) -> Unchanged:
        """Return the condition that it is still the cluster's sealing key."""
        return Unchanged(self.id.key, self.id.revision)


async def hold(store: Store, vault: Vault, node: str, ask: Ask) -> Held | None:
    """Get the sealing key and record that this node has it: the part of each holder. None while that is not done: call
    it again. Raises StoreUnavailable, OutcomeUnknown, OSError, and Failed if no holder sends the key."""
    ring = vault.ring
    holders = [each.name for each in (await keys.NODES.readable(store)).values() if ring.holds(each)]
    marks = (await store.scan(ring.held)).entries
    recorded = {mark.key.removeprefix(ring.held): mark.value.decode() for mark in marks}
    entry = await store.get(ring.key)
    id = entry.value.decode() if entry else ""
    if ring.again and id and recorded.get(node) == id != vault.id:  # lost here; if lost everywhere, one makes another
        await store.commit([], [Delete(ring.held + node)])
    having = [each for each in holders if each != node and recorded.get(each) == id]
    if entry is None or (vault.id != id and not having):
        made = vault.make().encode()  # with this holder's record in one transaction, or another would make one too
        operations = [Put(ring.key, made), Put(ring.held + node, made)]
        await store.commit([Unchanged(ring.key, entry.revision if entry else 0)], operations)
        return None  # another holder may have been first: check again
    if vault.id != id:
        await _fetch(vault, id, having, ask)
    if recorded.get(node) != id:
        await store.commit([], [Put(ring.held + node, id.encode())])
        recorded[node] = id
    return Held(entry, tuple(each for each in sorted(holders) if recorded.get(each) != id))


async def let_go(store: Store, vault: Vault, node: Node) -> bool:
    """Delete the sealing key on a node that should no longer have it, for example after it gave its vote up, once
    another holder has it. Return whether that was done. Raises StoreUnavailable, OutcomeUnknown, OSError."""
    ring = vault.ring
    if not vault.id or ring.holds(node):
        return False
    known = await keys.NODES.readable(store)
    if node.name in known and ring.holds(known[node.name]):
        return False  # its record still has the role
    marks = (await store.scan(ring.held)).entries
    recorded = {mark.key.removeprefix(ring.held): mark.value.decode() for mark in marks}
    if not any(ring.holds(each) and recorded.get(each.name) == vault.id for each in known.values()):
        return False
    await store.commit([], [Delete(ring.held + node.name)])
    vault.forget()
    log.info(decision("sealing.gone", node=node.name, key=ring.file))
    return True


async def carry(store: Store, vault: Vault, node: str, ask: Ask) -> bool:
    """Get the sealing key, record that, and seal the CA's key: the part of each voter. Return whether all is done.
    Raises StoreUnavailable, OutcomeUnknown, OSError, and Failed if no voter sends the sealing key: call it again."""
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
        f"no {vault.ring.holder} sends the sealing key ({why})",
        hint=f"restore {vault.ring.file} from a copy of the state folder of a {vault.ring.holder}",
    )
