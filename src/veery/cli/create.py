"""create: read a domain file and start the domain that it describes."""

from __future__ import annotations

from argparse import Namespace

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage, as_reading
from veery.errors import Refused

_START_DEADLINE_S = 180.0


def _create(session: Session, args: Namespace) -> int:
    if args.viewer or args.password:
        raise Refused("veery has no graphical console", hint="omit -V and -A; -c attaches to the serial console")
    words = [*args.words, *([args.defconfig] if args.defconfig else [])]
    files = [word for word in words if "=" not in word]
    if len(files) != 1:
        raise Usage("name one domain file" if not files else f"more than one domain file: {' '.join(files)}", "create")
    from veery.config.domain import find_domain_file, load_domain

    # xl exits with ERROR_FAIL for a missing file and for a failed start
    session.failure = 3 if session.tool == "xl" else 1
    path = find_domain_file(files[0])
    session.failure = 1
    if session.tool == "xm" and not args.quiet:
        print(f'Using config file "{path if path.is_absolute() else f"./{path}"}".')
    elif session.tool == "xl" and not args.quiet:
        session.note(f"Parsing config from {path}")
    loaded = load_domain(path, [word for word in words if "=" in word])
    for warning in loaded.warnings:
        session.note(f"{session.tool}: {warning}")
    if session.dry or args.dry:
        from veery.config.xljson import print_config

        text, left = print_config(loaded.spec, loaded.given)
        print(text, end="")
        if left:
            session.note(f"{session.tool}: the file sets keys for xl on a Xen node, not shown here: {', '.join(left)}")
        return 0
    session.failure = 3 if session.tool == "xl" else 1
    return _start(session, args, loaded.spec)


def _start(session: Session, args: Namespace, spec: object) -> int:
    from veery.model.codec import plain

    answer = session.client.post(
        "/v1/domains",
        {"spec": plain(spec), "paused": args.paused, "force": args.force},
        deadline=_START_DEADLINE_S,
    )
    reading = as_reading(answer["reading"])
    session.note_warnings(answer)
    if session.json:
        session.print_json(answer)
    elif session.tool != "xl" and not args.quiet:
        print(f"Started domain {reading.name} (id={reading.domid})", flush=True)
    if args.console:
        from veery.cli.lifecycle import attach

        return attach(session, reading)
    if args.foreground:
        from veery.cli.lifecycle import follow

        follow(session, reading)
    return 0


def _declare(parser: Parser) -> None:
    parser.add_argument(
        "words", metavar="FILE|KEY=VALUE", nargs="*", help="the domain file, and settings that override it"
    )
    parser.add_argument("-f", "--defconfig", metavar="FILE", default="", help="the domain file")
    parser.add_argument(
        "-c", "--console", action="store_true", help="attach to the console, from the first line of output"
    )
    parser.add_argument(
        "-p", "--paused", action="store_true", help="leave the domain paused before its first instruction"
    )
    parser.add_argument(
        "--force", action="store_true", help="start it also on a node that is sick or in quarantine (veery node health)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "-n", "--dryrun", dest="dry", action="store_true", help="print the configuration as xl does and start nothing"
    )
    parser.add_argument("-F", dest="foreground", action="store_true", help="wait until the domain has ended")
    parser.add_argument(
        "-d",
        "--debug",
        "-e",
        "--ignore-global-affinity-masks",
        dest="ignored",
        action="store_true",
        help="ignored, for xl's sake: veeryd watches the domain",
    )
    parser.add_argument("-V", "--vncviewer", dest="viewer", action="store_true", help="refused: veery has no graphics")
    parser.add_argument(
        "-A", "--vncviewer-autopass", dest="password", action="store_true", help="refused: veery has no graphics"
    )


VERBS: dict[str, Verb] = {
    "create": Verb(
        run=_create,
        declare=_declare,
        about="""
Starts the domain that FILE describes. FILE has the syntax of xm and xl (xl.cfg(5)). veery reads it and never executes
it. veery looks for a name without a slash in the current folder, then in /etc/xen. KEY=VALUE settings work as if they
were at the end of the file.

The domain gets a UUID and MAC addresses at its first start; later starts use the same ones. veery refuses the start
while a domain of this name runs anywhere in the cluster, and if anything that the domain needs is missing.""",
        examples="""
veery create busybox                       # ./busybox or /etc/xen/busybox
veery create -c /etc/xen/busybox memory=256
veery create -n busybox                    # what does the file mean?""",
        json=True,
        dry=True,
    ),
}
