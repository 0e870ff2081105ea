"""sensors: what a node's hardware and kernel say of themselves."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session


def _sensors(session: Session, args: Namespace) -> int:
    from veery.health import looking
    from veery.health.sign import Level

    found = looking.case(Path(args.case))
    if session.json:
        session.print_json({"level": found.level, "signs": [dataclasses.asdict(each) for each in found.signs]})
        return 0
    shown = [each for each in found.signs if each.level is not Level.OK or not args.quiet]
    cells = [(each.sensor, each.part, each.level, each.value or "-", each.sentence) for each in shown]
    if cells:
        print(*tables.plain(("Sensor", "Part", "Level", "Value", "Meaning"), cells), sep="\n")
    print(f"level: {found.level}")
    return 0


def _declare(parser: Parser) -> None:
    parser.add_argument("--case", metavar="DIR", required=True, help="judge the recorded tree in DIR")
    parser.add_argument("-q", "--quiet", action="store_true", help="only what is not ok")


VERBS: dict[str, Verb] = {
    "sensors": Verb(
        run=_sensors,
        declare=_declare,
        about="""
Judges what a node's hardware and kernel say of themselves: memory errors, machine checks, disks, temperatures, the
management controller, the kernel's log, filesystems, arrays, interfaces, paths to the storage, the clock and Xen. Each
part has a level: ok, watch (look at it), bad (domains are better elsewhere) or unknown. The node's level is the worst.

DIR holds files by their path (sys/..., proc/...) and outputs of programs by their names, such as smartctl.sda.json,
ipmi-sensors.csv, ipmitool-sel.txt, multipath-ll.txt, xl-dmesg.txt and kmsg.txt. Sub-folders 0, 1, ... are readings one
after the other. given.json in DIR says what the node knows: uplinks, own_paths, host_disks and the like. Nothing of DIR
is run. veeryd does not act on these sensors yet.""",
        examples="veery sensors --case ./recorded\nveery sensors --case ./recorded --json  # for scripts",
        json=True,
    ),
}
