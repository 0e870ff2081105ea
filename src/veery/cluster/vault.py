"""The CA's key in the store, sealed: only voters have the key that opens it.

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
from pathlib import Path

from veery.cluster import keys
from veery.cluster.store import Delete, Entry, Put, Store, Unchanged
from veery.errors import Failed, Refused, VeeryError
from veery.host import tls
from veery.host.files import write_atomic
from veery.host.log import decision
from veery.model.node import Role

log = logging.getLogger(__name__)

FILE = "sealing.key"
MARK = b"veery-sealed-1:"
KEY_BYTES, NONCE_BYTES = 32, 12  # ChaCha20-Poly1305, RFC 8439
NO_VOTE = "a node without a vote does not have the CA's key"

Ask = Callable[[str], Awaitable[str]]
"""The sealing key (base64) of the voter of that name. Raises VeeryError."""


class Vault:
    """This node's sealing key, and what it opens."""

    def __init__(self, state: Path) -> None:
        """Nothing is read before it is needed."""
        self._file = state / FILE

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
        """The sealing key for another voter, base64. Raises Refused where there is none."""
        key = self._read()
        if not key:
            raise Refused("this node has no sealing key", hint="ask a voter: veery node list")
        return base64.b64encode(key).decode()

    def take(self, key: str, id: str) -> None:
        """Keep the sealing key that another voter gave. Raises Failed where it is not the one called `id`, OSError."""
        try:
            data = base64.b64decode(key, validate=True)
        except ValueError:
            data = b""
        if len(data) != KEY_BYTES or identify(data) != id:
            raise Failed("another sealing key than the cluster's was given", hint="veery doctor --all")
        write_atomic(self._file, data, mode=0o600, sync=True)

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
                hint="bring sealing.key back from a copy of a voter's state folder, or: veery cluster ca renew",
            ) from error

    def _key(self) -> bytes:
        key = self._read()
        if not key:
            raise Refused(NO_VOTE, hint="ask a voter: veery node list")
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


async def carry(store: Store, vault: Vault, node: str, ask: Ask) -> bool:
    """A voter's part: have the sealing key, say so, and seal the CA's key. Whether all of that is done. Raises
    StoreUnavailable, OutcomeUnknown, OSError, and Failed where no voter gives the sealing key: call it again."""
    voters = [each.name for each in (await keys.NODES.readable(store)).values() if each.has(Role.VOTER)]
    marks = (await store.scan(keys.SEALED_BY)).entries
    told = {mark.key.removeprefix(keys.SEALED_BY): mark.value.decode() for mark in marks}
    entry = await store.get(keys.SEALING)
    id = entry.value.decode() if entry else ""
    holders = [each for each in voters if each != node and told.get(each) == id]
    if entry is None or (vault.id != id and not holders):
        made = Put(keys.SEALING, vault.make().encode())
        await store.commit([Unchanged(keys.SEALING, entry.revision if entry else 0)], [made])
        return False  # others may have been first: look again
    if vault.id != id:
        await _fetch(vault, id, holders, ask)
    own = keys.SEALED_BY + node
    if told.get(node) != id:
        await store.commit([], [Put(own, id.encode())])
        told[node] = id
    clear = await store.get(keys.CA_KEY)
    if clear is None:
        return True
    if any(told.get(each) != id for each in voters):
        return False
    name = sealed_name((await keys.cluster(store)).ca)
    conditions = [Unchanged(clear.key, clear.revision), Unchanged(entry.key, entry.revision)]
    done = await store.commit(conditions, [Put(name, vault.seal(clear.value.decode(), name)), Delete(keys.CA_KEY)])
    if done.held:
        log.info(decision("ca.sealed", voters=",".join(sorted(voters))))
    return done.held


async def _fetch(vault: Vault, id: str, voters: list[str], ask: Ask) -> None:
    why = "there is no other voter"
    for each in voters:
        try:
            vault.take(await ask(each), id)
        except VeeryError as error:
            why = f"{each}: {error.message}"
            continue
        log.info(decision("sealing.taken", of=each))
        return
    raise Failed(
        f"no voter gives the sealing key ({why})", hint="bring sealing.key back from a copy of a voter's state"
    )
