"""Join a node to the cluster: an operator carries a token to it, then the node sends two requests.

The token contains a secret, of which the store keeps only the hash, and the fingerprint of the cluster's CA. The
new node fetches the CA's certificate from any node (GET /v1/ca, not verified) and compares it with the fingerprint.
From then on it only accepts a server with a certificate of that CA for the address that it calls: so no stranger
gets the secret. The node's private key never leaves it; it sends a certificate request (POST /v1/join)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import hashlib
import logging
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import aiohttp

from veery.cluster import authorities, initiators, keys, levels, revocation
from veery.cluster.identity import (
    EtcdStart,
    Identity,
    check_node_name,
    client_url,
    describe,
    fresh_state,
    make_initiator,
    make_password,
    peer_url,
    save,
)
from veery.cluster.store import Delete, Put, Store, Unchanged
from veery.cluster.vault import CHAP, Vault
from veery.cluster.voters import Voter, Voters
from veery.config.settings import Settings
from veery.errors import Failed, NotFound, OutcomeUnknown, Refused, from_kind
from veery.host import tls
from veery.host.log import decision
from veery.model import codec
from veery.model.cluster import LEVEL, Cluster, Token, TokenStatus
from veery.model.endpoint import bracketed
from veery.model.node import Node, Role
from veery.model.volume import Initiator

log = logging.getLogger(__name__)

T = TypeVar("T")

TOKEN_LIFETIME_S = 3600
ID_LENGTH = 12  # characters of the secret's hash that make a token's id
CLOCK_SKEW_S = 30.0  # the allowed difference of two nodes' clocks: logs and certificates depend on them
JOINING_TTL_S = 120  # longer than an admission can take
TURN_TIMEOUT_S = 20.0  # for a node that waits while another joins
JOIN_TIMEOUT_S = 75.0  # for the cluster's answer to a new node


@dataclass(frozen=True, slots=True, kw_only=True)
class CaReply:
    """The answer of GET /v1/ca: the CA's certificate, PEM, and the node's clock (0.0: an older veery)."""

    ca: str
    epoch: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """The body of POST /v1/join. `csr`: PEM. `epoch`: the new node's clock. `peer`: its etcd's peer URL, "" if it is no
    voter. `keeps`: it keeps its CHAP password itself (an older veery reads it in the store). `level`: the highest level
    of its version (0: an older veery)."""

    secret: str
    node: Node
    csr: str
    epoch: float
    peer: str = ""
    keeps: bool = False
    level: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinReply:
    """The answer of POST /v1/join: the node's record, its certificate (PEM), etcd's client URLs, for a voter the first
    start of its etcd, and its credentials at the targets (None: an older veery, they are in the store)."""

    cluster: Cluster
    node: Node
    cert: str
    voters: tuple[str, ...]
    etcd: EtcdStart | None = None
    initiator: Initiator | None = None


async def make_token(store: Store, node: str, *, epoch: float | None = None) -> str:
    """Return a new token. It is valid once, for one hour, and while `node`, which requests it, is in the cluster.

    Raises Refused if `node` is not in the cluster or the CA changes; Failed, StoreUnavailable, OutcomeUnknown."""
    now = time.time() if epoch is None else epoch
    record = await keys.cluster(store)
    await _one_ca(store)
    if await store.get(keys.NODES.key(node)) is None:
        raise Refused(f"node {node} is no longer in the cluster", hint="ask another node: veery node list")
    secret = secrets.token_urlsafe(16)
    lease = await store.grant(TOKEN_LIFETIME_S)
    token = Token(expires=now + TOKEN_LIFETIME_S, node=node)
    await store.commit([], [keys.TOKENS.put(_hash(secret), token, lease=lease)])
    log.info(decision("token.made", id=_hash(secret)[:ID_LENGTH], node=node, seconds=TOKEN_LIFETIME_S))
    mark = base64.urlsafe_b64encode(bytes.fromhex(tls.fingerprint(record.ca))).decode().rstrip("=")
    return f"veery.{secret}.{mark}"


async def _one_ca(store: Store) -> None:
    """Raise Refused while the CA changes: a new node knows only one CA."""
    if len((await authorities.load(store)).authorities.trusted) > 1:
        raise Refused("no node can join while the cluster's CA changes", hint=authorities.SHOW)


async def tokens(store: Store) -> tuple[TokenStatus, ...]:
    """Return the unused tokens, the oldest first. Raises StoreUnavailable."""
    found = (await keys.TOKENS.readable(store)).items()
    rows = [TokenStatus(id=name[:ID_LENGTH], node=token.node, expires=token.expires) for name, token in found]
    return tuple(sorted(rows, key=lambda row: row.expires))


async def revoke_token(store: Store, id: str) -> None:
    """Revoke the token with the id `id`. Raises Refused if there is none, StoreUnavailable, OutcomeUnknown."""
    names = [keys.TOKENS.name(entry.key) for entry in (await store.scan(keys.TOKENS.prefix)).entries]
    meant = [name for name in names if len(id) >= ID_LENGTH and name.startswith(id)]
    if len(meant) != 1:
        raise NotFound(f"no token {id!r}", hint="veery token list shows them; a used one is gone")
    await store.commit([], [Delete(keys.TOKENS.key(meant[0]))])
    log.info(decision("token.revoked", id=id))


def read_token(token: str) -> tuple[str, str]:
    """Return the secret and the CA's fingerprint (hex) in `token`. Raises Refused if it is no token."""
    match = re.fullmatch(r"veery\.([\w-]{16,64})\.([\w-]{43})", token.strip(), re.ASCII)
    if not match:
        raise Refused(
            "not a token", hint="make one with `veery node token` on a node of the cluster, and copy all of it"
        )
    return match[1], base64.urlsafe_b64decode(match[2] + "=").hex()


