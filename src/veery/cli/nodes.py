"""Nodes and the cluster: node ..., token ..., init, join, network list, version."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import veery
from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.readdress import declare_networks
from veery.cli.session import Session, Usage
from veery.errors import Refused, VeeryError
from veery.model import endpoint
from veery.model.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from veery.config.settings import Settings


# ---- node
def _list(session: Session, args: Namespace) -> int:
    rows = session.client.get("/v1/nodes")
    if session.json:
        session.print_json(rows)
        return 0
    cells = []
    for row in sorted(rows, key=lambda row: str(row["node"]["name"])):
        node = row["node"]
        alive = "yes" if row["alive"] else "no"
        roles, driver = ",".join(node["roles"]), node["driver"] or "-"
        version = (node["version"], _level(row))
        cells.append((node["name"], node["address"], roles, driver, alive, *version, _state(row), _up(row)))
    headers = ("Name", "Address", "Roles", "Driver", "Alive", "Version", "Level", "State", "Up")
    print(*tables.plain(headers, cells), sep="\n")
    return 0


def _state(row: dict[str, Any]) -> str:
    """Return the state of a node: that of its fence, else of its drain, else whether it is present."""
    return str(row.get("fence") or row.get("intent") or ("present" if row["alive"] else "absent"))


def _level(row: dict[str, Any]) -> str:
    """Return the level that the node's veeryd supports; "-" if it is absent or its version has no levels."""
    return str((row.get("presence") or {}).get("level") or "-")


def _up(row: dict[str, Any]) -> str:
    """Return how long the node's veeryd has run."""
    presence = row.get("presence")
    return format_seconds(max(time.time() - presence["started"], 0.0)) if presence else "-"


def _show(session: Session, args: Namespace) -> int:
    rows = {row["node"]["name"]: row for row in session.client.get("/v1/nodes")}
    name = args.name or session.client.get("/v1/host")["node"]["name"]
    if name not in rows:
        raise Refused(f"no node {name}", hint="veery node list shows the nodes")
    row = rows[name]
    if session.json:
        session.print_json(row)
        return 0
    node = row["node"]
    pairs = {
        "name": node["name"],
        "address": node["address"],
        **({"former": ", ".join(node["former"])} if node.get("former") else {}),
        "roles": ", ".join(node["roles"]),
        "driver": node["driver"] or "-",
        "alive": "yes" if row["alive"] else "no",
        "state": _state(row),
        "up": _up(row),
        "api": endpoint.join(node["address"], node["api_port"]),
        "relocation": endpoint.join(node["relocation_address"] or node["address"], node["relocation_port"]),
        **({"storage": node["storage_address"]} if node.get("storage_address") else {}),
        "initiator": node["initiator"] or "-",
        "version": node["version"] or "-",
        "level": _level(row),
    }
    print(*(f"{name:<10}: {value}" for name, value in pairs.items()), sep="\n")
    return 0


def _token(session: Session, args: Namespace) -> int:
    token = session.client.post("/v1/tokens")["token"]
    address = session.client.get("/v1/host")["node"]["address"]
    if session.json:
        session.print_json({"token": token, "address": address})
    else:
        print(token if "@" in token else f"{token}@{address}")
    return 0


def _tokens(session: Session, args: Namespace) -> int:
    rows = session.client.get("/v1/tokens")
    if session.json:
        session.print_json(rows)
        return 0
    cells = [(row["id"], row["node"] or "-", format_seconds(max(row["expires"] - time.time(), 0.0))) for row in rows]
    print(*tables.plain(("ID", "Made by", "Valid for"), cells), sep="\n")
    return 0


def _revoke_token(session: Session, args: Namespace) -> int:
    session.client.delete(f"/v1/tokens/{quote(args.id, safe='')}")
    return 0


def _leave(session: Session, args: Namespace) -> int:
    session.client.delete(f"/v1/nodes/{quote(args.name, safe='')}", deadline=60)
    return 0


def _forget(session: Session, args: Namespace) -> int:
    query = "?forget=1" + "&volumes=1" * args.with_volumes + "&everything=1" * args.with_everything
    lost = session.client.delete(f"/v1/nodes/{quote(args.name, safe='')}{query}", deadline=60)
    if session.json:
        session.print_json(lost)
        return 0
    for what, names in (("lost: volume", lost["volumes"]), ("lost: disks of domain", lost["domains"])):
        for name in names:
            print(what, name)
    for name in lost["owned"]:
        if name not in lost["domains"]:
            print(f"free to start elsewhere: domain {name}")
    return 0


