"""Verbs that only read: list, vm-list, vcpu-list, uptime, domid, domname, info, top, dmesg."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterable

from veery.cli import foreign, tables
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import NoDomain, Session, pick
from veery.client.http import domain_path
from veery.errors import Refused
from veery.model.domain import DomainReading

_STATES = """
States, as xm and xl print them:
  r  running            s  shut down: ended and kept
  b  blocked: idle      c  crashed
  p  paused             d  being destroyed"""


def _declare_domains(parser: Parser) -> None:
    parser.add_argument("domains", metavar="DOMAIN", nargs="*", help="names, ids or UUIDs (default: all domains)")


def _chosen(session: Session, words: list[str], *, unsettled: bool = False) -> tuple[DomainReading, ...]:
    readings = session.readings(unsettled=unsettled)
    try:
        return tuple(pick(readings, word) for word in words) if words else readings
    except NoDomain as error:
        session.reading(error.word)  # raises veeryd's own error, which may name the node of the domain
        raise


# ---- list
def _list(session: Session, args: Namespace) -> int:
    if args.cluster:
        if args.context or args.pool or args.numa:
            raise Refused("-Z, -c and -n show one node only", hint="veery list -c; add --node NODE for another node")
        return _list_cluster(session, args)
    if (args.context or args.pool or args.numa) and not (session.json or args.long):
        flags = [flag for flag, asked in zip(("-v", "-Z", "-c", "-n"), _columns(args), strict=True) if asked]
        if (status := foreign.real_answer(session, "list", [*flags, *args.domains])) is not None:
            return status
    chosen = _chosen(session, args.domains, unsettled=True)
    if session.json:
        session.print_json(chosen)
    elif args.long:
        from veery.cli.long import print_long

        print_long(session, chosen, everything=not args.domains)
    else:
        verbose, label, pool, numa = _columns(args)
        print(
            *tables.domains(chosen, session.tool, verbose=verbose, label=label, pool=pool, numa=numa),
            sep="\n",
        )
        _note_errors(session, chosen, session.node)
    return 0


def _note_errors(session: Session, readings: Iterable[DomainReading], node: str) -> None:
    """Note the disk error of each domain on `node` ("": the node that answers) that QEMU paused because of it. xm and
    xl have no such line."""
    where = f"--node {node} " if node else ""
    for item in readings:
        if item.reason and session.tool == "veery":
            way = f"after the repair: veery {where}unpause {item.name}"
            session.note(f"veery: {item.name} is paused: {item.reason}; {way}")


def _columns(args: Namespace) -> tuple[bool, bool, bool, bool]:
    return args.verbose, args.context, args.pool, args.numa


def _list_cluster(session: Session, args: Namespace) -> int:
    from veery.model.codec import convert

    answer = session.client.get("/v1/domains", cluster="1")
    session.note_restored(answer)
    session.note_unsettled(answer)
    if session.json:
        session.print_json(answer)
    else:
        print(f"{tables.LIST_HEADER}\tNode")
        for node, rows in sorted(answer["nodes"].items()):
            found = convert(rows, tuple[DomainReading, ...])
            chosen = [item for item in found if not args.domains or {item.name, item.uuid} & set(args.domains)]
            for item in chosen:
                print(f"{tables.domain_row(item)}\t{node}")
            _note_errors(session, chosen, node)
    for node in answer["silent"]:
        session.note(f"veery: node {node} does not answer; its domains are not in this list")
    return 1 if answer["silent"] else 0


def _declare_list(parser: Parser) -> None:
    _declare_domains(parser)
    parser.add_argument("-l", "--long", action="store_true", help="print the domains' configurations as xl's JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="add UUIDs and shutdown reasons")
    parser.add_argument("-A", "--cluster", action="store_true", help="list the domains of all nodes")
    parser.add_argument("-Z", "--context", action="store_true", help="add security labels (- if there are none)")
    parser.add_argument(
        "-c", "--cpupool", dest="pool", action="store_true", help="add cpupools (without Xen: one pool)"
    )
    parser.add_argument("-n", "--numa", action="store_true", help="add NUMA affinity (without Xen: one NUMA node)")


# ---- the others
def _vm_list(session: Session, args: Namespace) -> int:
    print(*tables.vm_list(session.readings()), sep="\n")
    return 0


def _vcpu_list(session: Session, args: Namespace) -> int:
    from veery.model.codec import convert
    from veery.model.domain import VcpuReading

    if session.tool == "veery" and not session.json:
        status = foreign.real_answer(session, "vcpu-list", args.domains)
        if status is not None:
            return status
    elif session.tool == "xm":
        for word in args.domains:
            session.reading(word)
        answer = foreign.real_text(session, "vcpu-list", args.domains)
        if answer is not None:
            print(*tables.vcpus_in_xm(answer[1]), sep="\n")
            return answer[0]
    rows = []
    for item in _chosen(session, args.domains):
        if not item.domid:
            if args.domains:
                raise Refused(
                    "Domain-0 is this machine itself: it has no virtual processors", hint="veery info nr_cpus"
                )
            continue
        answer = session.client.get(domain_path(str(item.domid), "vcpus"))
        rows.append((item, convert(answer, tuple[VcpuReading, ...])))
    if session.json:
        session.print_json([{"domain": item, "vcpus": processors} for item, processors in rows])
    else:
        print(*tables.vcpus(rows, session.tool), sep="\n")
    return 0


def _uptime(session: Session, args: Namespace) -> int:
    chosen = _chosen(session, args.domains)
    print(*tables.uptime(chosen, time.time(), session.tool, short=args.short), sep="\n")
    return 0


def _declare_uptime(parser: Parser) -> None:
    _declare_domains(parser)
    parser.add_argument(
        "-s", "--short", action="store_true", help="print the time of day, and the uptime without seconds"
    )


def _domid(session: Session, args: Namespace) -> int:
    for item in session.readings():
        if item.name == args.name:
            print(item.domid)
            return 0
    raise NoDomain(args.name)


def _declare_domid(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a domain's name")


def _domname(session: Session, args: Namespace) -> int:
    if not args.domid.isdigit():
        raise Refused("Invalid domain id.", hint="an id is a number; veery list shows it")
    print(pick(session.readings(), args.domid).name)
    return 0


def _declare_domname(parser: Parser) -> None:
    parser.add_argument("domid", metavar="DOMID", help="a domain's id")


def _info(session: Session, args: Namespace) -> int:
    from veery.model.codec import convert
    from veery.model.domain import HostReading

    if args.numa and not session.json and (status := foreign.real_answer(session, "info", ["-n"])) is not None:
        return status
    answer = session.client.get("/v1/host")
    if session.json:
        session.print_json(answer)
        return 0
    host = convert(answer["host"], HostReading)
    for name, value in tables.info(host, session.tool):
        if not args.name or args.numa:
            print(f"{name:<23}: {value}")
        elif name.startswith(args.name):
            print(value)
    if args.numa:
        print(*tables.numa(host), sep="\n")
    return 0


def _declare_info(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", default="", help="print only values whose names begin with NAME"
    )
    parser.add_argument("-n", "--numa", action="store_true", help="add NUMA nodes (without Xen: one)")


def _dmesg(session: Session, args: Namespace) -> int:
    if args.clear:
        raise Refused("veery does not clear the log", hint="omit -c")
    from veery.host.log import harmless

    text = harmless(session.client.get("/v1/log")["text"])
    print(text, end="" if text.endswith("\n") or not text else "\n")
    return 0


def _declare_dmesg(parser: Parser) -> None:
    parser.add_argument("-c", "--clear", action="store_true", help="refused: veery does not clear the log")


# ---- top
def _top(session: Session, args: Namespace) -> int:
    import sys

    screen = sys.stdout.isatty() and not args.batch
    rounds = args.iterations or (0 if screen or args.batch else 1)
    before: dict[str, float] = {}
    at = time.monotonic()
    count = 0
    while True:
        host, readings = session.client.get("/v1/host")["host"], session.readings()
        now = time.monotonic()
        lines = _usage(readings, before, now - at, int(host["memory_total"]))
        print("\x1b[H\x1b[J" if screen else "", end="")
        print(f"veery top - {time.strftime('%H:%M:%S')}  {host['host']}: {host['cpus']} CPUs, ", end="")
        print(f"{host['memory_total']} MiB, {host['memory_free']} MiB free, {len(readings) - 1} domains")
        print(*lines, sep="\n", flush=True)
        before, at = {item.uuid: item.cpu_seconds for item in readings}, now
        count += 1
        if rounds and count >= rounds:
            return 0
        try:
            time.sleep(args.delay)
        except KeyboardInterrupt:
            return 0


def _usage(readings: tuple[DomainReading, ...], before: dict[str, float], span: float, memory: int) -> list[str]:
    """Return the lines of one update. CPU(%) is in percent of one processor over the last `span` seconds; `before`
    has the processor seconds at the previous update, by UUID."""
    rows = []
    for item in readings:
        used = item.cpu_seconds - before.get(item.uuid, item.cpu_seconds)
        share = 100 * used / span if span > 0 and before else 0.0
        cells = (
            f"{share:.1f}",
            str(item.memory),
            f"{100 * item.memory / memory if memory else 0:.1f}",
            str(item.vcpus),
        )
        letters = tables.state_letters(item.state, "xl")
        rows.append((item.name[:24], letters, f"{item.cpu_seconds:.0f}", *cells))
    rows.sort(key=lambda row: -float(row[3]))
    return list(tables.plain(("NAME", "STATE", "CPU(sec)", "CPU(%)", "MEM(MiB)", "MEM(%)", "VCPUS"), rows))


def _declare_top(parser: Parser) -> None:
    parser.add_argument("-b", "--batch", action="store_true", help="append each update instead of redrawing the screen")
    parser.add_argument(
        "-d", "--delay", metavar="SECONDS", type=float, default=3.0, help="seconds between two updates (3)"
    )
    parser.add_argument("-i", "--iterations", metavar="COUNT", type=int, default=0, help="exit after COUNT updates")


VERBS: dict[str, Verb] = {
    "list": Verb(
        run=_list,
        declare=_declare_list,
        about=f"""