async def admit(
    store: Store, voters: Voters, request: JoinRequest, *, vault: Vault | None = None, epoch: float | None = None
) -> JoinReply:
    """Admit a new node: check the request, sign its certificate with the CA's key from `vault`, add its etcd member,
    and write its records.

    Raises Refused (nothing has changed, the token stays valid), StoreUnavailable, OutcomeUnknown."""
    now = time.time() if epoch is None else epoch
    await _check(store, request, now)
    await levels.admission(store, request.node.name, request.level)
    cluster = await keys.cluster(store)
    await _one_ca(store)
    node = request.node
    ca = await authorities.signer(store, vault)
    cert = tls.sign(ca, request.csr, name=node.name, addresses=[node.address], epoch=now)
    initiator = make_initiator(cluster, node.name)
    node = replace(node, initiator=initiator.iqn)
    async with turn(store, node.name) as ours:
        token = await _check(store, request, now)
        level, level_again = await levels.admission(store, node.name, request.level)
        members = await _seat(store, voters, node, request.peer)
        credentials, same = await _credentials(store, vault, request, initiator)
        conditions = [ours, *token, same, level, Unchanged(keys.NODES.key(node.name), 0)]
        records: list[Put | Delete] = [
            Delete(token[0].key),
            level_again,
            keys.NODES.put(node.name, node),
            *credentials,
            keys.CERTIFICATES.put(node.name, revocation.certificate(cert)),
        ]
        if not await _record(store, conditions, records, credentials[-1]):
            await _unseat(voters, request.peer)
            raise Refused(f"meanwhile the token was used, or the name {node.name} was taken", hint="make another token")
    log.info(decision("node.admitted", node=node.name, address=node.address, roles=",".join(node.roles)))
    start = None
    if request.peer:
        names = [f"{_name_of(each, request)}={url}" for each in members for url in each.peers]
        start = EtcdStart(initial_cluster=",".join(names), initial_cluster_state="existing")
    clients = tuple(url for each in members if not each.learner for url in each.clients)
    return JoinReply(cluster=cluster, node=node, cert=cert, voters=clients, etcd=start, initiator=initiator)


async def _credentials(
    store: Store, vault: Vault | None, request: JoinRequest, own: Initiator
) -> tuple[list[Put], Unchanged]:
    chap = vault.beside(CHAP) if vault is not None else None
    return await initiators.enrolled(store, chap, own, keeps=request.keeps)


