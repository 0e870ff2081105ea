"""Reads this node's sensors, each at its own interval, and writes their verdict to the store for the brain.

Each reading runs in a thread of its own, with a deadline. A sensor that hangs becomes unknown. It gets no second
thread while the first one hangs, and it does not delay other sensors. `health.json` in the state folder keeps the
history, so a restart of veeryd forgets no fact. The history's clock counts only while veeryd runs, so setting the wall
clock changes no verdict."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from veery.cluster.keys import HEALTHS
from veery.cluster.store import Store
from veery.config.settings import HealthSettings
from veery.errors import Failed, Refused, VeeryError
from veery.health import live, looking
from veery.health.looking import SENSORS, Unreadable
from veery.health.series import Given, Moment, Sensor
from veery.health.sign import Level, Sign, sign
from veery.health.source import Recorded, Source
from veery.health.verdict import (
    FIGURES,
    WHOLE,
    Figures,
    History,
    acknowledge,
    conclude,
    follow,
    level_of,
    rebooted,
    replaced,
)
from veery.host.clock import Clock
from veery.host.files import write_atomic
from veery.model import codec
from veery.model.health import Finding
from veery.model.health import Level as Grade
from veery.model.verdict import HealthChange, HealthRecord, NodeHealth, NodeVerdict, SensorMode, SensorState

log = logging.getLogger(__name__)

PACES_S = {"smart": 600.0, "nvme": 600.0, "ipmi": 120.0, "sel": 120.0, "nic": 20.0, "rootfs": 30.0, "temperature": 30.0}
PACE_S = 60.0  # between two readings of any other sensor
STAGGER_S = 0.1  # between the first readings of two sensors
DEADLINE_S = live.SENSOR_DEADLINE_S
RETRY_S = 2.0  # between two attempts to write to the store
RENEW_S = 60.0  # between two comparisons with the store, and two writes of changed values alone
KEEP_S = 600.0  # between two writes of health.json without news
NEWEST = 5  # readings of a sensor that are kept whatever their distance
APART_S = 3600.0  # between two older ones
OLDEST_S = 86400.0
CHANGES_MAX = 200
KEPT_MAX = 1 << 20  # bytes of health.json
BOOT_ID = "proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The content of health.json. `at`: the history's clock when the file was written. `boot`: the machine's boot id
    then."""

    at: float = 0.0
    boot: str = ""
    history: History = field(default_factory=History)
    changes: tuple[HealthChange, ...] = ()


@dataclass(slots=True)
class _Watched:
    """One sensor. `read_at`: the last reading, by this node's clock. `hangs`: a reading that has not returned."""

    sensor: Sensor
    pace_s: float
    moments: list[Moment[Any]] = field(default_factory=list)
    signs: Sequence[Sign] = ()
    read_at: float | None = None
    hangs: asyncio.Future[Any] | None = None


class _Sources:
    """The sources of the sensors. Sensors with the same interval share a source for half of it, so a program that two
    of them need runs once."""

    def __init__(self, root: Path, run: live.Runner, feeds: live.Feeds) -> None:
        self._root, self._run, self._feeds = root, run, feeds
        self._guard = threading.Lock()
        self._made: dict[float, tuple[Source, float]] = {}

    def of(self, pace_s: float, now: float) -> Source:
        with self._guard:
            known = self._made.get(pace_s)
            if known is not None and 0 <= now - known[1] < pace_s / 2:
                return known[0]
            source = Source(self._root, self._outputs())
            self._made[pace_s] = (source, now)
            return source

    def given(self) -> Given:
        """Return the node's facts that do not come from sensors."""
        if self._root == Path("/"):
            return live.known(self._root)
        try:
            return looking.given_in(self._root)
        except Refused:
            return Given()

    def _outputs(self) -> live.Live | Recorded:
        if self._root != Path("/"):
            return Recorded(self._root)
        return live.Live(self._root, self._run, live.kernel_log(self._root), self._feeds)