Prints the name, id, memory (MiB), virtual processors, state and processor seconds of each domain, in the columns of
xm and xl. The first row is Domain-0: the node itself.
{_STATES}""",
        examples="veery list\nveery list -A              # all nodes\nveery list -l busybox | jq '.[0].config'",
        failure="with -A: a node did not answer, and the list lacks its domains",
        json=True,
    ),
    "vm-list": Verb(
        run=_vm_list,
        declare=lambda parser: None,
        about="Prints the UUID, id and name of each domain except Domain-0.",
        examples="veery vm-list",
    ),
    "vcpu-list": Verb(
        run=_vcpu_list,
        declare=_declare_domains,
        about="Prints the last CPU, the state and the used seconds of each virtual processor.",
        examples="veery vcpu-list busybox",
        json=True,
    ),
    "uptime": Verb(
        run=_uptime,
        declare=_declare_uptime,
        about="Prints how long ago each domain booted. A move does not reset the uptime.",
        examples="veery uptime busybox",
    ),
    "domid": Verb(
        run=_domid,
        declare=_declare_domid,
        about="Prints the id of the domain on this node.",
        examples="veery domid busybox",
    ),
    "domname": Verb(
        run=_domname,
        declare=_declare_domname,
        about="Prints the name of the domain with this id.",
        examples="veery domname 3",
    ),
    "info": Verb(
        run=_info,
        declare=_declare_info,
        about="Prints one `name : value` pair per line. total_memory and free_memory are in MiB, cpu_mhz in MHz.",
        examples="veery info\nveery info free_memory\nveery --node test2 info",
        json=True,
    ),
    "top": Verb(
        run=_top,
        declare=_declare_top,
        about="""
Shows the processor and memory use of each domain, the busiest first. The screen updates every few seconds; Ctrl-C ends
it. CPU(%) is in percent of one processor. If stdout is not a terminal, veery prints one update, unless -b or -i asks
for more.""",
        examples="veery top\nveery top -b -i 2 -d 1      # two updates, one second apart, for a script",
    ),
    "dmesg": Verb(
        run=_dmesg,
        declare=_declare_dmesg,
        about="Prints the hypervisor's log of this node. With the qemu driver it is the output of the QEMU processes.",
        examples="veery dmesg",
    ),
}