async def join(
    settings: Settings,
    *,
    token: str,
    peer: str,
    name: str,
    address: str,
    roles: Sequence[Role],
    driver: str,
    epoch: float | None = None,
) -> Identity:
    """Join this node to the cluster of `token`, through its node `peer` ("172.16.31.1", "node1:8001"). veeryd does the
    rest at its start.

    Raises Refused (nothing has changed), Failed, OutcomeUnknown."""
    secret, mark = read_token(token)
    state = fresh_state(settings)
    check_node_name(name)
    node = describe(settings, name=name, address=address, roles=roles, driver=driver)
    base = f"https://{_with_port(peer, settings.api.port)}"
    answer = await _call("GET", f"{base}/v1/ca", CaReply, tls.unverified_context(), within=10)
    if tls.fingerprint(answer.ca) != mark:
        raise Refused(
            f"{peer} is not in the cluster that made the token", hint="check the address; make a new token there"
        )
    mine = time.time() if epoch is None else epoch
    if answer.epoch:  # before TLS: with a wrong clock the cluster's certificates would not be valid
        _check_clock(name, mine, answer.epoch)
    key = tls.make_request(name)
    request = JoinRequest(
        secret=secret,
        node=node,
        csr=key.cert,
        epoch=mine,
        peer=peer_url(settings, node) if Role.VOTER in node.roles else "",
        keeps=True,
        level=LEVEL,
    )
    context = tls.pinned_context(answer.ca)
    reply = await _call("POST", f"{base}/v1/join", JoinReply, context, within=JOIN_TIMEOUT_S, body=request)
    if tls.fingerprint(reply.cluster.ca) != mark:
        raise Failed(
            f"{peer} answered with another cluster's CA",
            hint=f"remove {name} on a node of the cluster: `veery node leave {name}`",
        )
    own = (client_url(settings, node),) if reply.etcd else ()
    identity = Identity(cluster=reply.cluster, node=reply.node, voters=own + reply.voters, etcd=reply.etcd)
    tls.write_folder(state / "tls", ca=answer.ca, node=tls.KeyPair(reply.cert, key.key))
    if reply.initiator is not None:
        password = reply.initiator.password or make_password()  # "": the request was forwarded by another node
        initiators.save(state, replace(reply.initiator, password=password))
    save(state, identity)
    return identity


def _check_clock(name: str, theirs: float, ours: float) -> None:
    """Raise Refused if the clock of node `name` differs from the cluster's; both in seconds of the epoch."""
    ahead = theirs - ours
    if abs(ahead) > CLOCK_SKEW_S:
        there, here = (
            f"{datetime.datetime.fromtimestamp(each, datetime.UTC):%Y-%m-%d %H:%M:%S}" for each in (theirs, ours)
        )
        raise Refused(
            f"the clock of {name} is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}: "
            f"{name} has {there}, the cluster {here} UTC",
            hint=f"set the wrong clock (chronyc makestep, or timedatectl set-time on {name}), then try again",
        )


async def _check(store: Store, request: JoinRequest, now: float) -> list[Unchanged]:
    """Raise Refused unless the new node may join; return the conditions that its token and the token's node remain."""
    conditions = await _good(store, keys.TOKENS.key(_hash(request.secret)), now)
    node = request.node
    check_node_name(node.name)
    _check_clock(node.name, request.epoch, now)
    if not node.roles or (Role.VOTER in node.roles) != bool(request.peer):
        raise Refused(f"the roles and the peer URL of {node.name} do not match", hint="does it run another veery?")
    for other in (await keys.NODES.readable(store)).values():
        if other.name == node.name:
            raise Refused(
                f"the name {node.name} is taken",
                hint=f"choose another, or remove the old node: veery node leave {node.name}",
            )
        if node.address in (other.address, *other.former):
            raise Refused(f"{node.address} is {other.name}'s address", hint="give the address of this node")
    return conditions


async def _good(store: Store, key: str, now: float) -> list[Unchanged]:
    """Return the conditions under which the token at `key` is valid; the token's own first. Raises Refused."""
    entry = await store.get(key)
    if entry is None or (token := keys.TOKENS.value(entry)).expires < now:
        raise Refused("the token is unknown, used or too old", hint="make another with `veery node token`")
    if not token.node:
        return [Unchanged(key, entry.revision)]
    maker = await store.get(keys.NODES.key(token.node))
    if maker is None or maker.created > entry.revision:  # the node left, or has joined again since
        raise Refused(
            f"the token was made by {token.node}, which was removed", hint="make another with `veery node token`"
        )
    return [Unchanged(key, entry.revision), Unchanged(maker.key, maker.revision)]


