"""Network interfaces: carrier, speed, damaged frames, hanging transmit queues.

Source: Documentation/ABI/testing/sysfs-class-net and -statistics. rx_dropped counts frames of unknown protocols and is
not read. Taps and bridges change their carrier with every move, so only uplinks and storage interfaces count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from veery.health import kmsg
from veery.health.series import Given, Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source

DOWN_HOLD_S = 10.0
FLAP_WINDOW_S = 600.0
FLAPS = 3
DAMAGED_SHARE = 0.01
PACKETS_LEAST = 1000
HANGS = re.compile(
    r"NETDEV WATCHDOG: (\S{1,20}) |\S{1,40} [0-9a-f:.]{7,16} (\S{1,20}): Detected Hardware Unit Hang", re.ASCII
)
LINK_DOWN = re.compile(
    r"(?:\S{1,40} [0-9a-f:.]{7,16} )?(\S{1,20}?):? (?:NIC )?[Ll]ink (?:is )?[Dd]own|\S{1,20}: (\S{1,20}): link down",
    re.ASCII,
)
VIRTUAL = re.compile(
    r"(lo|tap|vif|veth|virbr|docker|br|dummy|tun|wg|ifb|sit|macvtap|vnet|ovs|bonding_masters)", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One interface."""

    up: bool
    downs: int | None  # how often the carrier was lost
    speed: int | None  # Mb/s
    packets: tuple[int | None, int | None]  # received, sent
    damaged: tuple[int | None, int | None]
    half_duplex: bool = False
    is_bond: bool = False
    address: str = ""  # the card's own MAC; "" if another one was set


@dataclass(frozen=True, slots=True)
class Reading:
    """The interfaces by name, and the kernel's log."""

    links: dict[str, Link] = field(default_factory=dict)
    log: tuple[kmsg.Record, ...] = ()


class Nic:
    """The sensor of network interfaces."""

    name = "nic"

    def read(self, source: Source) -> Reading | None:
        links: dict[str, Link] = {}
        for path in source.paths("sys/class/net/*"):
            if VIRTUAL.match(path.name):
                continue
            if found := _link(source, f"sys/class/net/{path.name}"):
                links[path.name] = found
        log = tuple(
            record for record in kmsg.read(source) or () if HANGS.match(record.text) or LINK_DOWN.match(record.text)
        )
        return Reading(links, log) if links or log else None

    def judge(self, series: Series[Reading]) -> Iterator[Sign]:
        given = series.given
        known = {name for moment in series.moments for name in moment.reading.links}
        for name in sorted(known):
            link = series.last.links.get(name)
            if link and link.is_bond:
                continue  # the bond's own sensor knows more
            if _counts(given, name):
                yield from self._link(series, name)
            else:
                yield sign(self.name, name, Level.OK, "", "neither an uplink nor a storage interface")
        yield from self._all_down(series, known)
        yield from self._logged(series)

    def _link(self, series: Series[Reading], name: str) -> Iterator[Sign]:
        last = series.last.links.get(name)
        was_up = any((link := reading.links.get(name)) and link.up for reading in series.earlier)
        if last is None or not last.up:
            named = name in (series.given.uplinks or ()) or name in (series.given.storage_nics or ())
            level = Level.WATCH if named or was_up else Level.OK
            said = "the interface is gone" if last is None else "the interface has no carrier"
            yield sign(self.name, name, level, "down", said, serial=last.address if last else "")
            return
        findings = [found for found in (_flaps(series, name), _slower(series, name), _damaged(series, name)) if found]
        if last.half_duplex:
            findings.append(("half", "the link is half duplex"))
        for value, said in findings:
            yield sign(self.name, name, Level.WATCH, value, said, serial=last.address)
        if not findings:
            yield sign(self.name, name, Level.OK, "up", "the interface is up", serial=last.address)

    def _all_down(self, series: Series[Reading], known: set[str]) -> Iterator[Sign]:
        uplinks = sorted(known & (series.given.uplinks or frozenset()))

        def dark(reading: Reading) -> bool:
            return not any((link := reading.links.get(name)) and link.up for name in uplinks)

        if uplinks and series.held(dark, DOWN_HOLD_S):
            yield sign(
                self.name, ",".join(uplinks), Level.BAD, "down", "no uplink of the domains' bridges has a carrier"
            )

    def _logged(self, series: Series[Reading]) -> Iterator[Sign]:
        log = kmsg.merged(moment.reading.log for moment in series.moments)
        hung: dict[str, int] = {}
        downs: dict[str, list[kmsg.Record]] = {}
        for record in log:
            if match := HANGS.match(record.text):
                name = match[1] or match[2]
                hung[name] = hung.get(name, 0) + 1
            elif match := LINK_DOWN.match(record.text):
                downs.setdefault(match[1] or match[2], []).append(record)
        for name, count in hung.items():
            if _counts(series.given, name) and not VIRTUAL.match(name):
                yield sign(self.name, name, Level.WATCH, count, "the interface hangs and is reset")
        for name, records in downs.items():
            if name in (series.given.uplinks or ()) and kmsg.most_within(records, FLAP_WINDOW_S) >= FLAPS:
                yield sign(self.name, name, Level.WATCH, len(records), "the link goes down again and again")


