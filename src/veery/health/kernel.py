"""The kernel's log: lockups, stalls, hung tasks, and errors of the host's own disks.

Every pattern begins with the prefix that the subsystem prints, because words inside a sentence mean nothing. Disks that
are volumes of domains do not belong to this host: a fenced or moved volume produces errors on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from veery.health import kmsg
from veery.health.series import Given, Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source

WINDOW_S = 600.0
OFTEN = 3  # this many in the window
STUCK_LONG_S = 60  # the watchdog reports after 22 s; a processor that is stuck for this long does not recover soon

LOCKUP = re.compile(r"(?:watchdog: |NMI watchdog: )?BUG: soft lockup - CPU#(\d+) stuck for (\d{1,9})s", re.ASCII)
HARD = re.compile(
    r"(?:NMI )?watchdog: (?:Watchdog detected|CPU\d+: Watchdog detected) hard LOCKUP|Kernel panic - not syncing", re.I
)
STALL = re.compile(r"(?:rcu: )?INFO: rcu\w* (?:self-)?detected (?:expedited )?stalls?", re.ASCII)
HUNG = re.compile(r"INFO: task (\S{1,64}) blocked for more than (\d{1,9}) seconds", re.ASCII)
OOPS = re.compile(
    r"BUG: unable to handle|BUG: kernel NULL pointer|BUG: Bad page|Oops: |Internal error: Oops|kernel BUG at |"
    r"general protection fault.*\[#\d+\]|Out of memory: Kill",
    re.ASCII,
)
IO_ERROR = re.compile(
    r"(?:blk_update_request: |print_req_error: |end_request: )?"
    r"(I/O error|critical (?:medium|target|nexus) error), dev ([\w!-]{1,32})"
    r"|(Buffer I/O error) on (?:dev|device) ([\w!-]{1,32})",
    re.ASCII,
)
UNSUPPORTED = re.compile(r"op 0x[39]:\((?:DISCARD|WRITE_ZEROES)\)", re.ASCII)
SENSE = re.compile(r"sd [\d:]{1,20}: \[(sd[a-z]{1,4})\].* Sense Key : (Medium Error|Hardware Error)", re.ASCII)
NOT_DISKS = re.compile(r"(fd|sr|loop|ram|zram|nbd|mtdblock)\d|dm-|md\d|drbd|rbd", re.ASCII)
OFFLINE = re.compile(
    r"(?:sd [\d:]{1,20}: )\[(sd[a-z]{1,4})\].*(?:rejecting I/O to (?:offline|dead) device|Device offlined)", re.ASCII
)
NVME_GONE = re.compile(
    r"nvme (nvme\d{1,3}): (?:Removing after probe failure|Device not ready; aborting (?:reset|initialisation)"
    r"|Disabling device after reset failure|Remove after|failed to .*controller.*dead)",
    re.I,
)
CAPACITY = re.compile(r"(\w{1,32}): detected capacity change from [1-9]\d{0,20} to 0\b", re.ASCII)
NVME_SLOW = re.compile(
    r"nvme (nvme\d{1,3}): (?:I/O (?:tag )?\d.*timeout, (?!completion polled)|controller is down; will reset)", re.ASCII
)
ATA = re.compile(r"(ata\d{1,3})(?:\.\d{1,2})?: failed command: (?!PACKET|IDENTIFY|SMART|SECURITY|CHECK)", re.ASCII)
ATA_OFF = re.compile(r"(ata\d{1,3})(?:\.\d{1,2})?: disable(?:d| device)", re.ASCII)
IOMMU = re.compile(
    r"DMAR: \[DMA (?:Read|Write)[^\]]{0,40}\] Request device \[([0-9a-f:.]{1,16})\]|"
    r"(?:.{0,60}: )?AMD-Vi: Event logged \[IO_PAGE_FAULT",
    re.ASCII,
)
NVME_RESET = re.compile(
    r"nvme (nvme\d{1,3}): (?:controller is down; will reset|I/O .*timeout, (?:reset|disable) controller)", re.ASCII
)
UNNAMED_OFFLINE = re.compile(
    r"sd ([\d:]{1,20}): (?:rejecting I/O to (?:offline|dead) device|Device offlined)", re.ASCII
)
NAMED = re.compile(r"sd ([\d:]{1,20}): \[(sd[a-z]{1,4})\]", re.ASCII)
NMI = re.compile(r"NMI: (?:PCI system error|IOCK error|memory parity error)", re.ASCII)
CONTROLLER = re.compile(
    r"(?:megaraid_sas|mpt[23]sas\w*|hpsa|aacraid|smartpqi)\b.*"
    r"(?:(fault_state|FAULT state|lockup detected|controller is offline)|adapter reset)",
    re.I,
)
MD_FAILED = re.compile(r"md/raid\S{0,10}: ?Disk failure on (\S{1,32}), disabling", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reading:
    """The log; None if the file has no line that can be parsed."""

    log: tuple[kmsg.Record, ...] | None


Found = tuple[str, Level, object, str]
Rule = Callable[[Sequence[kmsg.Record], Given], Iterator[Found]]


class Kernel:
    """The sensor of kernel problems."""

    name = "kernel"

    def read(self, source: Source) -> Reading | None:
        log = kmsg.read(source)
        return None if log is None else Reading(log or None)

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        if series.last.log is None:
            yield sign(self.name, "log", Level.UNKNOWN, "", "the kernel's log holds no line that can be read")
            return
        log = kmsg.merged(moment.reading.log for moment in series.moments)
        told = False
        for rule in RULES:
            for part, level, value, said in rule(log, series.given):
                told = True
                yield sign(self.name, part, level, value, said)
        if not told:
            yield sign(self.name, "log", Level.OK, len(log), f"{len(log)} lines, none of an illness")


def _stuck(log: Sequence[kmsg.Record], _given: Given) -> Iterator[Found]:
    lockups = [(record, int(match[2])) for record in log if (match := LOCKUP.match(record.text))]
    stalls = [record for record in log if STALL.match(record.text)]
    if any(HARD.match(record.text) for record in log):
        yield "processors", Level.BAD, "", "a processor does nothing at all, or the kernel gave up"
    if lockups:
        longest = max(seconds for _, seconds in lockups)
        often = kmsg.most_within([record for record, _ in lockups], WINDOW_S) >= OFTEN
        level = Level.BAD if often or longest >= STUCK_LONG_S else Level.WATCH
        yield "processors", level, f"{longest} s", f"{len(lockups)} times a processor was stuck"
    if stalls:
        level = Level.BAD if kmsg.most_within(stalls, WINDOW_S) >= OFTEN else Level.WATCH
        yield "processors", level, len(stalls), "processors stall"


def _tasks(log: Sequence[kmsg.Record], _given: Given) -> Iterator[Found]:
    hung = [match[1] for record in log if (match := HUNG.match(record.text))]
    if hung:
        yield hung[0], Level.WATCH, len(hung), "a task is blocked for minutes"
    faults = [record.text for record in log if OOPS.match(record.text)]
    if faults:
        yield "kernel", Level.WATCH, len(faults), f"a fault of the kernel: {faults[0]}"


def _disks(log: Sequence[kmsg.Record], given: Given) -> Iterator[Found]:
    failed: dict[str, list[kmsg.Record]] = {}
    medium: set[str] = set()
    for record in log:
        if match := SENSE.match(record.text):
            disk = match[1]
            if given.is_ours(disk):
                medium.add(disk)
        elif (match := IO_ERROR.match(record.text)) and not UNSUPPORTED.search(record.text):
            disk = match[2] or match[4]
            if given.is_ours(disk) and not NOT_DISKS.match(disk):
                failed.setdefault(disk, []).append(record)
                if match[1] and "medium" in match[1]:
                    medium.add(disk)
    for disk in sorted(medium):
        yield disk, Level.WATCH, "", "the disk cannot read or write parts of its medium"
    for disk, records in failed.items():
        if disk not in medium:
            often = kmsg.most_within(records, WINDOW_S) >= OFTEN
            yield disk, Level.WATCH if often else Level.OK, len(records), "errors of reads or writes"


def _gone(log: Sequence[kmsg.Record], given: Given) -> Iterator[Found]:
    gone: dict[str, str] = {}
    for record in log:
        for pattern in (OFFLINE, NVME_GONE, CAPACITY):
            match = pattern.match(record.text)
            if match and given.is_ours(match[1]) and not NOT_DISKS.match(match[1]):
                gone.setdefault(match[1], record.text)
    for disk, text in gone.items():
        yield disk, Level.BAD, "", f"the disk is gone: {text}"
    named = {match[1]: match[2] for record in log if (match := NAMED.match(record.text))}
    lost = any((match := IO_ERROR.match(record.text)) and given.is_ours(match[2] or match[4]) for record in log)
    for record in log:
        if match := ATA_OFF.match(record.text):
            yield match[1], Level.BAD if lost else Level.WATCH, "", "the kernel gave a disk up"
        if (match := UNNAMED_OFFLINE.match(record.text)) and _may_be_ours(named.get(match[1]), given):
            yield match[1], Level.WATCH, "", "a disk is offline"
        if match := CONTROLLER.match(record.text):
            yield "controller", Level.BAD if match[1] else Level.WATCH, "", record.text
        if match := MD_FAILED.match(record.text):
            yield match[1], Level.WATCH, "", "an array put a disk out"


def _may_be_ours(disk: str | None, given: Given) -> bool:
    """Return True if a disk that the kernel shows only by its address may belong to this host. `disk` is its name, if
    known."""
    return given.is_ours(disk) if disk else not given.own_luns


def _nmi(log: Sequence[kmsg.Record], _given: Given) -> Iterator[Found]:
    found = [record.text for record in log if NMI.match(record.text)]
    if found:
        yield "processors", Level.WATCH, len(found), f"the hardware raised an NMI: {found[0]}"


def _reset(log: Sequence[kmsg.Record], given: Given) -> Iterator[Found]:
    named = [match[1] for record in log if (match := NVME_RESET.match(record.text)) and given.is_ours(match[1])]
    for disk in dict.fromkeys(named):
        yield disk, Level.WATCH, named.count(disk), "the disk did not answer and was reset"


def _slow(log: Sequence[kmsg.Record], given: Given) -> Iterator[Found]:
    for pattern in (NVME_SLOW, ATA):
        slow: dict[str, list[kmsg.Record]] = {}
        for record in log:
            if (match := pattern.match(record.text)) and (pattern is ATA or given.is_ours(match[1])):
                slow.setdefault(match[1], []).append(record)
        for disk, records in slow.items():
            if kmsg.most_within(records, WINDOW_S) >= OFTEN:
                yield disk, Level.WATCH, len(records), "the disk does not answer in time, again and again"


def _iommu(log: Sequence[kmsg.Record], _given: Given) -> Iterator[Found]:
    faults = [record for record in log if IOMMU.match(record.text) and not record.at_boot]
    if len(faults) >= OFTEN:
        yield "iommu", Level.WATCH, len(faults), "a device reads or writes where it may not"


RULES: tuple[Rule, ...] = (_stuck, _nmi, _tasks, _disks, _gone, _reset, _slow, _iommu)
