"""cd-insert and cd-eject: change the medium in a domain's CD-ROM drive."""

from __future__ import annotations

from argparse import Namespace

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.client.http import domain_path
from veery.errors import Refused

_DEADLINE_S = 120.0


def _insert(session: Session, args: Namespace) -> int:
    from veery.config.disk import parse_disk
    from veery.model.codec import plain

    what = args.medium if "=" in args.medium else f"target={args.medium}"
    if not what.startswith(("volume=", "target=")):
        raise Refused(
            f"{args.medium!r} is neither a file nor volume=NAME", hint="give the path of a file, or volume=NAME"
        )
    disk = parse_disk(f"format=raw,vdev={args.device},access=ro,devtype=cdrom,{what}")
    return _change(session, args, plain(disk))


def _eject(session: Session, args: Namespace) -> int:
    return _change(session, args, None)


def _change(session: Session, args: Namespace, disk: object) -> int:
    path = domain_path(session.domain(args.domain), "cd")
    session.client.post(path, {"vdev": args.device, "disk": disk}, deadline=_DEADLINE_S)
    return 0


def _declare_eject(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("device", metavar="VDEV", help="the drive, such as hdc in the domain file")


def _declare_insert(parser: Parser) -> None:
    _declare_eject(parser)
    parser.add_argument("medium", metavar="FILE|volume=NAME", help="an image on the domain's node, or a volume")


VERBS: dict[str, Verb] = {
    "cd-insert": Verb(
        run=_insert,
        declare=_declare_insert,
        about="""
Inserts a medium into a CD-ROM drive that the domain was created with. veery ejects the previous medium first, even if
the guest has locked the tray, as xl does. The record of the domain stores the medium.

With an image on the node's own disk the domain cannot leave the node until the image is ejected. A volume, or a file on
a filesystem that the nodes share, does not bind the domain.""",
        examples="""
veery cd-insert busybox hdc /var/lib/images/debian.iso
veery cd-insert busybox hdc volume=debian-iso""",
    ),
    "cd-eject": Verb(
        run=_eject,
        declare=_declare_eject,
        about="Ejects the medium of a CD-ROM drive, even if the guest has locked the tray. The drive stays.",
        examples="veery cd-eject busybox hdc",
    ),
}