class Health:
    """The sensors of this node and their verdict. `run` is its task."""

    def __init__(
        self,
        node: str,
        store: Store,
        clock: Clock,
        folder: Path,
        settings: HealthSettings,
        *,
        sensors: Sequence[Sensor] = SENSORS,
        figures: Figures = FIGURES,
        run: live.Runner = live.run,
        deadline_s: float = DEADLINE_S,
        feeds: live.Feeds = MappingProxyType({}),
    ) -> None:
        """`folder` keeps health.json. `feeds`: as for live.Live. Raises Refused for a mode of a sensor that there is
        not."""
        names = [each.name for each in SENSORS]
        if unknown := sorted(set(settings.sensors) - {each.name for each in sensors} - set(names)):
            hint = f"in veery.toml, [health.sensors]; there are {', '.join(names)}"
            raise Refused(f"no sensor {unknown[0]!r}", hint=hint)
        self._node, self._store, self._clock, self._figures = node, store, clock, figures
        self._modes: Mapping[str, SensorMode] = settings.sensors
        self._deadline_s = deadline_s
        self._root = Path(settings.root)
        self._sources = _Sources(self._root, run, feeds)
        self._watched = {
            each.name: _Watched(each, PACES_S.get(each.name, PACE_S) * settings.pace)
            for each in sensors
            if self._modes.get(each.name) is not SensorMode.OFF
        }
        self._file = folder / "health.json"
        kept = self._recalled(_boot(self._root))
        self._boot, self._history, self._changes = kept.boot, kept.history, list(kept.changes)
        self._ahead = kept.at - clock.now()  # of the history's clock before ours
        self._record = HealthRecord()
        self._published: HealthRecord | None = None
        self._published_at = -RENEW_S
        self._written_at = clock.now()
        self._changed = asyncio.Event()
        self._conclude()

    async def run(self) -> None:
        """Read the sensors and publish the verdict, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish(), name="health in the store")
            for number, each in enumerate(self._watched.values()):
                group.create_task(self._watch(each, number * STAGGER_S), name=f"sensor {each.sensor.name}")

    # ---- asked
    def told(self) -> NodeHealth:
        """Return this node's health, with the state of each sensor."""
        now = self._clock.now()
        sensors = tuple(
            SensorState(
                sensor=name,
                level=level_of(each.signs) if each.read_at is not None else Level.UNKNOWN,
                pace_s=each.pace_s,
                age_s=None if each.read_at is None else now - each.read_at,
                late=each.hangs is not None,
            )
            for name, each in self._watched.items()
        )
        return NodeHealth(
            node=self._node, record=self._record, sensors=sensors, history=tuple(self._changes), modes=self._modes
        )

    def finding(self) -> Finding:
        """Return the finding for `veery doctor`: the verdict, and programs that would show more."""
        record, lacking = self._record, live.lacking(self._root)
        if record.verdict is not NodeVerdict.WELL:
            level = Grade.BAD if record.verdict is NodeVerdict.EVACUATE else Grade.WARN
            advice = f"veery node health {self._node}; once it is mended: veery node well {self._node}"
            return Finding(node=self._node, what="sensors", level=level, told=record.reason, advice=advice)
        if lacking:
            told = f"not installed: {', '.join(program for program, _ in lacking)}; its sensors see nothing"
            advice = f"apt install {' '.join(sorted({package for _, package in lacking}))}"
            return Finding(node=self._node, what="sensors", level=Grade.WARN, told=told, advice=advice)
        return Finding(node=self._node, what="sensors", level=Grade.OK, told="nothing speaks against the node")

    def well(self, sensor: str, by: str) -> HealthRecord:
        """Note that operator `by` declares this node, or the readings of one sensor, well. Raises Refused for an
        unknown sensor."""
        if sensor and sensor not in self._watched:
            raise Refused(f"no sensor {sensor!r} is at work on {self._node}", hint=f"veery node health {self._node}")
        self._history = acknowledge(self._history, sensor)
        self._note(self._record.verdict, f"{by} says that {sensor or 'the node'} is well")
        self._conclude()
        self._keep()
        return self._record

    # ---- sensors
    async def _watch(self, watched: _Watched, pause_s: float) -> None:
        await self._clock.sleep(pause_s)
        while True:
            signs = await self._read(watched)
            if signs is not None:
                watched.signs, watched.read_at = signs, self._clock.now()
                name, now = watched.sensor.name, self._now()
                before = self._history
                self._history = follow(before, name, signs, now, self._figures)
                for each in replaced(before, self._history):
                    text = f"{name} {each.part}: another part has taken the place of {each.serial}: {each.sentence}"
                    self._note(self._record.verdict, text)
                self._conclude()
                if _matters(before, self._history) or now - self._written_at >= KEEP_S:
                    self._keep()
            await self._clock.sleep(watched.pace_s)

    async def _read(self, watched: _Watched) -> Sequence[Sign] | None:
        """Return the signs of one reading. A sensor that does not answer in time is unknown."""
        if watched.hangs is not None and not watched.hangs.done():
            return None  # it was told that it gives no answer
        loop, now = asyncio.get_running_loop(), self._clock.now()
        sensor, moments, pace_s = watched.sensor, tuple(watched.moments), watched.pace_s
        answer: asyncio.Future[tuple[Any, list[Sign]]] = loop.create_future()

        def work() -> None:
            signs: list[Sign] = []
            reading: Any = None
            try:
                reading = looking.take(sensor, self._sources.of(pace_s, now))
                if reading is not None:
                    signs = looking.told(sensor, [*moments, Moment(now, reading)], self._sources.given())
            except Exception as error:  # of what is read beside the sensor itself; a thread must not end without a word
                said = f"nothing can be read: {type(error).__name__}: {error}"
                signs = [sign(sensor.name, WHOLE, Level.UNKNOWN, "", said)]
            with contextlib.suppress(RuntimeError):  # the daemon has ended
                loop.call_soon_threadsafe(_answered, answer, (reading, signs))

        threading.Thread(target=work, daemon=True, name=f"sensor {sensor.name}").start()
        watched.hangs = answer
        waited, _ = await asyncio.wait([answer], timeout=self._deadline_s)
        if not waited:
            log.warning("sensor=%s gave no answer within %g s", sensor.name, self._deadline_s)
            return [sign(sensor.name, WHOLE, Level.UNKNOWN, "", f"no answer within {self._deadline_s:g} s")]
        watched.hangs = None
        reading, signs = answer.result()
        if reading is not None and not isinstance(reading, Unreadable):
            watched.moments = thinned([*watched.moments, Moment(now, reading)])
        return signs

    # ---- verdict
    def _now(self) -> float:
        return self._clock.now() + self._ahead

    def _conclude(self) -> None:
        """Compute the verdict from the history. The record has the times of the wall clock."""
        now, before = self._now(), self._record
        self._history, record = conclude(self._history, self._modes, now, self._figures)
        epoch = self._clock.epoch()
        known = {(each.sensor, each.part, each.level): each.since for each in before.signs}
        signs = tuple(
            dataclasses.replace(
                each, since=_same(epoch - (now - each.since), known.get((each.sensor, each.part, each.level)))
            )
            for each in record.signs
        )
        since = before.since if before.since and before.verdict is record.verdict else epoch - (now - record.since)
        self._record = dataclasses.replace(record, since=since, signs=signs)
        if self._record.verdict is not before.verdict:
            reason = self._record.reason or "nothing speaks against it any more"
            self._note(self._record.verdict, reason)
            level = logging.INFO if self._record.verdict is NodeVerdict.WELL else logging.WARNING
            log.log(level, "node=%s health=%s reason=%s", self._node, self._record.verdict, reason)
        if self._record != before:
            self._changed.set()

    def _note(self, verdict: NodeVerdict, text: str) -> None:
        self._changes.append(HealthChange(at=self._clock.epoch(), verdict=verdict, text=text))
        del self._changes[:-CHANGES_MAX]

    # ---- kept and told
    def _recalled(self, boot: str) -> Kept:
        """Return what an earlier veeryd kept. A file that cannot be read counts as missing."""
        kept = Kept()
        try:
            with self._file.open("rb") as file:
                kept = codec.decode(file.read(KEPT_MAX), Kept)
        except FileNotFoundError:
            pass
        except (OSError, Failed) as error:
            log.warning("%s cannot be read, what sensors found earlier is forgotten: %s", self._file, error)
        if boot and kept.boot and boot != kept.boot:
            kept = dataclasses.replace(kept, history=rebooted(kept.history))
        return dataclasses.replace(kept, boot=boot or kept.boot)

    def _keep(self) -> None:
        self._written_at = self._now()
        kept = Kept(at=self._now(), boot=self._boot, history=self._history, changes=tuple(self._changes))
        try:
            write_atomic(self._file, codec.encode(kept))
        except OSError as error:
            log.warning("%s not written: %s", self._file, error)

    async def _publish(self) -> None:
        """Write the record to the store when it changes. Changed values alone are written only every RENEW_S."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_S):
                    await self._changed.wait()
            self._changed.clear()
            while not await self._said():
                await self._clock.sleep(RETRY_S)

    async def _said(self) -> bool:
        """Write the record if it is due. Return whether nothing is left to do."""
        record, now = self._record, self._clock.now()
        known = self._published
        if known is not None and _meaning(known) == _meaning(record) and now - self._published_at < RENEW_S:
            return True
        try:
            stands = await HEALTHS.get(self._store, self._node)
            if stands is None or dataclasses.replace(stands, revision=0) != record:
                await self._store.commit([], [HEALTHS.put(self._node, record)])
        except VeeryError as error:
            log.debug("health not told: %s", error.message)
            return False
        self._published, self._published_at = record, now
        return self._record is record


def thinned(moments: Sequence[Moment[Any]]) -> list[Moment[Any]]:
    """Return the newest readings, and one an hour of the day before. Only the newest keeps its log: it contains the
    earlier ones."""
    new, old = list(moments[-NEWEST:]), moments[:-NEWEST]
    last = moments[-1].at or 0.0
    kept: list[Moment[Any]] = []
    for each in old:
        at = each.at or 0.0
        if last - at <= OLDEST_S and (not kept or at - (kept[-1].at or 0.0) >= APART_S):
            kept.append(each)
    return [*(_without_log(each) for each in [*kept, *new[:-1]]), new[-1]]


def _without_log(moment: Moment[Any]) -> Moment[Any]:
    if not getattr(moment.reading, "log", None):
        return moment
    return Moment(moment.at, dataclasses.replace(moment.reading, log=()))


def _same(since: float, known: float | None) -> float:
    """Return `known` if the same moment was reported before: the wall clock may have been set since."""
    return since if known is None else known


def _meaning(record: HealthRecord) -> object:
    """Return the parts of a record that the brain uses."""
    signs = {(each.sensor, each.part, each.level, each.asks, each.would) for each in record.signs}
    return record.verdict, record.since, record.severe, record.singly, signs


def _matters(before: History, after: History) -> bool:
    """Return whether a fact, or what is counted over days, has changed."""

    def lasting(history: History) -> object:
        return history.verdict, {key: (each.raised, each.rises, each.known) for key, each in history.parts.items()}

    return lasting(before) != lasting(after)


def _answered(answer: asyncio.Future[Any], found: object) -> None:
    if not answer.done():
        answer.set_result(found)


def _boot(root: Path) -> str:
    try:
        return (root / BOOT_ID).read_text(errors="replace").strip()[:64]
    except OSError:
        return ""