# ---- init, join
def _member(args: Namespace, verb: str) -> dict[str, Any]:
    """Return the properties of the new node that init and join give. Raises Usage."""
    from veery.model.node import Role

    words = [word.strip() for word in args.roles.split(",") if word.strip()]
    wrong = [word for word in words if word not in tuple(Role)]
    if wrong or not words:
        raise Usage(f"no role {''.join(wrong[:1])!r}; roles are {', '.join(Role)}", verb)
    roles = tuple(Role(word) for word in words)
    driver = args.driver or ("qemu" if Role.HYPERVISOR in roles else "")
    return {"name": args.name, "address": args.address, "roles": roles, "driver": driver}


def _init(session: Session, args: Namespace) -> int:
    from veery.cli import membersettings
    from veery.cluster.identity import init
    from veery.host.ports import require_own

    require_own(args.address)
    member = _member(args, "init")
    change = membersettings.plan(session.settings, member["roles"], args, "init")
    init(change.settings, cluster=args.cluster, **member)
    membersettings.write(change)
    settings = change.settings
    print(f"Created cluster {args.cluster} with node {args.name} ({args.address})")
    _warn_of_pool(session, settings, member["roles"])
    return 0


def _warn_of_pool(session: Session, settings: Settings, roles: Sequence[str]) -> None:
    """Print a warning if volumes can fill the filesystem of veery's own state."""
    from veery.storage.room import shares

    pool, state = Path(settings.storage.pool or f"{settings.state}/volumes"), Path(settings.state)
    try:
        if "storage" in roles and shares(pool, state):
            session.note(
                f"veery: volumes in {pool} share a filesystem with veery's own state in {state}\n"
                "  hint: set storage.pool in veery.toml to a separate filesystem before you create volumes"
            )
    except OSError as error:
        session.note(f"veery: {pool}: {error.strerror}")


def _join(session: Session, args: Namespace) -> int:
    import asyncio

    from veery.cli import membersettings
    from veery.cluster.join import join
    from veery.host.ports import require_own

    token, at, address = args.token.rpartition("@")
    if not at or not token or not address:
        raise Usage("give TOKEN@ADDRESS, as veery node token prints it", "join")
    require_own(args.address)
    member = _member(args, "join")
    change = membersettings.plan(session.settings, member["roles"], args, "join")
    asyncio.run(join(change.settings, token=token, peer=address, **member))
    membersettings.write(change)
    settings = change.settings
    print(f"Node {args.name} ({args.address}) joined")
    _warn_of_pool(session, settings, member["roles"])
    return 0


# ---- network list, version
def _networks(session: Session, args: Namespace) -> int:
    answer = session.client.get("/v1/networks")
    if session.json:
        session.print_json(answer)
        return 0
    rows = [
        (
            item["name"],
            item["mac"],
            str(item["mtu"]),
            "up" if item["up"] else "down",
            ", ".join(item["addresses"]) or "-",
            ", ".join(port["name"] for port in item["ports"]) or "-",
        )
        for item in answer["bridges"]
    ]
    print(*tables.plain(("Bridge", "MAC", "MTU", "State", "Addresses", "Ports"), rows), sep="\n")
    return 0


def _version(session: Session, args: Namespace) -> int:
    print(f"veery {veery.__version__}")
    if args.all:
        try:
            rows = session.client.get("/v1/nodes")
        except VeeryError as error:
            session.note(f"veery: {error.message}")
            return 1
        for row in rows:
            level = "" if _level(row) == "-" else f", level {_level(row)}"
            print(f"veeryd {row['node']['version'] or '?'} on {row['node']['name']}{level}")
    return 0


# ---- arguments
def _declare_nothing(parser: Parser) -> None:
    pass


def _declare_show(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NODE", nargs="?", default="", help="the node's name (default: the node that veery talks to)"
    )


def _declare_member(parser: Parser, roles: str) -> None:
    parser.add_argument("--name", metavar="NAME", required=True, help="the name of this node")
    parser.add_argument("--address", metavar="ADDRESS", required=True, help="the address at which other nodes reach it")
    parser.add_argument("--roles", metavar="ROLES", default=roles, help=f"list of hypervisor,storage,voter ({roles})")
    parser.add_argument(
        "--driver",
        metavar="DRIVER",
        choices=("qemu", "xen"),
        default="",
        help="the driver that runs domains on a hypervisor (qemu)",
    )
    declare_networks(parser)


