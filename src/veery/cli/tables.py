"""The tables of xm and xl, character by character, and a plain table for veery's own lists.

Formats: xl's from tools/xl/xl_info.c, xl_vcpu.c, xl_block.c and xl_nic.c of Xen 4.17; xm's from
tools/python/xen/xm/main.py of Xen 4.2. Scripts read these columns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from veery.model.domain import LETTERS, DiskSpec, DomainReading, DomainState, HostReading, VcpuReading
from veery.model.volume import AttachedVif


def state_letters(state: DomainState, tool: str) -> str:
    """Return the State column. xl shows a crashed domain as `---sc-` (shut down, reason c), xm as `----c-`."""
    return "---sc-" if state is DomainState.CRASHED and tool != "xm" else LETTERS[state]


def domains(
    readings: Iterable[DomainReading],
    tool: str,
    *,
    verbose: bool = False,
    label: bool = False,
    pool: bool = False,
    numa: bool = False,
) -> Iterator[str]:
    """Yield the lines of `list`. `verbose`, `label`, `pool` and `numa` add the columns of xl's -v, -Z, -c and -n."""
    if tool == "xm":
        yield f"{'Name':<40} {'ID':>5} {'Mem':>5} {'VCPUs':>5} {'State':>10} {'Time(s)':>9}"
        for item in readings:
            yield (
                f"{item.name:<40} {item.domid:>5} {item.memory:>5} {item.vcpus:>5} "
                f"{state_letters(item.state, tool):>10} {item.cpu_seconds:8.1f}"
            )
        return
    heads = (
        ("   UUID                            Reason-Code\tSecurity Label", verbose),
        ("   Security Label", label and not verbose),
        ("         Cpupool", pool),
        (" NODE Affinity", numa),
    )
    yield LIST_HEADER + "".join(text for text, asked in heads if asked)
    for item in readings:
        cells = (
            (f" {item.uuid} {_reason(item.state):>8}", verbose),
            (f" {'-':>16}", verbose or label),
            (f"{ONLY_POOL:>16}", pool),
            (" all", numa),
        )
        yield domain_row(item) + "".join(text for text, asked in cells if asked)


ONLY_POOL = "Pool-0"
"""The one cpupool of a host without Xen, with all processors."""


def numa(host: HostReading) -> Iterator[str]:
    """Yield the lines that `info --numa` adds, for a host shown as one NUMA node."""
    yield "numa_info              :"
    yield "node:    memsize    memfree    distances"
    yield f"{0:>4}:    {host.memory_total:>6}     {host.memory_free:>6}      10"


LIST_HEADER = "Name                                        ID   Mem VCPUs\tState\tTime(s)"


def domain_row(item: DomainReading) -> str:
    """Return one line of xl's `list`."""
    letters = state_letters(item.state, "xl")
    return f"{item.name:<40} {item.domid:>5} {item.memory:>5} {item.vcpus:>5}     {letters}  {item.cpu_seconds:8.1f}"


def _reason(state: DomainState) -> str:
    return {DomainState.SHUTDOWN: "0", DomainState.CRASHED: "3"}.get(state, "-")  # SHUTDOWN_poweroff, SHUTDOWN_crash


def vm_list(readings: Iterable[DomainReading]) -> Iterator[str]:
    """Yield the lines of `vm-list`. It has guests only."""
    yield "UUID                                  ID    name"
    for item in readings:
        if item.domid:
            yield f"{item.uuid}  {item.domid}    {item.name:<30}"


def vcpus(rows: Iterable[tuple[DomainReading, Sequence[VcpuReading]]], tool: str) -> Iterator[str]:
    """Yield the lines of `vcpu-list`. veery pins nothing under QEMU, so every affinity is "all"."""
    affinity = "CPU Affinity" if tool == "xm" else "Affinity (Hard / Soft)"
    yield f"{'Name':<32} {'ID':>5} {'VCPU':>5} {'CPU':>5} {'State':>5} {'Time(s)':>9} {affinity}"
    for domain, processors in rows:
        for item in processors:
            cpu = str(item.cpu) if item.cpu >= 0 else "-"
            head, state = f"{domain.name:<32} {domain.domid:>5} {item.number:>5}", vcpu_letters(domain.state)
            if tool == "xm":
                yield f"{head} {cpu:>5} {state:>5}  {item.seconds:8.1f} any cpu"
            else:  # xl's rows lack the space between VCPU and CPU that its header has
                yield f"{head}{cpu:>5} {state:>5} {item.seconds:9.1f}  all / all"


def vcpus_in_xm(text: str) -> Iterator[str]:
    """Convert the output of xl's `vcpu-list` to xm's columns. xm writes "any cpu" for xl's "all"."""
    yield from vcpus((), "xm")
    for line in text.splitlines()[1:]:
        cells = line.split(maxsplit=6)
        if len(cells) == 7:
            name, domid, number, cpu, state, seconds, affinity = cells
            hard = affinity.partition(" / ")[0]
            head = f"{name:<32} {domid:>5} {number:>5} {cpu:>5} {state:>5}  {seconds:>8}"
            yield f"{head} {'any cpu' if hard == 'all' else hard}"


def vcpu_letters(state: DomainState) -> str:
    """Return running, blocked or offline for a virtual processor, derived from the state of its domain."""
    return {DomainState.RUNNING: "r--", DomainState.BLOCKED: "-b-"}.get(state, "--p")


