"""The node's identity: the files that `veery init` and `veery join` write to the state folder for the daemon.

STATE/identity.json    Identity; written last: if it exists, the other files do too
STATE/bootstrap.json   Bootstrap; on the first node only, until its daemon has written it into the store
STATE/initiator.json   Initiator: this node's credentials at the targets (initiators.py)
STATE/tls/             host/tls.py
STATE/etcd/            etcd's data, on voters"""

from __future__ import annotations

import base64
import ipaddress
import re
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import veery
from veery.config.settings import Settings
from veery.errors import Failed, Refused
from veery.host import kept, tls
from veery.host.files import write_atomic
from veery.model import codec
from veery.model.cluster import Cluster
from veery.model.endpoint import canonical, join
from veery.model.node import Node, Role
from veery.model.volume import Initiator

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdStart:
    """The first start of a voter's etcd, as the etcd flags of these names; unused once etcd has data.

    `store`: etcd's id of the store in which this member has voted. Without its data the member must not start again:
    it would vote again on entries that are decided already. `prepared`: etcd starts with data that a recovery made;
    without data it must not start, for it would begin an empty store."""

    initial_cluster: str
    initial_cluster_state: str
    store: str = ""
    prepared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """This node and its cluster. `voters` are etcd's client URLs, kept up to date while the node runs. `etcd` is
    None if the node is no voter. `replaced`: etcd's ids of the stores that `veery cluster recover` replaced."""

    cluster: Cluster
    node: Node
    voters: tuple[str, ...]
    etcd: EtcdStart | None = None
    replaced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """The secrets that the first daemon writes into the store."""

    ca_key: str
    initiator: Initiator


def init(
    settings: Settings,
    *,
    name: str,
    address: str,
    roles: Sequence[Role],
    driver: str,
    cluster: str,
    epoch: float | None = None,
) -> Identity:
    """Make a new cluster with this node as its first voter. This only writes files; veeryd does the rest at its start.

    Raises Refused if the node has a cluster already, or a name or address is invalid."""
    now = time.time() if epoch is None else epoch
    state = fresh_state(settings)
    check_name(cluster, "cluster")
    check_node_name(name)
    if Role.VOTER not in roles:
        raise Refused(f"the first node of a cluster must be a {Role.VOTER}", hint="add voter to --roles")
    node = describe(settings, name=name, address=address, roles=roles, driver=driver)
    ca = tls.make_ca(cluster, epoch=now)
    request = tls.make_request(name)
    cert = tls.sign(ca, request.cert, name=name, addresses=[address], epoch=now)
    month = time.strftime("%Y-%m", time.gmtime(now))
    record = Cluster(
        name=cluster, id=str(uuid.uuid4()), ca=ca.cert, authority=f"iqn.{month}.internal.{cluster.replace('.', '-')}"
    )
    initiator = make_initiator(record, name)
    node = replace(node, initiator=initiator.iqn)
    identity = Identity(
        cluster=record,
        node=node,
        voters=(client_url(settings, node),),
        etcd=EtcdStart(initial_cluster=f"{name}={peer_url(settings, node)}", initial_cluster_state="new"),
    )
    tls.write_folder(state / "tls", ca=ca.cert, node=tls.KeyPair(cert, request.key))
    write_atomic(state / "bootstrap.json", codec.encode(Bootstrap(ca_key=ca.key, initiator=initiator)), sync=True)
    save(state, identity)
    return identity


def load(state: Path) -> Identity:
    """Return the node's identity. Raises Refused if it belongs to no cluster, Failed if the file is unreadable."""
    try:
        data = (state / "identity.json").read_bytes()
    except FileNotFoundError as error:
        raise Refused("this node belongs to no cluster", hint="veery init --help; veery join --help") from error
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}", hint="are you root?") from error
    try:
        return codec.decode(data, Identity)
    except Failed as error:
        raise Failed(
            f"{state / 'identity.json'} cannot be read: {error.message}",
            hint="restore this file from a copy; without one: veery node forget --help, then join again",
        ) from error


