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
        raise Usage("give --apart, --together, --nodes, --strict or --loose", "group set")
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
    parser.add_argument("group", metavar="GROUP", help="the group's name")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--apart", dest="kind", action="store_const", const="apart", help="on different nodes (default)")
    kind.add_argument("--together", dest="kind", action="store_const", const="together", help="on one node")
    parser.add_argument("--nodes", metavar="N1,N2", help="the nodes on which they may run, or all")
    strict = parser.add_mutually_exclusive_group()
    strict.add_argument(
        "--strict", action="store_true", default=None, help="never break the rule, even if a domain then cannot run"
    )
    strict.add_argument(
        "--loose", dest="strict", action="store_false", default=None, help="follow the rule where possible (default)"
    )


def _declare_group(parser: Parser) -> None:
    parser.add_argument("group", metavar="GROUP", help="the group's name")


VERBS: dict[str, Verb] = {
    "group list": Verb(
        run=_list,
        declare=_declare_nothing,
        about="""
Lists the groups that have a rule or domains. The default rule of a group is --apart --loose.""",
        examples="veery group list",
        json=True,
    ),
    "group set": Verb(
        run=_set,
        declare=_declare_set,
        about="""
Sets how the cluster distributes the domains of a group over the nodes. `veery ha set DOMAIN POLICY --group GROUP` adds
a domain to a group. Options that are not given keep their values.

The cluster follows the rule when it places a domain itself: after a node loss and in a drain. --nodes always applies.
--apart and --together apply where possible, or always with --strict. The cluster does not move running domains for a
rule, and a rule does not restrict the `create` and `migrate` of users.""",
        examples="veery group set web --apart --strict\nveery group set gpu --nodes test1,test2",
        json=True,
    ),
    "group delete": Verb(
        run=_delete,
        declare=_declare_group,
        about="Deletes the rule of a group. No domain may be in the group.",
        examples="veery group delete web",
    ),
}
