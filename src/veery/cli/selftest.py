"""selftest kvm: a small guest that goes through a domain's life on this machine; the figures, to be sent in."""

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

ANSWER_MAX = 4 << 20  # bytes of another node's answer


def _selftest(session: Session, args: Namespace) -> int:
    import asyncio
    from dataclasses import replace

    from veery.node import selftest

    if bool(args.move) != bool(args.to):
        raise Usage("--move DOMAIN and --to NODE go together", "selftest kvm")
    if args.move:
        return _move(session, args)
    if os.geteuid() != 0:
        raise Refused("only root may try what veeryd does", hint="sudo veery selftest kvm")
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
            found = json.loads(file.read(ANSWER_MAX))
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}", hint="on the other node: veery selftest kvm --output FILE") from error
    if not isinstance(found, dict):
        raise Refused(f"{path}: not an answer of a self-test")
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
        "--move", metavar="DOMAIN", default="", help="move this domain to another node and back instead"
    )
    parser.add_argument("--to", metavar="NODE", default="", help="the other node")
    parser.add_argument("--tcg", action="store_true", help="rehearse under software emulation")
    parser.add_argument("--memory", metavar="MIB", type=int, default=512, help="of the guest (default: 512)")
    parser.add_argument("--kernel", metavar="FILE", default="", help="the guest's kernel; this machine's if left away")
    parser.add_argument("--modules", metavar="DIR", default="", help="its lib/modules/VERSION")


VERBS: dict[str, Verb] = {
    "selftest kvm": Verb(
        run=_selftest,
        declare=_declare,
        about="""
Tries on this machine what a domain goes through, in about a minute: whether KVM runs a guest, and why not; then a
small guest of its own is booted, gets a disk and loses it, stands still, is saved and restored, and moves to a second
driver on this machine and back. It needs no cluster, and no domain notices it. What it prints is one JSON: the
processor, the kernel, KVM's and QEMU's abilities, and how long each step took. It names no machine, no address and no
user, and holds no secrets, so you can send it in.

With --compare it shows what would stand in the way of moves to the machine that FILE is of.

With --move it moves a domain of this node to the node after --to and back, as `veery migrate` does, each time after a
plan. The answer then has both plans and both reports; the domain and the nodes have no names in it.""",
        examples="veery selftest kvm -o here.json\n"
        "veery selftest kvm --compare there.json  # of another node\n"
        "veery selftest kvm --move web --to node2 -o moves.json\n"
        "veery selftest kvm --tcg  # a rehearsal, where there is no KVM",
        failure="a step failed, or moves are barred",
        json=True,
    ),
}
