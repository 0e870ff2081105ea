"""sysrq, trigger, dump-core: verbs for a guest that does not react to anything else."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from veery.cli import foreign
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage
from veery.client.http import domain_path
from veery.errors import Refused

_DEADLINE_S = 60.0
_DUMP_DEADLINE_S = 1800.0


def _sysrq(session: Session, args: Namespace) -> int:
    if len(args.letter) != 1 or not args.letter.isascii() or not args.letter.isalnum():
        raise Usage("LETTER must be one letter or digit", "sysrq")
    if (status := foreign.on_xen(session, "sysrq", [args.domain, args.letter])) is not None:
        return status
    path = domain_path(session.domain(args.domain), "sysrq")
    session.client.post(path, {"letter": args.letter}, deadline=_DEADLINE_S)
    return 0


def _trigger(session: Session, args: Namespace) -> int:
    words = [args.domain, args.what, *([args.vcpu] if args.vcpu else [])]
    if (status := foreign.on_xen(session, "trigger", words)) is not None:
        return status
    if args.what not in ("nmi", "power"):
        raise Refused(
            f"QEMU has no trigger {args.what}", hint="give nmi or power; veery reboot DOMAIN restarts the guest"
        )
    path = domain_path(session.domain(args.domain), "trigger")
    session.client.post(path, {"what": args.what}, deadline=_DEADLINE_S)
    return 0


def _dump(session: Session, args: Namespace) -> int:
    if (status := foreign.on_xen(session, "dump-core", [args.domain, args.file])) is not None:
        return status
    path = domain_path(session.domain(args.domain), "dump")
    session.client.post(path, {"path": str(Path(args.file).absolute())}, deadline=_DUMP_DEADLINE_S)
    return 0


def _declare_sysrq(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("letter", metavar="LETTER", help="the key after Alt-SysRq: s, u, b, ...")


def _declare_trigger(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument(
        "what", metavar="TRIGGER", choices=("nmi", "reset", "init", "power", "sleep", "s3resume"), help="nmi or power"
    )
    parser.add_argument("vcpu", metavar="VCPU", nargs="?", default="", help="for xl; QEMU sends it to every processor")


def _declare_dump(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("file", metavar="FILE", help="file to write, on the domain's node")


_XEN = "On a Xen node Xen's own xl carries this out."

VERBS: dict[str, Verb] = {
    "sysrq": Verb(
        run=_sysrq,
        declare=_declare_sysrq,
        about=f"""
Sends a magic SysRq key to the guest's kernel. Under QEMU veeryd sends a break and the letter on the serial console. The
kernel must have its console on ttyS0 and allow the key (kernel.sysrq). {_XEN}""",
        examples="veery sysrq busybox s\nveery sysrq busybox b   # reboots without syncing",
    ),
    "trigger": Verb(
        run=_trigger,
        declare=_declare_trigger,
        about=f"""
Sends a non-maskable interrupt (nmi) to the domain, or presses its power button (power). xl's other triggers exist on
Xen only. {_XEN}""",
        examples="veery trigger busybox nmi",
    ),
    "dump-core": Verb(
        run=_dump,
        declare=_declare_dump,
        about=f"""
Writes the domain's memory to a file. Under QEMU this is an ELF core for crash(8) and gdb. The domain is paused while
the file is written, and resumes then. {_XEN}""",
        examples="veery dump-core busybox /var/tmp/busybox.core",
    ),
}
