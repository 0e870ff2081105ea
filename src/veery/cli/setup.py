"""setup: find and install what this machine needs to be a node."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage
from veery.errors import Refused

if TYPE_CHECKING:
    from veery.config.settings import Settings
    from veery.node.setup import Facts, Step


def _setup(session: Session, args: Namespace) -> int:
    from veery.config.settings import DEFAULT_PATH, load
    from veery.node import setup

    settings = load(Path(session.settings or os.environ.get("VEERY_SETTINGS") or DEFAULT_PATH))
    facts = asyncio.run(_facts(settings, args))
    if args.rules:
        print(setup.rules([word.strip() for word in args.rules.split(",") if word.strip()], facts.bridges))
        return 0
    steps = setup.decide(facts)
    if not args.check and any(step.safe for step in steps):
        if os.geteuid():
            raise Refused("setup installs packages, and needs root for that", hint="veery setup --check")
        _say(session, [step for step in steps if step.safe], "done now")
        asyncio.run(setup.carry_out(facts))
        steps = setup.decide(asyncio.run(_facts(settings, args)))
    if session.json:
        session.print_json(steps)
    else:
        for step in steps:
            _show(step)
    return int(any(step.state is setup.State.MISSING for step in steps))


async def _facts(settings: Settings, args: Namespace) -> Facts:
    from veery.cluster import identity
    from veery.model.node import Role
    from veery.node import setup

    member = (Path(settings.state) / "identity.json").exists()
    if member and not args.roles:
        node = identity.load(Path(settings.state)).node
        return await setup.observe(settings, node.roles, driver=node.driver, member=True)
    words = [word.strip() for word in args.roles.split(",") if word.strip()] or [*Role]
    if wrong := [word for word in words if word not in tuple(Role)]:
        raise Usage(f"no role {wrong[0]!r}; roles are {', '.join(Role)}", "setup")
    roles = [Role(word) for word in words]
    return await setup.observe(settings, roles, driver=args.driver, member=member)


def _say(session: Session, steps: list[Step], when: str) -> None:
    for step in steps:
        for command in step.commands:
            session.note(f"{when}: {command}")
        for command in step.undo:
            session.note(f"  undo: {command}")


def _show(step: Step) -> None:
    print(f"{step.state:<8} {step.what}: {step.told}")
    for command in step.commands:
        print(f"           do: {command}")
    for command in step.undo:
        print(f"         undo: {command}")


def _declare(parser: Parser) -> None:
    parser.add_argument("--check", action="store_true", help="only print what is missing; change nothing")
    parser.add_argument(
        "--roles",
        metavar="ROLES",
        default="",
        help="list of hypervisor,storage,voter (default: the node's roles, or all)",
    )
    parser.add_argument(
        "--driver", metavar="NAME", default="qemu", choices=("qemu", "xen"), help="qemu (default) or xen"
    )
    parser.add_argument("--rules", metavar="ADDRESSES", default="", help="print firewall rules that accept these nodes")


VERBS: dict[str, Verb] = {
    "setup": Verb(
        run=_setup,
        declare=_declare,
        about="""
Checks what this machine needs to be a node: packages, no running etcd and tgtd of Debian, the systemd unit, the pool, a
bridge, the firewall. Without --check it installs the missing packages. Before that it masks etcd and tgtd, so that they
do not start. On hypervisors it creates the user veery-qemu, under which QEMU then runs. You can run it again at any
time.

For everything else it only prints the commands that do it and undo it: stop running daemons and change the bridge or
the firewall yourself. It never changes an address of this machine.""",
        examples="""
veery setup --check
veery setup --roles hypervisor,voter
veery setup --rules 172.16.31.1,172.16.31.2  # for /etc/nftables.conf""",
        failure="something is missing",
        json=True,
    ),
}