def _declare_revoke_token(parser: Parser) -> None:
    parser.add_argument("id", metavar="ID", help="the token's id, as veery token list shows it")


def _declare_leave(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="the node's name, as veery node list shows it")


def _declare_forget(parser: Parser) -> None:
    _declare_leave(parser)
    parser.add_argument("--with-volumes", action="store_true", help="accept the loss of the volumes that it held")
    parser.add_argument(
        "--with-everything",
        action="store_true",
        help="also accept the loss of domains' disks that were files of the node",
    )


def _declare_init(parser: Parser) -> None:
    _declare_member(parser, "hypervisor,storage,voter")
    parser.add_argument("--cluster", metavar="NAME", default="veery", help="the cluster's name (veery)")


def _declare_join(parser: Parser) -> None:
    parser.add_argument(
        "token", metavar="TOKEN@ADDRESS", help="the output of veery node token on a node of the cluster"
    )
    _declare_member(parser, "hypervisor,voter")


def _declare_version(parser: Parser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="also print the version of each node's veeryd")


VERBS: dict[str, Verb] = {
    "node list": Verb(
        run=_list,
        declare=_declare_nothing,
        about="""
Lists the nodes of the cluster. The columns include the address and the roles of a node, and whether its lease is alive.
State is present, absent, or the state of its fence or drain. Level is the level that its version supports. Up is how
long its veeryd has run.""",
        examples="veery node list",
        json=True,
    ),
    "node show": Verb(
        run=_show,
        declare=_declare_show,
        about="Prints the details of one node: addresses and ports, driver, initiator name.",
        examples="veery node show test1",
        json=True,
    ),
    "node token": Verb(
        run=_token,
        declare=_declare_nothing,
        about="""
Creates a token and prints it as TOKEN@ADDRESS. One new node can join with it within an hour. The token becomes invalid
when the node that created it is removed from the cluster.""",
        examples="veery node token",
        json=True,
    ),
    "token list": Verb(
        run=_tokens,
        declare=_declare_nothing,
        about="Lists the unused tokens: the node that created each token, and how long it is valid.",
        examples="veery token list",
        json=True,
    ),
    "token revoke": Verb(
        run=_revoke_token,
        declare=_declare_revoke_token,
        about="Revokes a token: no node can join with it any more.",
        examples="veery token revoke 5d41402abc4b",
    ),
    "node leave": Verb(
        run=_leave,
        declare=_declare_leave,
        about="""
Removes a node from the cluster, with its vote in the store, its access to the targets, and its record. The node must
run no domains and hold no volumes. Stop its veeryd afterwards, and remove its state folder before it joins again.""",
        examples="veery node leave test3",
    ),
    "node forget": Verb(
        run=_forget,
        declare=_declare_forget,
        about="""
Removes a node that is gone for good from the cluster, with its vote in the store, its access to the targets, its
records and its fence. The other nodes no longer accept its certificate. The domains that it owned can then start
elsewhere, so the node must be proven off (by a fence, or by `veery fence confirm`).

veery refuses this while the node is present. It also refuses if volumes or disk files would be lost with the node, and
names all of them. A domain that lost a disk keeps its record, but never starts again.""",
        examples="veery node forget test3\nveery node forget stor2 --with-volumes  # its volumes are lost\n"
        "veery node forget test3 --with-everything  # its disks are destroyed",
        json=True,
    ),
    "init": Verb(
        run=_init,
        declare=_declare_init,
        about="""
Creates a cluster: its certificate authority, this node's certificate, and a store (etcd) with one member. veeryd must
not be running; start it afterwards. No other set-up is needed.""",
        examples="veery init --name stor --address 172.16.31.3 --roles storage,voter\nsystemctl start veeryd",
    ),
    "join": Verb(
        run=_join,
        declare=_declare_join,
        about="""
Adds this machine to the cluster that the token is from. The node at ADDRESS issues the certificate and sends the
cluster's settings; the token proves the identity of that node. veeryd must not be running; start it afterwards.""",
        examples="veery join 7kd2...@172.16.31.3 --name test1 --address 172.16.31.1\nsystemctl start veeryd",
    ),
    "network list": Verb(
        run=_networks,
        declare=_declare_nothing,
        about="Lists the bridges of the node that domains can use, with their ports.",
        examples="veery --node test1 network list",
        json=True,
    ),
    "version": Verb(
        run=_version,
        declare=_declare_version,
        about="Prints the version of this command. With -a it also prints the version and level of each node's veeryd.",
        examples="veery version -a",
    ),
}
