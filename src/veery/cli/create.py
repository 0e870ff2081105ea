"""create: read a domain file, start what it describes."""

from __future__ import annotations

from argparse import Namespace

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage, as_reading
from veery.errors import Refused

_START = 180.0  # seconds


def _create(session: Session, args: Namespace) -> int:
    if args.viewer or args.password:
        raise Refused("veery shows no graphics", hint="leave -V and -A away; -c shows the console")
    words = [*args.words, *([args.defconfig] if args.defconfig else [])]
    files = [word for word in words if "=" not in word]
    if len(files) != 1:
        raise Usage("give one domain file" if not files else f"more than one domain file: {' '.join(files)}", "create")
    from veery.config.domain import find_domain_file, load_domain

    session.failure = (
        3 if session.tool == "xl" else 1
    )  # xl's ERROR_FAIL, for a file that is not there and for a start that fails
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
            session.note(
                f"{session.tool}: set in the file, handed to xl on a Xen node, not shown here: {', '.join(left)}"
            )
        return 0
    session.failure = 3 if session.tool == "xl" else 1
    return _start(session, args, loaded.spec)


def _start(session: Session, args: Namespace, spec: object) -> int:
    from veery.model.codec import plain

    answer = session.client.post("/v1/domains", {"spec": plain(spec), "paused": args.paused}, deadline=_START)
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
        "words", metavar="FILE|KEY=VALUE", nargs="*", help="the domain file, and settings that stand above its own"
    )
    parser.add_argument("-f", "--defconfig", metavar="FILE", default="", help="the domain file, said so")
    parser.add_argument("-c", "--console", action="store_true", help="attach to the console from the first line on")
    parser.add_argument("-p", "--paused", action="store_true", help="leave it paused before its first instruction")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "-n", "--dryrun", dest="dry", action="store_true", help="print the configuration as xl does; start nothing"
    )
    parser.add_argument("-F", dest="foreground", action="store_true", help="return when the domain has ended")
    parser.add_argument(
        "-d",
        "--debug",
        "-e",
        "--ignore-global-affinity-masks",
        dest="ignored",
        action="store_true",
        help="accepted as xl has them; veeryd watches the domain",
    )
    parser.add_argument("-V", "--vncviewer", dest="viewer", action="store_true", help="refused: no graphics")
    parser.add_argument("-A", "--vncviewer-autopass", dest="password", action="store_true", help="refused: no graphics")


VERBS: dict[str, Verb] = {
    "create": Verb(
        run=_create,
        declare=_declare,
        about="""
Starts the domain that FILE describes, in the syntax of xm and xl (xl.cfg(5)); the file is read, never executed. A
bare name is looked up in the current folder, then in /etc/xen. KEY=VALUE settings count as if they stood at the
end of the file.

The domain gets a UUID and MAC addresses when it is first started; they are kept and used again. It is refused
when a domain of that name runs anywhere in the cluster, and when anything it needs is missing.""",
        examples="""
veery create busybox                       # ./busybox or /etc/xen/busybox
veery create -c /etc/xen/busybox memory=256
veery create -n busybox                    # what does the file mean?""",
        json=True,
        dry=True,
    ),
}
