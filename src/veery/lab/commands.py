"""`veery lab ...`: the lab's command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from veery.client.address import lab_folder
from veery.errors import Refused
from veery.lab import hosts, lock
from veery.lab.plan import CLIENT, DRIVERS, SWITCH, plan
from veery.lab.services import Lab
from veery.lab.setup import Bar
from veery.lab.xen.node import Nested

_ABOUT = """\
A lab is a whole cluster inside network namespaces of this machine: the storage node stor
(172.16.31.3), the hypervisors test1 (.1), test2 (.2), test3 (.11) and so on, each with its bridge
xenbr0 and its veeryd, and a client outside (.100). Its addresses exist only in its namespaces.
Several labs with different names can run at the same time. All files of a lab are in
~/.cache/veery/lab/NAME, with a folder for each node's settings, state, sockets and logs."""

_EXAMPLES = """\
examples:
  veery lab up                          build the lab
  veery --node test1 list               send a command to a node's daemon
  veery lab exec test1 veery list       the same, from inside the node
  veery lab exec client busybox ping 172.16.31.1
  veery lab demo                        the whole experiment, in its own lab
  veery lab down"""


def main(words: list[str]) -> int:
    """Run `veery lab WORDS...`; return the exit status."""
    arguments = _parser().parse_args(words)
    result: int = arguments.act(arguments)
    return result


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="veery lab", description=_ABOUT, epilog=_EXAMPLES, formatter_class=form, parents=[_common()]
    )
    parser.set_defaults(lab=os.environ.get("VEERY_LAB") or "", json=False)
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs")

    def verb(name: str, act: object, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", parents=[_common()])
        made.set_defaults(act=act)
        return made

    up = verb("up", _up, "build the lab and start its services; it stays until veery lab down")
    up.add_argument("--nodes", type=int, default=2, metavar="N", help="number of hypervisors, in addition to stor (2)")
    up.add_argument(
        "--storages", type=int, default=1, metavar="N", help="number of storage nodes: stor, stor2 and so on (1)"
    )
    verb("down", _down, "remove the lab with everything in it")
    verb("status", _status, "show each node's address and its running programs")
    run = verb("exec", _exec, "run a command inside a node, or inside client or switch")
    run.add_argument("node", metavar="NODE")
    run.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")
    demo = verb("demo", _demo, "run the whole experiment in its own lab, and remove the lab")
    for each in (up, demo):
        each.add_argument(
            "--driver", choices=DRIVERS, default="qemu", help="xen: the hypervisors are nested Xen hosts (qemu)"
        )
    return parser


def _common() -> argparse.ArgumentParser:
    """Return the options before or after the verb. Each parser needs a new object: set_defaults changes it."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--lab", metavar="NAME", default=argparse.SUPPRESS, help="name of the lab (default: VEERY_LAB, or lab)"
    )
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    return common


def _up(arguments: Namespace) -> int:
    name, bar, begun = arguments.lab or "lab", Bar("lab"), time.monotonic()
    record = lock.read(name)
    if record is not None and record.stays and hosts.stands(name):
        asked = (arguments.nodes, arguments.storages, arguments.driver)
        if (record.hypervisors, record.storages, record.driver) != asked:
            raise Refused(
                f"lab {name} is up with {record.hypervisors} {record.driver} hypervisors"
                f" and {record.storages} storage nodes",
                hint=f"veery lab down --lab {name} first",
            )
        bar.end(f"{name} is up already")
        return 0

    async def build() -> Lab:
        await hosts.sweep(lab_folder(name).parent)
        asked = {"hypervisors": arguments.nodes, "storages": arguments.storages, "driver": arguments.driver}
        return await Lab.up(name, **asked, stays=True, report=bar)

    lab = asyncio.run(build())
    lab.leave()
    bar.end(f"{name} is up after {time.monotonic() - begun:.1f} s")
    return _status(arguments)


def _down(arguments: Namespace) -> int:
    name = arguments.lab or "lab"
    if lock.read(name) is None and not hosts.stands(name) and not lab_folder(name).exists():
        raise Refused(f"there is no lab {name}", hint=f"labs here: {', '.join(lock.known()) or 'none'}")
    held = lock.LabLock(name)
    record = lock.read(name)
    folder = Path(record.folder) if record else lab_folder(name)
    asyncio.run(hosts.remove(name, folder))
    held.forget()
    sys.stderr.write(f"lab: {name} is removed\n")
    return 0


def _status(arguments: Namespace) -> int:
    name = arguments.lab or "lab"
    record = lock.read(name)
    if record is None or not hosts.stands(name):
        raise Refused(f"lab {name} is not up", hint="veery lab up")
    drawn = plan(name, record.hypervisors, record.storages, record.driver)
    rows = [
        {
            "node": node.name,
            "address": node.address,
            "roles": [role.value for role in node.roles],
            "running": sorted(member.program for member in hosts.members_of(drawn, node.name)),
            "settings": str(drawn.settings(node.name)),
        }
        for node in drawn.nodes
    ]
    if arguments.json:
        print(json.dumps({"lab": name, **asdict(record), "nodes": rows}, indent=2))
        return 0
    for row in rows:
        print(f"{row['node']:<8}{row['address']:<15}{' '.join(row['running']) or 'nothing runs'}")
    print(f"folder  {drawn.folder}")
    return 0


def _exec(arguments: Namespace) -> int:
    name = arguments.lab or "lab"
    record = lock.read(name)
    if record is None or not hosts.stands(name):
        raise Refused(f"lab {name} is not up", hint="veery lab up")
    if not arguments.command:
        raise Refused("no command given", hint="veery lab exec NODE COMMAND [ARGUMENT...]")
    drawn = plan(name, record.hypervisors, record.storages, record.driver)
    if arguments.node not in (CLIENT, SWITCH):
        drawn.node(arguments.node)
    environ = {**os.environ, **hosts.environ(drawn, arguments.node)}
    # ip(8) execs the command, so terminal, signals and exit status are the command's own. Unlike nsenter, ip(8) also
    # mounts the namespace's /sys.
    words = ["ip", "netns", "exec", drawn.namespace(arguments.node), *arguments.command]
    if drawn.nested(arguments.node):
        words = [str(word) for word in Nested(drawn, drawn.node(arguments.node)).enter(arguments.command)]
    sys.stdout.flush()
    os.execvpe(words[0], words, environ)


def _demo(arguments: Namespace) -> int:
    from veery.lab.demo import run

    return run(arguments.lab or "demo", as_json=arguments.json, driver=arguments.driver)
