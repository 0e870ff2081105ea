"""sysrq, trigger, dump-core: orders that reach a guest which answers nothing else."""

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
        raise Usage("give one letter or digit", "sysrq")
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
        raise Refused(f"QEMU gives no {args.what} to a domain", hint="nmi and power are what it gives; veery reboot")
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
    parser.add_argument("letter", metavar="LETTER", help="as behind Alt-SysRq: s, u, b, ...")


def _declare_trigger(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument(
        "what", metavar="TRIGGER", choices=("nmi", "reset", "init", "power", "sleep", "s3resume"), help="nmi or power"
    )
    parser.add_argument("vcpu", metavar="VCPU", nargs="?", default="", help="xl's; under QEMU every processor gets it")


def _declare_dump(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("file", metavar="FILE", help="where to write it, on the domain's node")


_XEN = "On a Xen node the real xl carries this out."

VERBS: dict[str, Verb] = {
    "sysrq": Verb(
        run=_sysrq,
        declare=_declare_sysrq,
        about=f"""
Sends a magic SysRq letter to the guest's kernel: under QEMU as a break on its serial console and the letter. The
kernel must have its console on ttyS0 and allow the letter (kernel.sysrq). {_XEN}""",
        examples="veery sysrq busybox s\nveery sysrq busybox b   # reboots without syncing",
    ),
    "trigger": Verb(
        run=_trigger,
        declare=_declare_trigger,
        about=f"""
Gives the domain a non-maskable interrupt (nmi), or presses its power button (power). The other triggers of xl are
Xen's. {_XEN}""",
        examples="veery trigger busybox nmi",
    ),
    "dump-core": Verb(
        run=_dump,
        declare=_declare_dump,
        about=f"""
Writes the domain's memory to a file, an ELF core that crash(8) and gdb read under QEMU. The domain stands still
while it is written, and goes on then. {_XEN}""",
        examples="veery dump-core busybox /var/tmp/busybox.core",
    ),
}
