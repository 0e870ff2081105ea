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

DEFRAG_DEADLINE_S = 1800.0
RESTART_DEADLINE_S = 120.0


def _defrag(session: Session, args: Namespace) -> int:
    rows = session.client.post("/v1/store/defragment", deadline=DEFRAG_DEADLINE_S)
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
    session.note(
        f"{args.file}: {format_size(size)}, complete; it contains the cluster's secrets: protect it like a private key"
    )
    return 0


def _restart(session: Session, args: Namespace) -> int:
    session.client.post("/v1/etcd/restart", {"force": args.force}, deadline=RESTART_DEADLINE_S)
    print("etcd was restarted and knows a leader")
    return 0


def _declare_nothing(parser: Parser) -> None:
    pass


def _declare_backup(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", help="the file to create")


def _declare_restart(parser: Parser) -> None:
    parser.add_argument("service", metavar="etcd", choices=("etcd",), help="the service to restart: etcd")
    parser.add_argument("--force", action="store_true", help="restart even if the store has no quorum meanwhile")


VERBS: dict[str, Verb] = {
    "cluster defrag": Verb(
        run=_defrag,
        declare=_declare_nothing,
        about="""
Frees space in the store. veery drops the history, then one voter after the other defragments its file. If the store was
full (etcd's alarm NOSPACE), it accepts writes again. Every voter must answer. A voter does not answer while it
defragments its file.""",
        examples="veery cluster defrag",
        failure="the store is still full",
        json=True,
    ),
    "cluster backup": Verb(
        run=_backup,
        declare=_declare_backup,
        about="""
Copies the store to a new file that only root can read, and checks that the copy is complete. Run it as root on a node.
veeryd may be stopped, but a voter must answer. The copy contains secrets: the key of the cluster's CA and the passwords
of the targets. Each voter also makes a daily copy in STATE/backups and keeps seven. docs/recovery.md describes how to
restore one.""",
        examples="veery cluster backup /root/veery-store.db",
    ),
    "node restart": Verb(
        run=_restart,
        declare=_declare_restart,
        about="""
Stops etcd on the node, starts the installed etcd, and waits until it knows a leader. Domains keep running. veery
refuses the restart if the other voters that answer are not a majority, because the store would have no quorum
meanwhile.""",
        examples="veery node restart etcd\nveery --node test1 node restart etcd",
    ),
}
