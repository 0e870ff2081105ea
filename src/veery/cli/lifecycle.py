"""Verbs that act on one domain, from console and shutdown to rename and mem-set."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session, Usage, as_reading
from veery.client.http import domain_path
from veery.errors import Failed, Refused, VeeryError
from veery.model.domain import DomainReading, DomainState

_MEMORY_DEADLINE_S = 3600.0  # to write or read all of a domain's memory
_DOMAIN = "a domain's name, id or UUID"


def _declare_domain(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help=_DOMAIN)


def _simple(action: str, *, deadline: float = 120.0) -> Callable[[Session, Namespace], int]:
    def run(session: Session, args: Namespace) -> int:
        session.client.post(domain_path(session.domain(args.domain), action), deadline=deadline)
        return 0

    return run


# ---- console
def attach(session: Session, domain: DomainReading, *, leave: str = "^]") -> int:
    """Attach the terminal to `domain`'s console. Print on stderr why the console ended."""
    from veery.client import console

    key = leave.encode()
    if len(leave) == 2 and leave[0] == "^":
        key = bytes([ord(leave[1].upper()) & 0x1F])
    why = console.attach(session.address, domain.uuid, leave=key)
    if why:
        session.note(f"\n[{_whereabouts(session, domain) or why}]")
    return 0


def _whereabouts(session: Session, domain: DomainReading) -> str:
    """Return a sentence on where `domain` is after its console ended; "" if it is still here or that is unknown."""
    try:
        here = any(item.uuid == domain.uuid for item in session.readings())
        nodes = {} if here else session.client.get("/v1/domains", cluster="1")["nodes"]
    except VeeryError:
        return ""
    for node, rows in nodes.items():
        if any(row["uuid"] == domain.uuid for row in rows):
            return f"domain {domain.name} moved to {node}"
    return "" if here else f"domain {domain.name} has ended"


def _console(session: Session, args: Namespace) -> int:
    if args.type not in {"pv", "serial"} or args.number:
        raise Refused("a domain has one console: the one the guest's kernel logs to", hint="omit -t and -n")
    return attach(session, session.reading(args.domain), leave=args.escape)


def _declare_console(parser: Parser) -> None:
    _declare_domain(parser)
    parser.add_argument("-e", "--escape", metavar="KEY", default="^]", help="key that detaches (^], which is Ctrl-])")
    parser.add_argument(
        "-t", dest="type", metavar="TYPE", default="pv", help="pv or serial, for xl's sake; both mean the same"
    )
    parser.add_argument(
        "-n", dest="number", metavar="NUMBER", type=int, default=0, help="console number; only 0 exists"
    )


# ---- shutdown, reboot
def _stop(action: str, doing: str) -> Callable[[Session, Namespace], int]:
    def run(session: Session, args: Namespace) -> int:
        if bool(args.domain) == args.all:
            raise Usage("give a domain, or -a for all domains", action)
        if args.all:
            chosen: Sequence[DomainReading] = [item for item in session.readings() if item.domid]
        else:
            chosen = [session.reading(args.domain)]
        refused: list[tuple[DomainReading, VeeryError]] = []
        for item in chosen:
            try:
                session.client.post(domain_path(item.uuid or str(item.domid), action))
            except VeeryError as error:
                if not args.all:
                    raise
                refused.append((item, error))
                continue
            if session.tool != "xm":
                session.note(f"{doing} domain {item.domid if session.tool == 'xl' else item.name}")
        if args.wait:
            left = [item for item, _ in refused]
            _await(session, [item for item in chosen if item not in left], args.timeout, action)
        _tell_refused(session, refused, action)
        return 0

    return run


def _tell_refused(session: Session, refused: Sequence[tuple[DomainReading, VeeryError]], action: str) -> None:
    """Print each refusal with its reason. Raises Failed if there is one."""
    for item, error in refused:
        session.note(f"veery: {item.name}: {error.message}" + (f"\n  hint: {error.hint}" if error.hint else ""))
    if refused:
        names = ", ".join(item.name for item, _ in refused)
        raise Failed(
            f"{action} was refused for {names}; all other domains were asked",
            hint=f"veery {action} {refused[0][0].name}",
        )


def _await(session: Session, chosen: Sequence[DomainReading], timeout: float, action: str) -> None:
    """Wait until each of `chosen` has ended or restarted. Raises Failed after `timeout` seconds."""
    end = time.monotonic() + timeout
    waiting = {item.uuid: item for item in chosen}
    while waiting:
        now = {item.uuid: item for item in session.readings()}
        for uuid, item in list(waiting.items()):
            if _over(item, now.get(uuid)):
                del waiting[uuid]
                if session.tool == "xm":
                    print(f"Domain {item.name} {'rebooted' if action == 'reboot' else 'terminated'}")
        if waiting and time.monotonic() > end:
            names = ", ".join(item.name for item in waiting.values())
            first = next(iter(waiting.values())).name
            raise Failed(
                f"{names} still runs after {timeout:g} s",
                hint=f"veery console {first} may show why; veery destroy {first} ends it",
            )
        if waiting:
            time.sleep(0.2)
    if session.tool == "xm":
        print(f"All domains {'rebooted' if action == 'reboot' else 'terminated'}")


