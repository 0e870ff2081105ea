"""Upkeep of the store: cluster defrag, cluster backup, node restart."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.model.units import format_size

DEFRAG_S = 1800.0
RESTART_S = 120.0


def _defrag(session: Session, args: Namespace) -> int:
    rows = session.client.post("/v1/store/defragment", deadline=DEFRAG_S)
    if session.json:
        session.print_json(rows)
        return 0
    cells = [(row["name"], format_size(row["before"]), format_size(row["after"])) for row in rows]
    print(*tables.plain(("Voter", "Before", "After"), cells), sep="\n")
    return 0


def _backup(session: Session, args: Namespace) -> int:
    import asyncio

    from veery.config.settings import DEFAULT_PATH, load

    settings = load(Path(session.settings or os.environ.get("VEERY_SETTINGS") or DEFAULT_PATH))

    async def copy() -> int:
        from veery.cluster import identity, members, upkeep

        store = members.open_store(settings, identity.load(Path(settings.state)))
        try:
            return await upkeep.backup(store.gateway, Path(args.file))
        finally:
            await store.close()

    size = asyncio.run(copy())
    session.note(f"{args.file}: {format_size(size)}, whole; it holds the cluster's secrets: keep it as you keep keys")
    return 0


def _restart(session: Session, args: Namespace) -> int:
    session.client.post("/v1/etcd/restart", {"force": args.force}, deadline=RESTART_S)
    print("etcd was restarted and knows a leader")
    return 0


def _declare_nothing(parser: Parser) -> None:
    pass


def _declare_backup(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a new file")


def _declare_restart(parser: Parser) -> None:
    parser.add_argument("service", metavar="etcd", choices=("etcd",), help="what is restarted: etcd")
    parser.add_argument("--force", action="store_true", help="also where the store has no quorum meanwhile")


VERBS: dict[str, Verb] = {
    "cluster defrag": Verb(
        run=_defrag,
        declare=_declare_nothing,
        about="""
Makes room in the store: drops its history, then has one voter after the other write its file anew, and lets the store
take writes again where it was full (etcd's alarm NOSPACE). Every voter must answer. While a voter writes its file, it
answers nothing.""",
        examples="veery cluster defrag",
        failure="the store is still full",
        json=True,
    ),
    "cluster backup": Verb(
        run=_backup,
        declare=_declare_backup,
        about="""
Copies the store to a new file, which only root can read, and checks that the copy is whole. Run it as root on a node;
veeryd may be stopped, a voter must answer. The copy holds secrets: the key of the cluster's CA and the passwords of the
targets. Each voter also keeps a copy a day, seven of them, in STATE/backups. docs/hosts.md has the way back.""",
        examples="veery cluster backup /root/veery-store.db",
    ),
    "node restart": Verb(
        run=_restart,
        declare=_declare_restart,
        about="""
Ends etcd on the node that is spoken to, starts the one that is installed, and waits until it knows a leader. Domains
run on. It is refused where the other voters that answer are no majority: the store would decide nothing meanwhile.""",
        examples="veery node restart etcd\nveery --node test1 node restart etcd",
    ),
}
