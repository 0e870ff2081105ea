"""mem-max, vcpu-set, vcpu-pin, sched-credit, sched-credit2: limits and shares that survive moves and restarts.

On a Xen node, Xen's own xl handles domains that veery does not run, the scheduler's own settings, and queries."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from veery.cli import foreign
from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import NoDomain, Session, Usage, pick
from veery.client.http import domain_path
from veery.errors import Refused

_DEADLINE_S = 180.0
_UNCHANGED = "-"
"""xl's word for an affinity that stays as it is."""


def _adjust(session: Session, verb: str, words: list[str], domain: str, change: dict[str, Any]) -> int:
    """Order `change` of `domain`. If veery does not run `domain`, hand `words` to Xen's own xl."""
    try:
        found = pick(session.readings(), domain)
    except NoDomain:
        found = None
    if found is None or not found.domid:
        if (status := foreign.on_xen(session, verb, words)) is not None:
            return status
        if found is None:
            session.reading(domain)
            raise NoDomain(domain)
        raise Refused("Domain-0 is this machine itself", hint="veery list shows the domains")
    session.client.post(domain_path(found.uuid, "adjust"), change, deadline=_DEADLINE_S)
    return 0


def _integer(word: str, verb: str) -> int:
    if not word.isascii() or not word.isdigit():
        raise Usage(f"{word[:40]!r} is not a whole number", verb)
    return int(word[:20])


def _mem_max(session: Session, args: Namespace) -> int:
    from veery.model.units import MIB, parse_size

    mebibytes = parse_size(args.memory, default="M") // MIB
    if mebibytes < 1:
        raise Refused(f"{args.memory} is less than 1 MiB", hint="a number without a unit is in MiB")
    return _adjust(session, "mem-max", [args.domain, args.memory], args.domain, {"maxmem": mebibytes})


def _vcpu_set(session: Session, args: Namespace) -> int:
    words = [*(["-i"] if args.ignore else []), args.domain, args.count]
    return _adjust(session, "vcpu-set", words, args.domain, {"vcpus": _integer(args.count, "vcpu-set")})


def _vcpu_pin(session: Session, args: Namespace) -> int:
    words = [*(["-f"] if args.force else []), args.domain, args.vcpu, args.hard, *([args.soft] if args.soft else [])]
    change: dict[str, Any] = {} if args.vcpu == "all" else {"vcpu": _integer(args.vcpu, "vcpu-pin")}
    change |= {name: text for name, text in (("hard", args.hard), ("soft", args.soft)) if text and text != _UNCHANGED}
    if not {"hard", "soft"} & change.keys():
        raise Usage("name the processors, as a list such as 0-3 or as all", "vcpu-pin")
    return _adjust(session, "vcpu-pin", words, args.domain, change)


def _sched(verb: str) -> Callable[[Session, Namespace], int]:
    """Return the function of `sched-credit` or `sched-credit2`. veery sets only the weight and cap of a domain."""

    def run(session: Session, args: Namespace) -> int:
        words = [word for option in "dwcptrm" if (text := getattr(args, option)) for word in (f"-{option}", text)]
        words += ["-s"] if args.schedparam else []
        beside = any((args.p, args.t, args.r, args.m, args.schedparam))
        change = {name: _integer(text, verb) for name, text in (("weight", args.w), ("cap", args.c)) if text}
        if beside or not args.d or not change:
            if (status := foreign.on_xen(session, verb, words)) is not None:
                return status
            raise Refused(
                f"{verb} needs Xen's scheduler, and this node has no Xen", hint="veery top shows the use of each domain"
            )
        return _adjust(session, verb, words, args.d, change)

    return run


def _declare_mem_max(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("memory", metavar="MEMORY", help="size in MiB, or with a unit: b, k, m, g or t")


def _declare_vcpu_set(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("count", metavar="COUNT", help="from 1 to maxvcpus in the domain file")
    parser.add_argument(
        "-i", "--ignore-host", dest="ignore", action="store_true", help="ignored, for xl's sake: it is the default"
    )


def _declare_vcpu_pin(parser: Parser) -> None:
    parser.add_argument("domain", metavar="DOMAIN", help="a domain's name, id or UUID")
    parser.add_argument("vcpu", metavar="VCPU", help="the number of a virtual processor, or all")
    parser.add_argument("hard", metavar="HARD", help="where it may run, as in cpus=: 0-3,^1 or all; - keeps it")
    parser.add_argument("soft", metavar="SOFT", nargs="?", default="", help="where it should run, in the same syntax")
    parser.add_argument("-f", "--force", action="store_true", help="passed to xl for domains that veery does not run")


def _declare_sched(parser: Parser) -> None:
    parser.add_argument("-d", "--domain", dest="d", metavar="DOMAIN", default="", help="a domain's name, id or UUID")
    parser.add_argument(
        "-w",
        "--weight",
        dest="w",
        metavar="WEIGHT",
        default="",
        help="share of processor time, 1 to 65535; Xen's default is 256",
    )
    parser.add_argument(
        "-c", "--cap", dest="c", metavar="CAP", default="", help="limit in percent of one processor; 0: no limit"
    )
    parser.add_argument(
        "-s", "--schedparam", action="store_true", help="passed to xl: settings of the scheduler itself"
    )
    for option, name in (("p", "cpupool"), ("t", "tslice_ms"), ("r", "ratelimit_us"), ("m", "migration_delay_us")):
        parser.add_argument(
            f"-{option}", f"--{name}", dest=option, metavar="VALUE", default="", help="passed to xl with -s"
        )


_KEPT = "The domain's record stores the value, so it survives moves and restarts."
_XEN = "A QEMU node refuses the order and names the alternative. Xen's own xl handles domains that veery does not run."

VERBS: dict[str, Verb] = {
    "mem-max": Verb(
        run=_mem_max,
        declare=_declare_mem_max,
        about=f"Sets a domain's maximum memory, like maxmem= in its file. {_KEPT} {_XEN}",
        examples="veery mem-max busybox 1024\nveery mem-set busybox 1024",
    ),
    "vcpu-set": Verb(
        run=_vcpu_set,
        declare=_declare_vcpu_set,
        about=f"Sets how many virtual processors of a domain are online. {_KEPT} {_XEN}",
        examples="veery vcpu-set busybox 2",
    ),
    "vcpu-pin": Verb(
        run=_vcpu_pin,
        declare=_declare_vcpu_pin,
        about=f"""
Sets the host processors on which a virtual processor may run (HARD) and should run (SOFT), like cpus= and cpus_soft= in
the domain file. {_KEPT} A node that lacks such a processor logs this, and the domain runs there without it. {_XEN}""",
        examples="veery vcpu-pin busybox all 0-1\nveery vcpu-pin busybox 0 all",
    ),
}
for _name in ("sched-credit", "sched-credit2"):
    VERBS[_name] = Verb(
        run=_sched(_name),
        declare=_declare_sched,
        about=f"""
Sets a domain's weight and cap in the node's scheduler, like cpu_weight= and cap= in the domain file. Without -w and -c
Xen's own xl shows them. {_KEPT} {_XEN}""",
        examples=f"veery {_name} -d busybox -w 512",
    )
