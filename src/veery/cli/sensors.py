"""sensors: judge what a node's hardware and kernel report."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session

JSON_FIELDS = ("sensor", "part", "level", "value", "sentence")


def _sensors(session: Session, args: Namespace) -> int:
    from veery.health import live, looking
    from veery.health.sign import Level

    found = looking.case(Path(args.case)) if args.case else live.look(Path("/"), live.run)
    if not args.case:
        for program, package in live.lacking(Path("/")):
            session.note(f"{program} is not installed, so its sensors read nothing (package {package})")
    if session.json:
        signs = [{name: getattr(each, name) for name in JSON_FIELDS} for each in found.signs]
        session.print_json({"level": found.level, "signs": signs})
        return 0
    shown = [each for each in found.signs if each.level is not Level.OK or not args.quiet]
    cells = [(each.sensor, each.part, each.level, each.value or "-", each.sentence) for each in shown]
    if cells:
        print(*tables.plain(("Sensor", "Part", "Level", "Value", "Meaning"), cells), sep="\n")
    print(f"level: {found.level}")
    return 0


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "--case", metavar="DIR", default="", help="judge the recorded tree in DIR instead of this machine"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print only what is not ok")


VERBS: dict[str, Verb] = {
    "sensors": Verb(
        run=_sensors,
        declare=_declare,
        about="""
Judges what this machine's hardware and kernel report: memory errors, machine checks, disks, temperatures, the
management controller, the kernel log, filesystems, arrays, interfaces, paths to the storage, the clock and Xen. Each
part has a level: ok, watch (an operator should look), bad (domains should leave) or unknown. The level of the machine
is the worst of them. veeryd reads the same sensors continuously: see `veery node health`.

The command needs root. Programs in /etc/veery/sensors.d are sensors too. Their exit status is 0 for ok, 1 for watch, 2
for bad, and any other for unknown. The first line of their output gives the reason.

With --case it judges a recorded tree, and runs no programs. DIR holds files by their path (sys/..., proc/...) and
outputs of programs by name, such as smartctl.sda.json, ipmi-sensors.csv, ipmitool-sel.txt, multipath-ll.txt,
xl-dmesg.txt and kmsg.txt. Sub-folders 0, 1, ... are successive readings. given.json in DIR describes the use of the
machine: uplinks, own_paths, host_disks and so on.""",
        examples="sudo veery sensors  # this machine\n"
        "veery sensors --case ./recorded\n"
        "veery sensors --case ./recorded --json  # for scripts",
        json=True,
    ),
}
