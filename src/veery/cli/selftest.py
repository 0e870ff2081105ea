"""selftest kvm: run a small guest through a domain's life cycle on this machine, and print the figures."""

from __future__ import annotations

import json
import os
import platform
from argparse import Namespace
from pathlib import Path
from typing import Any

from veery.cli import tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage, refuse_domain_0
from veery.errors import Refused, VeeryError

ANSWER_MAX_BYTES = 4 << 20  # of another node's answer


def _selftest(session: Session, args: Namespace) -> int:
    import asyncio
    from dataclasses import replace

    from veery.node import selftest

    if bool(args.move) != bool(args.to):
        raise Usage("--move DOMAIN and --to NODE require each other", "selftest kvm")
    if args.move:
        return _move(session, args)
    if os.geteuid() != 0:
        raise Refused("the self-test does what veeryd does, and needs root", hint="sudo veery selftest kvm")
    theirs = _read(Path(args.compare)) if args.compare else None
    settings = _settings(session)
    release = platform.release()
    wishes = selftest.Wishes(
        kernel=Path(args.kernel or settings.image.kernel or f"/boot/vmlinuz-{release}"),
        modules=Path(args.modules or settings.image.modules or f"/lib/modules/{release}"),
        memory=args.memory,
    )
    qemu = replace(settings.qemu, accel="tcg") if args.tcg else settings.qemu
    answer = asyncio.run(selftest.run(qemu, wishes, session.note))
    if args.file:
        _write(Path(args.file), answer)
    if theirs is not None:
        return _compare(session, answer, theirs)
    if session.json or not args.file:
        session.print_json(answer)
    if not answer["good"]:
        failed: dict[str, Any] = next(
            (row for row in answer.get("steps", ()) if not row["good"]), answer["accelerator"]
        )
        session.note(f"{failed.get('step', 'accelerator')}: {failed.get('error', 'failed')}")
    return 0 if answer["good"] else 1


def _move(session: Session, args: Namespace) -> int:
    import veery
    from veery.cli import trialmove
    from veery.node.kvmfacts import facts
    from veery.node.selftest import FORMAT

    refuse_domain_0([args.move])
    answer: dict[str, Any] = {"format": FORMAT, "veery": veery.__version__, "host": facts()}
    answer |= trialmove.there_and_back(session, args.move, args.to)
    if args.file:
        _write(Path(args.file), answer)
    if session.json or not args.file:
        session.print_json(answer)
    if (failed := trialmove.failure(answer)) is not None:
        raise failed
    return 0


def _settings(session: Session) -> Any:
    from veery.config.settings import DEFAULT_PATH, load

    return load(Path(session.settings or os.environ.get("VEERY_SETTINGS") or DEFAULT_PATH))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(ANSWER_MAX_BYTES))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}", hint="on the other node: veery selftest kvm --output FILE") from error
    if not isinstance(found, dict):
        raise Refused(f"{path}: not the answer of a self-test")
    return found


def _write(path: Path, answer: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(answer, indent=2) + "\n")
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", hint="give another file to --output") from error


def _compare(session: Session, mine: dict[str, Any], theirs: dict[str, Any]) -> int:
    from veery.node import kvmcompare

    try:
        found = kvmcompare.differences(mine, theirs)
    except VeeryError:
        session.print_json(mine)
        raise
    rows = [(each.what, each.here, each.there, "barred" if each.bars else "-", each.told) for each in found]
    if session.json:
        keys = ("what", "here", "there", "move", "told")
        session.print_json([dict(zip(keys, row, strict=True)) for row in rows])
    elif rows:
        print(*tables.plain(("What", "Here", "There", "Move", "Meaning"), rows), sep="\n")
    session.note(f"the newest machine type of both: {kvmcompare.newest_machine(mine, theirs) or 'none'}")
    return int(any(each.bars for each in found))


def _declare(parser: Parser) -> None:
    parser.add_argument("-o", "--output", dest="file", metavar="FILE", default="", help="write the answer to FILE")
    parser.add_argument("--compare", metavar="FILE", default="", help="compare with another node's answer")
    parser.add_argument(
        "--move", metavar="DOMAIN", default="", help="instead, move this domain to another node and back"
    )
    parser.add_argument("--to", metavar="NODE", default="", help="the other node")
    parser.add_argument("--tcg", action="store_true", help="run under software emulation")
    parser.add_argument("--memory", metavar="MIB", type=int, default=512, help="memory of the guest (512)")
    parser.add_argument("--kernel", metavar="FILE", default="", help="kernel of the guest (default: this machine's)")
    parser.add_argument("--modules", metavar="DIR", default="", help="lib/modules/VERSION of this kernel")


VERBS: dict[str, Verb] = {
    "selftest kvm": Verb(
        run=_selftest,
        declare=_declare,
        about="""
Tests the life cycle of a domain on this machine, in about a minute. First it checks whether KVM runs a guest, and if
not, why. Then it boots a small guest of its own, attaches and detaches a disk, pauses the guest, saves and restores it,
and moves it to a second driver on this machine and back. It needs no cluster, and does not affect domains.

It prints one JSON object: the processor, the kernel, the capabilities of KVM and QEMU, and the duration of each step.
The object names no machine, address or user, and contains no secrets, so you can send it to others.

With --compare it shows what would prevent moves to the machine that wrote FILE.

With --move it moves a domain of this node to the node of --to and back, as `veery migrate` does, each time after a
plan. The object then has both plans and both reports, without the names of the domain and the nodes.""",
        examples="veery selftest kvm -o here.json\n"
        "veery selftest kvm --compare there.json  # from another node\n"
        "veery selftest kvm --move web --to node2 -o moves.json\n"
        "veery selftest kvm --tcg  # on a machine without KVM",
        failure="a step failed, or a difference prevents moves",
        json=True,
    ),
}
