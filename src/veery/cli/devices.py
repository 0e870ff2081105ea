"""Verbs for a domain's disks and network interfaces: block-* and network-*."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from veery.cli import foreign, tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import NoDomain, Session, Usage, pick
from veery.client.http import domain_path
from veery.errors import Refused
from veery.model.domain import DiskSpec

_PLUG_DEADLINE_S = 120.0  # the guest takes part in hot-plugging


def _dry(session: Session, run: Callable[[Sequence[str]], tuple[int, str, str]], args: Namespace) -> int:
    """Run xl's dry run: print the JSON that xl prints for the spec, with xl's messages and exit status."""
    # As in xl, the domain must exist. Domain 0 always exists, so veery does not ask veeryd for it.
    if args.domain != "0":
        session.reading(args.domain)
    code, out, err = run(args.specs)
    for stream, text in ((sys.stderr, err), (sys.stdout, out)):
        stream.flush()
        stream.buffer.write(text.encode("utf-8", "surrogateescape"))
    return code


# ---- disks
def _attach_disk(session: Session, args: Namespace) -> int:
    if session.dry:
        from veery.config.xljson import dry_run_disk

        return _dry(session, dry_run_disk, args)
    if not args.specs:
        raise Usage("describe the disk to attach", "block-attach")
    from veery.config.disk import parse_disk
    from veery.model.codec import plain

    disk = parse_disk(*args.specs)
    path = domain_path(session.domain(args.domain), "disks")
    session.note_warnings(session.client.post(path, {"disk": plain(disk)}, deadline=_PLUG_DEADLINE_S))
    return 0


def _detach_disk(session: Session, args: Namespace) -> int:
    if args.force:
        raise Refused(
            "veery does not remove a disk by force while the guest uses it",
            hint=f"omit -f; veery destroy {args.domain} stops the domain",
        )
    path = domain_path(session.domain(args.domain), "disks", _vdev(session, args.domain, args.device))
    session.client.delete(path, deadline=_PLUG_DEADLINE_S)
    return 0


def _vdev(session: Session, domain: str, device: str) -> str:
    """Return the vdev that `device` names. Like xl and xm, accept the device number too (51712 for xvda)."""
    if not device.isdigit():
        return device
    from veery.config.disk import device_number

    for row in session.client.get(domain_path(session.domain(domain), "disks")):
        vdev: str = row["spec"]["vdev"]
        if device_number(vdev) == int(device):
            return vdev
    raise Refused(f"domain {domain} has no disk {device}", hint=f"veery block-list {domain} shows its disks")


def _list_disks(session: Session, args: Namespace) -> int:
    if (status := _by_xen(session, args, "block-list", tables.disks_in_xm)) is not None:
        return status
    rows, wrong = _devices(session, args.domains, "disks")
    if session.json or args.long:
        session.print_json([{"domid": domid, "disks": items} for domid, items in rows])
        return wrong
    from veery.model.codec import convert

    specs = ((domid, [convert(item["spec"], DiskSpec) for item in items]) for domid, items in rows)
    _print(tables.disks(specs, session.tool))
    return wrong


# ---- interfaces
def _attach_vif(session: Session, args: Namespace) -> int:
    if session.dry:
        from veery.config.xljson import dry_run_vif

        return _dry(session, dry_run_vif, args)
    from veery.config.vif import parse_vif
    from veery.model.codec import plain

    vif, warnings = parse_vif(",".join(args.specs))
    vif = replace(vif, filtered=not args.no_filter)
    for warning in warnings:
        session.note(f"veery: {warning}")
    path = domain_path(session.domain(args.domain), "vifs")
    session.note_warnings(session.client.post(path, {"vif": plain(vif)}, deadline=_PLUG_DEADLINE_S))
    return 0


def _detach_vif(session: Session, args: Namespace) -> int:
    session.client.delete(
        domain_path(session.domain(args.domain), "vifs", args.device.lower()), deadline=_PLUG_DEADLINE_S
    )
    return 0


def _list_vifs(session: Session, args: Namespace) -> int:
    if (status := _by_xen(session, args, "network-list", tables.vifs_in_xm)) is not None:
        return status
    rows, wrong = _devices(session, args.domains, "vifs")
    if session.json or args.long:
        session.print_json([{"domid": domid, "vifs": items} for domid, items in rows])
        return wrong
    from veery.model.codec import convert
    from veery.model.volume import AttachedVif

    vifs = ((domid, [convert(item, AttachedVif) for item in items]) for domid, items in rows)
    _print(tables.vifs(vifs, session.tool))
    return wrong


def _by_xen(session: Session, args: Namespace, verb: str, in_xm: Callable[[str], Iterable[str]]) -> int | None:
    """On a Xen node, print the devices as Xen's xl lists them, and return the exit status; elsewhere return None."""
    if session.json or args.long:
        return None
    if session.tool == "xm":
        for word in args.domains:
            session.reading(word)  # raises xm's own message and exit status
    answer = foreign.real_text(session, verb, args.domains)
    if answer is None:
        return None
    status, text = answer
    if session.tool == "veery" and len(args.domains) == 1 and len(text.splitlines()) < 2:
        session.reading(args.domains[0])  # raises an error that names the domain's node, if it runs elsewhere
    if session.tool == "xm":
        _print(in_xm(text))
    else:
        print(text, end="")
    return status


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _devices(session: Session, words: list[str], kind: str) -> tuple[list[tuple[int, Any]], int]:
    """Return (domid, devices) of each existing domain, and the exit status. The status is 1 if a domain of several
    does not exist: a line on stderr names it, and the others are still listed."""
    readings = session.readings()
    rows, wrong = [], 0
    for word in words:
        try:
            domid = pick(readings, word).domid
        except NoDomain as error:
            if len(words) == 1:
                raise
            session.note(f"veery: {error.message}")
            wrong = 1
        else:
            rows.append((domid, session.client.get(domain_path(str(domid), kind))))
    return rows, wrong


