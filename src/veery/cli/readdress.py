"""Changes to a member of the cluster: node readdress, node storage."""

from __future__ import annotations

from argparse import Namespace
from urllib.parse import quote

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage
from veery.errors import Refused

READDRESS_DEADLINE_S = 300.0
ROLE_DEADLINE_S = 60.0


def _readdress(session: Session, args: Namespace) -> int:
    networks = bool(args.storage_address or args.migration_address)
    if networks == bool(args.address):
        raise Usage("give a new address, or --storage-address, --migration-address or both", "node readdress")
    if networks:
        return _networks(session, args)
    path, order = f"/v1/nodes/{quote(args.name, safe='')}/readdress", {"address": args.address, "plan": args.plan}
    answer = session.client.post(path, order, deadline=READDRESS_DEADLINE_S)
    if session.json:
        session.print_json(answer)
    else:
        print(*answer["steps"], *(f"refused: {line}" for line in answer["refusals"]), sep="\n")
    return 1 if answer["refusals"] else 0


def _networks(session: Session, args: Namespace) -> int:
    """Change the addresses of this machine's node on other networks. veeryd reads them from veery.toml at its start."""
    from veery.cli import membersettings
    from veery.model.node import Role

    node = session.client.get("/v1/host")["node"]
    if session.node or node["name"] != args.name:
        raise Refused(
            f"these options change veery.toml of this machine, and this is not {args.name}",
            hint=f"run the command on {args.name}, without --node",
        )
    roles = [Role(role) for role in node["roles"] if role in tuple(Role)]
    change = membersettings.plan(session.settings, roles, args, "node readdress", replacing=True)
    steps = [f"{change.path}: {each}" for each in change.added if change.text] + ["systemctl restart veeryd"]
    used = _used(session, args.name) if args.storage_address else []
    if used:
        session.note(
            f"veery: volumes of {args.name} are in use by {', '.join(used)}: keep the old address until those domains "
            "have moved or restarted"
        )
    if not args.plan:
        membersettings.write(change)
    if session.json:
        session.print_json({"refusals": [], "steps": steps})
    else:
        print(*(steps if args.plan else [*steps[:-1], f"next: {steps[-1]}"]), sep="\n")
    return 0


def _used(session: Session, name: str) -> list[str]:
    """Return the domains that use volumes of node `name`, each with its node."""
    rows = session.client.get("/v1/volumes")
    return sorted({user for row in rows if row["volume"]["node"] == name for user in row["used_by"] or ()})


def _storage(session: Session, args: Namespace) -> int:
    name = args.name or session.client.get("/v1/host")["node"]["name"]
    path, order = f"/v1/nodes/{quote(name, safe='')}/storage", {"on": args.what == "on"}
    answer = session.client.post(path, order, deadline=ROLE_DEADLINE_S)
    if session.json:
        session.print_json(answer)
        return 0
    print(f"Storage nodes: {', '.join(answer['nodes']) or 'none'}")
    if answer["warning"]:
        session.note(f"veery: {answer['warning']}")
    return 0


def _declare_storage(parser: Parser) -> None:
    parser.add_argument("what", metavar="on|off", choices=("on", "off"), help="give the role, or take it away")
    parser.add_argument(
        "name", metavar="NODE", nargs="?", default="", help="the node's name (default: the node that veery talks to)"
    )


def declare_networks(parser: Parser) -> None:
    """Add the options for a node's addresses on other networks than the cluster's."""
    parser.add_argument(
        "--storage-address",
        metavar="ADDRESS",
        default="",
        help="this node's address on the storage network (storage.address in veery.toml)",
    )
    parser.add_argument(
        "--migration-address",
        metavar="ADDRESS",
        default="",
        help="the address at which this node takes domains in (relocation.address in veery.toml)",
    )


def _declare(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="the node's name, as veery node list shows it")
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        nargs="?",
        default="",
        help="the new address, which its machine must already have",
    )
    declare_networks(parser)
    parser.add_argument("--plan", action="store_true", help="print the steps and the obstacles; change nothing")


VERBS: dict[str, Verb] = {
    "node readdress": Verb(
        run=_readdress,
        declare=_declare,
        about="""
Changes the address of a node while its domains keep running: in its certificate, its etcd member, its record, and the
portal of its volumes. First give the machine the new address in addition to the old one. Every present node must reach
the ports there.

veery refuses the change while domains use volumes of the node, and while a domain moves from or to the node. For a
voter it also refuses while another voter does not answer or a node is absent. If a step fails, veery undoes the change.

The node's veeryd restarts afterwards. Then remove the old address from the machine. Until that is done, `veery node
show` lists the old address as former.

With --storage-address or --migration-address the command runs on the node itself, and changes its veery.toml instead.
The new address counts from the next start of veeryd.""",
        examples="ip address add 172.16.40.2/16 dev eth0     # on test2\n"
        "veery node readdress test2 172.16.40.2 --plan\nveery node readdress test2 172.16.40.2\n"
        "veery node readdress test2 --storage-address 10.20.0.2     # on test2",
        failure="with --plan: there is an obstacle",
        json=True,
    ),
    "node storage": Verb(
        run=_storage,
        declare=_declare_storage,
        about="""
Gives a node the storage role, or takes the role away, while its domains keep running. A new storage node needs tgt and
a pool for the volumes (storage.pool in its veery.toml). Its veeryd restarts and starts tgtd. Then volumes can be
created there. A node that holds a volume keeps the role: first delete the volume, or move it with `veery volume
move`.""",
        examples="veery node storage on test3\nveery --node test3 volume create data 10G\nveery node storage off test3",
        json=True,
    ),
}
