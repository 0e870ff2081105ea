"""What a node is in the cluster: node readdress, node storage."""

from __future__ import annotations

from argparse import Namespace
from urllib.parse import quote

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session

CHANGE_S = 300.0
ROLE_S = 60.0


def _readdress(session: Session, args: Namespace) -> int:
    path, order = f"/v1/nodes/{quote(args.name, safe='')}/readdress", {"address": args.address, "plan": args.plan}
    told = session.client.post(path, order, deadline=CHANGE_S)
    if session.json:
        session.print_json(told)
    else:
        print(*told["steps"], *(f"refused: {line}" for line in told["refusals"]), sep="\n")
    return 1 if told["refusals"] else 0


def _storage(session: Session, args: Namespace) -> int:
    name = args.name or session.client.get("/v1/host")["node"]["name"]
    path, order = f"/v1/nodes/{quote(name, safe='')}/storage", {"on": args.what == "on"}
    told = session.client.post(path, order, deadline=ROLE_S)
    if session.json:
        session.print_json(told)
        return 0
    print(f"Storage nodes: {', '.join(told['nodes']) or 'none'}")
    if told["warning"]:
        session.note(f"veery: {told['warning']}")
    return 0


def _declare_storage(parser: Parser) -> None:
    parser.add_argument("what", metavar="on|off", choices=("on", "off"), help="make it one, or none any more")
    parser.add_argument("name", metavar="NODE", nargs="?", default="", help="the node spoken to if left away")


def _declare(parser: Parser) -> None:
    parser.add_argument("name", metavar="NODE", help="its name, as veery node list shows it")
    parser.add_argument("address", metavar="ADDRESS", help="the new address, which its machine has already")
    parser.add_argument("--plan", action="store_true", help="print what would be done and what stands in the way")


VERBS: dict[str, Verb] = {
    "node readdress": Verb(
        run=_readdress,
        declare=_declare,
        about="""
Changes the address of a node while its domains run on: its certificate, its member of the store, its record, and the
portal of its volumes. Give the machine the new address first, beside the old one. Every present node must reach the
ports there. It is refused while domains use volumes of the node, while a domain moves from or to it, and on a voter
while another voter does not answer or a node is absent. What fails halfway is undone. The node's veeryd starts anew
afterwards. Take the old address from the machine then; veery node show tells that it is former until that is done.""",
        examples="ip address add 172.16.40.2/16 dev eth0     # on test2\n"
        "veery node readdress test2 172.16.40.2 --plan\nveery node readdress test2 172.16.40.2",
        failure="with --plan: something stands in the way",
        json=True,
    ),
    "node storage": Verb(
        run=_storage,
        declare=_declare_storage,
        about="""
Makes a node of the cluster a storage node, or none any more, while its domains run on. A new one needs tgt and a pool
for the volumes (storage.pool in its veery.toml). Its veeryd starts anew and starts tgtd; volumes can be made there from
then on. The role is not taken from a node that holds a volume: delete it, or move it with veery volume move.""",
        examples="veery node storage on test3\nveery --node test3 volume create data 10G\nveery node storage off test3",
        json=True,
    ),
}
