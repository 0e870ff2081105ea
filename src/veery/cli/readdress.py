"""Changes to a member of the cluster: node readdress, node storage."""

from __future__ import annotations

from argparse import Namespace
from urllib.parse import quote

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session

READDRESS_DEADLINE_S = 300.0
ROLE_DEADLINE_S = 60.0


def _readdress(session: Session, args: Namespace) -> int:
    path, order = f"/v1/nodes/{quote(args.name, safe='')}/readdress", {"address": args.address, "plan": args.plan}
    answer = session.client.post(path, order, deadline=READDRESS_DEADLINE_S)
    if session.json:
        session.print_json(answer)
    else:
        print(*answer["steps"], *(f"refused: {line}" for line in answer["refusals"]), sep="\n")
    return 1 if answer["refusals"] else 0


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


def _declare(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="the node's name, as veery node list shows it")
    parser.add_argument("address", metavar="ADDRESS", help="the new address, which its machine must already have")
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
show` lists the old address as former.""",
        examples="ip address add 172.16.40.2/16 dev eth0     # on test2\n"
        "veery node readdress test2 172.16.40.2 --plan\nveery node readdress test2 172.16.40.2",
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