def _counts(given: Given, name: str) -> bool:
    """Return True if domains or the storage need the interface. If the settings name none, all count."""
    if given.uplinks is None and given.storage_nics is None:
        return True
    return name in (given.uplinks or ()) or name in (given.storage_nics or ())


def _link(source: Source, folder: str) -> Link | None:
    carrier, state = source.word(f"{folder}/carrier"), source.word(f"{folder}/operstate")
    if carrier is None and state is None:
        return None
    downs = source.number(f"{folder}/carrier_down_count")
    if downs is None and (changes := source.number(f"{folder}/carrier_changes")) is not None:
        downs = changes // 2
    counters = {
        name: source.number(f"{folder}/statistics/{name}")
        for name in ("rx_packets", "tx_packets", "rx_errors", "tx_errors", "rx_crc_errors")
    }
    received = [value for value in (counters["rx_errors"], counters["rx_crc_errors"]) if value is not None]
    return Link(
        up=carrier == "1" if carrier in ("0", "1") else state in ("up", "unknown"),
        downs=downs,
        speed=source.number(f"{folder}/speed"),
        packets=(counters["rx_packets"], counters["tx_packets"]),
        damaged=(max(received) if received else None, counters["tx_errors"]),
        half_duplex=source.word(f"{folder}/duplex") == "half",
        address=(source.word(f"{folder}/address") or "") if source.word(f"{folder}/addr_assign_type") == "0" else "",
        is_bond=bool(source.paths(f"{folder}/bonding/*")),
    )


def _flaps(series: Series[Reading], name: str) -> tuple[object, str] | None:
    def downs(reading: Reading) -> int | None:
        found = reading.links.get(name)
        return found.downs if found else None

    count = series.rate(downs, FLAP_WINDOW_S)
    return (round(count), "the link went down again and again") if count and count >= FLAPS else None


def _slower(series: Series[Reading], name: str) -> tuple[object, str] | None:
    speeds = [link.speed for moment in series.moments if (link := moment.reading.links.get(name)) and link.speed]
    speeds = [speed for speed in speeds if speed and speed > 0]
    if len(speeds) > 1 and speeds[-1] < max(speeds):
        return f"{speeds[-1]} Mb/s", f"the link is slower than before ({max(speeds)} Mb/s)"
    return None


def _damaged(series: Series[Reading], name: str) -> tuple[object, str] | None:
    for way, said in enumerate(("received", "sent")):

        def counter(which: str, way: int = way) -> Sequence[int | None]:
            links = [moment.reading.links.get(name) for moment in series.moments]
            return [getattr(link, which)[way] for link in links if link]

        packets, errors = _grown(counter("packets")), _grown(counter("damaged"))
        if packets >= PACKETS_LEAST and errors > DAMAGED_SHARE * (packets + errors):
            return f"{100 * errors / (packets + errors):.1f} %", f"frames that are {said} are damaged"
    return None


def _grown(values: Sequence[int | None]) -> int:
    """Return the growth of a counter; of a single value, the value itself."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return known[0] if known else 0
    return max(0, known[-1] - known[0])