@contextlib.asynccontextmanager
async def turn(store: Store, name: str) -> AsyncIterator[Unchanged]:
    """Let one node at a time join or change the members; yield the condition that it is still this node's turn.

    Raises Refused if another node takes too long."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + TURN_TIMEOUT_S
    lease = await store.grant(JOINING_TTL_S)
    try:
        while True:
            done = await store.commit([Unchanged(keys.JOINING, 0)], [Put(keys.JOINING, name.encode(), lease)])
            if done.held:
                break
            if loop.time() > ends:
                entry = await store.get(keys.JOINING)
                other = entry.value.decode() if entry else "another node"
                raise Refused(f"{other} is joining", hint="try again in a minute")
            await asyncio.sleep(0.25)
        yield Unchanged(keys.JOINING, done.revision)
    finally:
        with contextlib.suppress(Failed):
            await store.revoke(lease)


async def _seat(store: Store, voters: Voters, node: Node, peer: str) -> tuple[Voter, ...]:
    """Add the new node to etcd's members and return them (unchanged if `peer` is ""). First remove the remains of
    admissions that failed half-way: learners that never started and that no node's record names."""
    members = await voters.all()
    if not peer:
        return members
    nodes = (await keys.NODES.all(store)).values()
    known = [bracketed(address) for each in nodes for address in (each.address, *each.former)]
    for member in members:
        stray = member.learner and not member.name and peer not in member.peers
        if stray and not any(f"//{address}:" in url for url in member.peers for address in known):
            await voters.remove(member.id)
    return await voters.add_learner(peer)


async def seat(store: Store, voters: Voters, node: Node, peer: str) -> EtcdStart:
    """Add `node`, which is in the cluster already, to etcd's members as a learner; return its etcd's first start. An
    existing learner is kept. Raises Refused, StoreUnavailable, OutcomeUnknown."""
    async with turn(store, node.name):
        members = await _seat(store, voters, node, peer)
    names = [f"{node.name if peer in each.peers else each.name}={url}" for each in members for url in each.peers]
    return EtcdStart(initial_cluster=",".join(names), initial_cluster_state="existing")


async def unseat(voters: Voters, peer: str) -> None:
    """Remove the member at `peer` again while it is a learner. Raises StoreUnavailable, OutcomeUnknown."""
    await _unseat(voters, peer)


async def _unseat(voters: Voters, peer: str) -> None:
    for member in await voters.all() if peer else ():
        if peer in member.peers and member.learner:
            await voters.remove(member.id)


async def _record(store: Store, conditions: Sequence[Unchanged], records: Sequence[Put | Delete], secret: Put) -> bool:
    """Use the token up and write the node's records, with `secret` and its password; return whether it was done."""
    try:
        return (await store.commit(conditions, records)).held
    except OutcomeUnknown:
        written = await store.get(secret.key)
        return written is not None and written.value == secret.value  # new password: no other request wrote it


def _name_of(member: Voter, request: JoinRequest) -> str:
    if request.peer in member.peers:
        return request.node.name
    return member.name or f"member-{member.id:x}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _with_port(peer: str, port: int) -> str:
    """Return HOST:PORT for "172.16.31.1", "fd00::1", "[fd00::1]:8001", "node1" or "node1:8001"."""
    if peer.count(":") > 1 and not peer.startswith("["):
        return f"[{peer}]:{port}"
    return peer if re.search(r":\d+$", peer) else f"{peer}:{port}"


async def _call(method: str, url: str, type: type[T], context: ssl.SSLContext, *, within: float, body: Any = None) -> T:
    """Send one request to a node of the cluster. Raises the node's error, or Refused if the node cannot be reached."""
    data = codec.encode(body) if body is not None else None
    headers = {"Content-Type": "application/json"} if data else {}
    where = url.split("/")[2]
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=within, sock_connect=5)) as session,
            session.request(method, url, data=data, headers=headers, ssl=context) as answer,
        ):
            status, content = answer.status, await answer.read()
    except aiohttp.ClientConnectorCertificateError as error:
        raise Refused(
            f"{where} has no certificate for that address: {error.certificate_error}",
            hint="give the address that `veery node token` printed; nothing secret was sent to this server",
        ) from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
        raise Refused(
            f"cannot connect to {where}: {error}", hint="is veeryd running there, and is the address right?"
        ) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise OutcomeUnknown(
            f"the answer of {where} was lost: {error or 'none in time'}",
            hint="`veery node list` there shows whether this node has joined; if so: veery node leave --help",
        ) from error
    if status != 200:
        try:
            sent = codec.convert(codec.decode(content, dict[str, Any])["error"], dict[str, str])
            failure = from_kind(sent.get("kind", ""), sent.get("message", ""), sent.get("hint", ""))
        except (Failed, KeyError):
            failure = Failed(f"{where} answered with HTTP {status}")
        raise failure
    return codec.decode(content, type)