def uptime(readings: Iterable[DomainReading], now: float, tool: str, *, short: bool) -> Iterator[str]:
    """Yield the lines of `uptime`. `now` is in seconds of the epoch."""
    if not short:
        yield f"{'Name':<33} {'ID':>4} Uptime" + (" " if tool == "xm" else "")
    for item in readings:
        length = _length(max(0, int(now - item.started)), seconds=not short)
        if short:
            yield f" {time.strftime('%H:%M:%S', time.localtime(now))} up {length}, {item.name} ({item.domid})"
        elif tool == "xm":
            yield f"{item.name:<32} {item.domid:>5} {length}"
        else:
            yield f"{item.name:<33} {item.domid:>4} {length}"


def _length(span: int, *, seconds: bool) -> str:
    days, rest = divmod(span, 86400)
    text = f"{days} day{'s' if days > 1 else ''}, " if days else ""
    text += f"{rest // 3600:2d}:{rest // 60 % 60:02d}"
    return f"{text}:{rest % 60:02d}" if seconds else text


def info(host: HostReading, tool: str = "veery") -> list[tuple[str, str]]:
    """Return the rows of `info`, in xl's order. The driver's own facts replace rows of the same name. Under Xen the
    rows are those of xl itself."""
    if "xen_version" in host.facts:
        return [
            (name, _without_fraction(value) if (name, tool) == ("cpu_mhz", "xm") else value)
            for name, value in host.facts.items()
        ]
    rows = {
        "host": host.host,
        "release": host.release,
        "version": host.version,
        "machine": host.machine,
        "nr_cpus": str(host.cpus),
        "max_cpu_id": str(host.cpus - 1),
        "cpu_mhz": f"{host.cpu_mhz:.0f}" if tool == "xm" else f"{host.cpu_mhz:.3f}",
        "cpu_model": host.cpu_model,
        "total_memory": str(host.memory_total),
        "free_memory": str(host.memory_free),
        "free_cpus": "0",
        "accelerator": host.accelerator,
        **{f"{name}_version": version for name, version in host.software.items()},
        **host.facts,
    }
    rows.setdefault("xend_config_format", "4")
    return list(rows.items())


def _without_fraction(text: str) -> str:
    """Return a number of xl without its fraction, as xm printed it."""
    return text.partition(".")[0]


def disks(rows: Iterable[tuple[int, Sequence[DiskSpec]]], tool: str) -> Iterator[str]:
    """Yield the lines of `block-list` for (domid, disks). Event channel and ring exist on Xen only, and are -1
    elsewhere. BE-path is the backing of the disk."""
    from veery.config.disk import device_number

    rows = list(rows)
    if tool == "xm" and not any(items for _, items in rows):
        return  # xm prints its header with the first row
    if tool == "xm":
        yield "Vdev  BE handle state evt-ch ring-ref BE-path"
    else:
        yield f"{'Vdev':<5} {'BE':<3} {'handle':<6} {'state':<5} {'evt-ch':<6} {'ring-ref':<8} {'BE-path':<30}"
    for domid, items in rows:
        for disk in items:
            number, path = device_number(disk.vdev) or 0, f"volume:{disk.volume}" if disk.volume else disk.target
            if tool == "xm":
                yield f"{number:<5}  {0:<3}  {0:<3}   {4:<3}    {-1:<3}    {-1:<5} {path:<30}  "
            else:
                yield f"{number:<5} {0:<3} {domid:<6} {4:<5} {-1:<6} {-1:<8} {path:<30}"


def disks_in_xm(text: str) -> Iterator[str]:
    """Convert the output of xl's `block-list` to xm's columns."""
    rows = [line.split(maxsplit=6) for line in text.splitlines() if line[:1].isdigit()]
    if rows:
        yield "Vdev  BE handle state evt-ch ring-ref BE-path"
    for vdev, backend, handle, state, channel, ring, path in (row for row in rows if len(row) == 7):
        yield f"{vdev:<5}  {backend:<3}  {handle:<3}   {state:<3}    {channel:<3}    {ring:<5} {path:<30}  "


def vifs_in_xm(text: str) -> Iterator[str]:
    """Convert the output of xl's `network-list` to xm's columns."""
    rows = [line.replace("/", " ", 1).split(maxsplit=8) for line in text.splitlines() if line[:1].isdigit()]
    if rows:
        yield "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path"
    for index, backend, mac, handle, state, channel, tx, rx, path in (row for row in rows if len(row) == 9):
        head = f"{index:<3} {backend:<3}{mac}    {handle:<3}   {state:<3}    {channel:<3}   "
        yield f"{head}{tx:<5}/{rx:<5}   {path:<30}  "


def vifs(rows: Iterable[tuple[int, Sequence[AttachedVif]]], tool: str) -> Iterator[str]:
    """Yield the lines of `network-list` for (domid, interfaces). BE-path names the bridge and the host's interface."""
    rows = list(rows)
    if tool == "xm" and not any(items for _, items in rows):
        return
    if tool == "xm":
        yield "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path"
    else:
        yield (
            f"{'Idx':<3} {'BE':<2} {'Mac Addr.':<17} {'handle':<6} {'state':<5} {'evt-ch':<6} "
            f"{'tx-':>5}/{'rx-ring-ref':<5} {'BE-path':<30}"
        )
    for _domid, items in rows:
        for index, item in enumerate(items):
            vif, path = item.spec, f"{item.spec.bridge}/{item.device}"
            if tool == "xm":
                head = f"{index:<3} {0:<3}{vif.mac:<17}    {index:<3}   {4:<3}    {-1:<3}   "
                yield f"{head}{-1:<5}/{-1:<5}   {path:<30}  "
            else:
                yield f"{index:<3} {0:<2} {vif.mac}{index:>6} {4:>5} {-1:>6} {-1:>5}/{-1:<11} {path:<30}"


def plain(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table of veery: columns as wide as their contents, two spaces apart, no trailing spaces."""
    lines = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