def save(state: Path, identity: Identity) -> None:
    """Write `identity` to the state folder. Raises OSError."""
    write_atomic(state / "identity.json", codec.encode(identity), sync=True)


def load_bootstrap(state: Path) -> Bootstrap | None:
    """Return the secrets still to be written into the store; None if that is done or not this node's part."""
    try:
        return kept.read(state / "bootstrap.json", Bootstrap)
    except FileNotFoundError:
        return None


def fresh_state(settings: Settings) -> Path:
    """Return the state folder; make it if it is missing. Raises Refused if the node has a cluster already."""
    state = Path(settings.state)
    if (state / "identity.json").exists():
        raise Refused(
            f"this node belongs to cluster {load(state).cluster.name} already",
            hint=f"to start again from nothing, stop veeryd and remove {state}",
        )
    if (state / "etcd" / "member").exists():
        raise Refused(f"{state}/etcd holds another cluster's data", hint="move it away first")
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{state}: {error.strerror}", hint="are you root?") from error
    return state


def describe(settings: Settings, *, name: str, address: str, roles: Sequence[Role], driver: str) -> Node:
    """Return this node's record by its settings. Raises Refused for an invalid name or address."""
    check_name(name, "node")
    address = check_address(address)
    if not roles:
        raise Refused(f"node {name} has no role", hint=f"give some of {', '.join(Role)}")
    return Node(
        name=name,
        address=address,
        roles=tuple(dict.fromkeys(roles)),
        driver=driver,
        api_port=settings.api.port,
        relocation_address=settings.relocation.address or address,
        relocation_port=settings.relocation.port,
        storage_address=canonical(settings.storage.address),
        version=veery.__version__,
    )


def check_address(address: str) -> str:
    """Return the canonical text of an address, since addresses are compared as texts. Raises Refused unless it is an IP
    address at which other nodes can reach a node."""
    try:
        where = ipaddress.ip_address(address)
    except ValueError as error:
        raise Refused(f"not an IP address: {address!r}", hint="give an address that other nodes reach") from error
    if where.is_unspecified or where.is_multicast or (where.version == 6 and where.is_link_local):
        raise Refused(f"no node can be reached at {address}", hint="give an address that other nodes reach")
    return str(where)


def check_name(name: str, what: str) -> None:
    """Raise Refused unless `name` is valid in a certificate, an IQN and a key of the store."""
    if not _NAME.fullmatch(name):
        raise Refused(f"not a {what} name: {name!r}", hint="use a-z, 0-9, '-' and '.', at most 63 characters")


def check_node_name(name: str) -> None:
    """Raise as `check_name`, and for a name that would be read as an address or as the local machine."""
    check_name(name, "node")
    labels = name.split(".")
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", label) for label in labels):
        raise Refused(f"not a node name: {name!r}", hint="each part between the dots begins and ends with a-z or 0-9")
    if re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1]):
        raise Refused(f"not a node name: {name!r} reads as an address", hint="let its last part begin with a letter")
    if name == "local" or labels[-1] == "localhost" or labels[0] == "localhost":
        raise Refused(f"not a node name: {name!r} means the local machine", hint="choose another name")


def make_initiator(cluster: Cluster, node: str) -> Initiator:
    """Return new credentials for `node` at every target. Windows and some targets accept CHAP secrets of 12 to 16
    characters only; RFC 7143, 12.1.3 asks for 96 bits: these are 16 characters of 6 bits each."""
    return Initiator(node=node, iqn=f"{cluster.authority}:node:{node}", user=node, password=make_password())


def make_password() -> str:
    """Return a new CHAP password."""
    return base64.urlsafe_b64encode(secrets.token_bytes(12)).decode()


def client_url(settings: Settings, node: Node) -> str:
    """Return the URL at which `node`'s etcd serves clients."""
    return f"https://{join(node.address, settings.etcd.client_port)}"


def peer_url(settings: Settings, node: Node) -> str:
    """Return the URL at which `node`'s etcd serves the other members."""
    return f"https://{join(node.address, settings.etcd.peer_port)}"