# ---- arguments
def _declare_list(parser: Parser) -> None:
    parser.add_argument("domains", metavar="DOMAIN", nargs="+", help="names, ids or UUIDs")
    parser.add_argument("-l", "--long", action="store_true", help="the same as --json")


def _declare_attach_disk(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("specs", metavar="SPEC", nargs="*", help="the disk, in one argument or several")


def _declare_attach_vif(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument(
        "specs", metavar="KEY=VALUE", nargs="*", help="keys of vif in a domain file (default: default bridge)"
    )
    parser.add_argument("--no-filter", action="store_true", help="let the guest send from any MAC and IP address")


def _declare_detach_disk(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("device", metavar="VDEV", help="the disk: a name such as xvdb, or its number in block-list")
    parser.add_argument("-f", "--force", action="store_true", help="refused: veery does not remove a disk by force")


def _declare_detach_vif(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("device", metavar="DEVICE", help="its MAC address, or its index in network-list (0, 1, ...)")
    parser.add_argument("-f", "--force", action="store_true", help="ignored, for xm's sake")


VERBS: dict[str, Verb] = {
    "block-list": Verb(
        run=_list_disks,
        declare=_declare_list,
        about="""
Prints the disks of one or more domains in xl's columns. Vdev is the device number (51712 is xvda). BE-path is the
backing: a file, a device, or volume:NAME. evt-ch and ring-ref exist on Xen only; elsewhere they are -1.""",
        examples="veery block-list busybox\nveery block-list --json busybox",
        json=True,
    ),
    "block-attach": Verb(
        run=_attach_disk,
        declare=_declare_attach_disk,
        about="""
Plugs a disk into a running domain. SPEC has the syntax of a disk in a domain file (xl-disk-configuration(5)):
TARGET,FORMAT,VDEV,ACCESS, or key=value pairs in one argument or several. volume=NAME attaches a volume of the cluster.
With -N before the verb, veery attaches nothing and prints xl's JSON of SPEC.""",
        examples="""
veery block-attach busybox volume=data,vdev=xvdb
veery block-attach busybox /var/lib/disks/data.raw,raw,xvdb,rw
veery -N block-attach 0 /dev/vg/guest,raw,xvdb,rw   # what does it mean?""",
        dry=True,
    ),
    "block-detach": Verb(
        run=_detach_disk,
        declare=_declare_detach_disk,
        about="Unplugs a disk. The guest must release the disk first. Otherwise the disk stays and the command fails.",
        examples="veery block-detach busybox xvdb",
    ),
    "network-list": Verb(
        run=_list_vifs,
        declare=_declare_list,
        about="""
Prints the network interfaces of one or more domains in xl's columns. BE-path is the bridge and the host's interface.
evt-ch and the ring references exist on Xen only; elsewhere they are -1.""",
        examples="veery network-list busybox",
        json=True,
    ),
    "network-attach": Verb(
        run=_attach_vif,
        declare=_declare_attach_vif,
        about="""
Plugs a network interface into a running domain. The keys are those of xl-network-configuration(5): bridge, mac, model,
vifname, rate, mtu and so on. Without mac= veery generates a stable address (00:16:3e...). With -N before the verb,
veery attaches nothing and prints xl's JSON of the interface.""",
        examples="veery network-attach busybox bridge=xenbr0\nveery -N network-attach 0 bridge=xenbr0 rate=10Mb/s",
        dry=True,
    ),
    "network-detach": Verb(
        run=_detach_vif,
        declare=_declare_detach_vif,
        about="Unplugs a network interface, named by its MAC address or by its index in network-list.",
        examples="veery network-detach busybox 00:16:3e:12:34:56\nveery network-detach busybox 1",
    ),
}