def _over(before: DomainReading, now: DomainReading | None) -> bool:
    """Return whether instance `before` of a domain has ended: the domain is gone, has ended, or is a new instance."""
    return (
        now is None
        or now.state in {DomainState.SHUTDOWN, DomainState.CRASHED}
        or now.domid != before.domid
        or now.started > before.started + 1
    )


def follow(session: Session, domain: DomainReading) -> None:
    """Wait until `domain` has ended on this node."""
    while any(item.uuid == domain.uuid for item in session.readings()):
        time.sleep(1.0)


def _declare_stop(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", nargs="?", default="", help=_DOMAIN)
    parser.add_argument("-a", "--all", action="store_true", help="all domains of the node")
    parser.add_argument("-w", "--wait", action="count", default=0, help="wait until the domain has ended or restarted")
    parser.add_argument(
        "-F", dest="fallback", action="store_true", help="ignored, for xl's sake: veery uses ACPI if needed"
    )
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=600.0, help="limit of -w (600)")


# ---- destroy, delete
def _destroy(session: Session, args: Namespace) -> int:
    if args.domain in {"0", "Domain-0"}:
        raise Refused("Domain-0 is this machine itself and cannot be destroyed", hint="veery list shows the domains")
    session.client.post(domain_path(session.domain(args.domain), "destroy"), deadline=120.0)
    return 0


def _declare_destroy(parser: Parser) -> None:
    _declare_domain(parser)
    parser.add_argument(
        "-f", dest="force", action="store_true", help="ignored, for xl's sake: veery always refuses Domain-0"
    )


def _delete(session: Session, args: Namespace) -> int:
    session.client.delete(domain_path(args.domain))
    return 0


# ---- save, restore
def _save(session: Session, args: Namespace) -> int:
    if args.config:
        raise Refused("a save file holds the configuration that the domain runs with", hint=f"omit {args.config}")
    if args.keep_id:
        raise Refused("a restored domain gets a new id", hint="omit -D and use the name")
    leave = "running" if args.running else "paused" if args.paused else "destroyed"
    path = str(Path(args.file).absolute())
    session.client.post(
        domain_path(session.domain(args.domain), "save"), {"path": path, "leave": leave}, deadline=_MEMORY_DEADLINE_S
    )
    return 0


def _declare_save(parser: Parser) -> None:
    _declare_domain(parser)
    parser.add_argument("file", metavar="FILE", help="file to write, on the domain's node")
    parser.add_argument(
        "config", metavar="CONFIG", nargs="?", default="", help="refused: xl's replacement configuration"
    )
    parser.add_argument("-c", "--checkpoint", dest="running", action="store_true", help="keep the domain running")
    parser.add_argument("-p", dest="paused", action="store_true", help="leave the domain paused")
    parser.add_argument("-D", dest="keep_id", action="store_true", help="refused: xl's flag to keep the id")


def _restore(session: Session, args: Namespace) -> int:
    if len(args.files) > 2:
        raise Usage("too many arguments", "restore")
    if len(args.files) == 2:
        raise Refused("a save file holds its configuration", hint=f"omit {args.files[0]}")
    if args.viewer or args.password:
        raise Refused("veery has no graphical console", hint="omit -V and -A; -c attaches to the serial console")
    path = str(Path(args.files[0]).absolute())
    order = {"path": path, "paused": args.paused, "force": args.force}
    reading = as_reading(session.client.post("/v1/restore", order, deadline=_MEMORY_DEADLINE_S)["reading"])
    if session.tool == "veery":
        print(f"Restored domain {reading.name} (id={reading.domid})")
    return attach(session, reading) if args.console else 0


def _declare_restore(parser: Parser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="file that veery save wrote, on this node")
    parser.add_argument("-p", "--paused", dest="paused", action="store_true", help="leave the domain paused")
    parser.add_argument("-c", dest="console", action="store_true", help="attach to its console")
    parser.add_argument("--force", action="store_true", help="restore even if the disks may have changed since")
    parser.add_argument(
        "-d", "-e", "-F", dest="ignored", action="store_true", help="ignored, for xl's sake: veeryd watches the domain"
    )
    parser.add_argument("-V", "--vncviewer", dest="viewer", action="store_true", help="refused: veery has no graphics")
    parser.add_argument(
        "-A", "--vncviewer-autopass", dest="password", action="store_true", help="refused: veery has no graphics"
    )


