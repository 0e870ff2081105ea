"""Groups of domains: group list, group set, group delete."""

from __future__ import annotations

from argparse import Namespace
from urllib.parse import quote

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage


def _list(session: Session, args: Namespace) -> int:
    rows = session.client.get("/v1/groups")
    if session.json:
        session.print_json(rows)
        return 0
    cells = [
        (
            *(row["name"], row["rule"]["kind"], "yes" if row["rule"]["strict"] else "no"),
            *(",".join(row["rule"]["nodes"]) or "all", ",".join(row["domains"]) or "-"),
        )
        for row in rows
    ]
    print(*tables.plain(("Group", "Kind", "Strict", "Nodes", "Domains"), cells), sep="\n")
    return 0


def _set(session: Session, args: Namespace) -> int:
    wanted: dict[str, object] = {"kind": args.kind, "strict": args.strict}
    if args.nodes is not None:
        wanted["nodes"] = [] if args.nodes == "all" else [name.strip() for name in args.nodes.split(",")]
    body = {name: value for name, value in wanted.items() if value is not None}
    if not body:
        raise Usage("say what: --apart, --together, --nodes, --strict or --loose", "group set")
    rule = session.client.post(f"/v1/groups/{quote(args.group, safe='')}", body)
    if session.json:
        session.print_json(rule)
    return 0


def _delete(session: Session, args: Namespace) -> int:
    session.client.delete(f"/v1/groups/{quote(args.group, safe='')}")
    return 0


def _declare_nothing(parser: Parser) -> None:
    pass


def _declare_set(parser: Parser) -> None:
    parser.add_argument("group", metavar="GROUP", help="its name")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--apart", dest="kind", action="store_const", const="apart", help="on different nodes (default)")
    kind.add_argument("--together", dest="kind", action="store_const", const="together", help="on one node")
    parser.add_argument("--nodes", metavar="N1,N2", help="the nodes on which they may run ('all': all)")
    strict = parser.add_mutually_exclusive_group()
    strict.add_argument("--strict", action="store_true", default=None, help="rather not at all than against the rule")
    strict.add_argument(
        "--loose", dest="strict", action="store_false", default=None, help="as far as it can be (default)"
    )


def _declare_group(parser: Parser) -> None:
    parser.add_argument("group", metavar="GROUP", help="its name")


VERBS: dict[str, Verb] = {
    "group list": Verb(
        run=_list,
        declare=_declare_nothing,
        about="""
Lists the groups that have a rule or domains. A group without a rule of its own is kept apart, not strictly.""",
        examples="veery group list",
        json=True,
    ),
    "group set": Verb(
        run=_set,
        declare=_declare_set,
        about="""
Says how the domains of a group lie on the nodes; `veery ha set DOMAIN POLICY --group GROUP` puts a domain into it. What
is not named stays as it was. The cluster keeps to it when it places a domain by itself: after a loss, in a drain. The
nodes hold always, apart and together as far as they can, or always with --strict. Domains that run already are not
moved for it, and a user's own create and migrate are not refused.""",
        examples="veery group set web --apart --strict\nveery group set gpu --nodes test1,test2",
        json=True,
    ),
    "group delete": Verb(
        run=_delete,
        declare=_declare_group,
        about="Takes a group's rule away, once no domain is in it.",
        examples="veery group delete web",
    ),
}