# ---- rename, mem-set
def _rename(session: Session, args: Namespace) -> int:
    session.client.post(domain_path(session.domain(args.domain), "rename"), {"name": args.name})
    return 0


def _declare_rename(parser: Parser) -> None:
    _declare_domain(parser)
    parser.add_argument("name", metavar="NAME", help="the new name")


def _set_memory(session: Session, args: Namespace) -> int:
    from veery.model.units import MIB, parse_size

    mebibytes = parse_size(args.memory, default="M") // MIB
    if mebibytes < 1:
        raise Refused(f"{args.memory} is less than 1 MiB", hint="a number without a unit is in MiB")
    session.client.post(domain_path(session.domain(args.domain), "memory"), {"mebibytes": mebibytes})
    return 0


def _declare_memory(parser: Parser) -> None:
    _declare_domain(parser)
    parser.add_argument("memory", metavar="MEMORY", help="size in MiB, or with a unit: b, k, m, g or t")


VERBS: dict[str, Verb] = {
    "console": Verb(
        run=_console,
        declare=_declare_console,
        about="""
Attaches the terminal to the domain's console. The output since boot comes first. Ctrl-] detaches; this does not affect
the domain. A domain can have several consoles open at once.

If stdin is not a terminal, the console sends stdin to the domain and ends one second after the last output. So commands
can be piped into a domain. When the domain moves away, the console ends and names the new node.""",
        examples="veery console busybox\necho 'ip addr' | veery console busybox   # type one line, print the answer",
    ),
    "shutdown": Verb(
        run=_stop("shutdown", "Shutting down"),
        declare=_declare_stop,
        about="""
Asks the guest to power off, as its power button does, and returns immediately. on_poweroff in the domain file says what
happens to the domain then. With -w the command waits until the domain has ended.

A booting guest does not react to its power button. So veeryd repeats the request every few seconds during the first 2
minutes of an instance. If the domain has not ended after 10 minutes, its HA policy applies again as before. Until then
`veery why` and `veery ha list` show the shutdown request, and `veery ha set DOMAIN POLICY` withdraws it.""",
        examples="veery shutdown -w busybox\nveery shutdown -a -w                      # all domains of this node",
    ),
    "reboot": Verb(
        run=_stop("reboot", "Rebooting"),
        declare=_declare_stop,
        about="Restarts the guest. on_reboot in the domain file says what happens then. -w waits for that.",
        examples="veery reboot busybox",
    ),
    "destroy": Verb(
        run=_destroy,
        declare=_declare_destroy,
        about="""
Stops the domain like a power cut. Returns when the domain certainly cannot write to its disks any more. The record of
the domain (UUID, MAC addresses) stays until `veery delete`, so the same file starts the same domain again.""",
        examples="veery destroy busybox",
    ),
    "delete": Verb(
        run=_delete,
        declare=_declare_domain,
        about="Deletes the record (UUID, MAC addresses) of a domain that does not run. Its volumes stay.",
        examples="veery delete busybox",
    ),
    "pause": Verb(
        run=_simple("pause"),
        declare=_declare_domain,
        about="Pauses the domain: it keeps its memory and devices but executes nothing until `veery unpause`.",
        examples="veery pause busybox",
    ),
    "unpause": Verb(
        run=_simple("unpause"),
        declare=_declare_domain,
        about="Resumes a domain that is paused, for example by `veery pause`, `veery create -p` or `veery restore -p`.",
        examples="veery unpause busybox",
    ),
    "save": Verb(
        run=_save,
        declare=_declare_save,
        about="""
Writes the state of the domain's memory and devices to FILE and ends the domain. `veery restore` resumes it from there.
FILE does not contain the disks. With -c or -p the domain can keep changing its disks; then only `veery restore --force`
restores FILE.""",
        examples="veery save busybox /var/tmp/busybox.save\nveery restore /var/tmp/busybox.save",
    ),
    "restore": Verb(
        run=_restore,
        declare=_declare_restore,
        about="""
Resumes the domain that `veery save` wrote to FILE, with its UUID, addresses and memory. veery refuses while the domain
runs anywhere, and if its disks have changed or may have changed since the save. --force restores in spite of changed
disks: the guest's memory then does not match its disks, which can destroy its filesystems.""",
        examples="veery restore /var/tmp/busybox.save",
    ),
    "rename": Verb(
        run=_rename,
        declare=_declare_rename,
        about="Changes the domain's name. The name must be unique in the cluster. The UUID and addresses stay.",
        examples="veery rename busybox shrike",
    ),
    "mem-set": Verb(
        run=_set_memory,
        declare=_declare_memory,
        about="""
Asks the guest to use this amount of memory, at most maxmem in its domain file. The guest's balloon driver carries this
out, which can take a while; `veery list` shows the current amount.""",
        examples="veery mem-set busybox 256\nveery mem-set busybox 1g",
    ),
}
