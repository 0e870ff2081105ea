"""The node's sensors at work: their clocks, a sensor that hangs, what is kept, and what stands in the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veery.cluster.keys import HEALTHS
from veery.cluster.memory import MemoryStore
from veery.config.settings import HealthSettings
from veery.errors import Refused
from veery.health.series import Moment, Sensor, Series
from veery.health.sign import Level, Sign, sign
from veery.health.source import Source
from veery.host.clock import RealClock
from veery.host.tasks import stop
from veery.model.verdict import HealthRecord, NodeVerdict, SensorMode
from veery.node.health import Health, thinned

WAIT_S = 60.0
PACE = 0.0005  # readings every 30 ms


class Dial:
    """A sensor that reads one file under the root: a level, and how it is called."""

    def __init__(self, name: str = "ecc") -> None:
        self.name = name
        self.gate = threading.Event()
        self.gate.set()
        self.readings = 0

    def read(self, source: Source) -> str | None:
        self.readings += 1
        self.gate.wait(WAIT_S)
        return source.word(self.name)

    def judge(self, series: Series[str]) -> Iterator[Sign]:
        yield sign(self.name, "it", Level(series.last), "1", f"it is {series.last}")


class Scene:
    """One node, a store in memory, and a folder for the sensors."""

    def __init__(self, folder: Path, *sensors: Sensor, **modes: SensorMode) -> None:
        self.root = folder / "root"
        self.root.mkdir(exist_ok=True)
        self.state, self.store = folder, MemoryStore(RealClock())
        self.settings = HealthSettings(sensors=modes, pace=PACE, root=str(self.root))
        self.sensors = sensors

    def shows(self, sensor: str, level: str) -> None:
        (self.root / sensor).write_text(level)

    def node(self, deadline_s: float = WAIT_S) -> Health:
        return Health(
            "test1",
            self.store,
            RealClock(),
            self.state,
            self.settings,
            sensors=self.sensors,
            deadline_s=deadline_s,
        )

    async def until(self, verdict: NodeVerdict) -> HealthRecord:
        async with asyncio.timeout(WAIT_S):
            while True:
                record = await HEALTHS.get(self.store, "test1")
                if record is not None and record.verdict is verdict:
                    return record
                await asyncio.sleep(0.02)


def test_a_fact_reaches_the_store_and_an_operator_takes_it_back(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path, Dial())
        scene.shows("ecc", "ok")
        health = scene.node()
        task = asyncio.create_task(health.run())
        await scene.until(NodeVerdict.WELL)
        scene.shows("ecc", "bad")
        record = await scene.until(NodeVerdict.EVACUATE)
        assert record.severe
        assert record.reason == "ecc it: it is bad (1)"
        health.well("ecc", "root")
        await scene.until(NodeVerdict.WELL)
        said = [each.text for each in health.told().history]
        assert said[:2] == ["ecc it: it is bad (1)", "root says that ecc is well"]
        await stop(task)

    asyncio.run(play())


def test_a_sensor_that_hangs_delays_no_other_and_turns_unknown(tmp_path: Path) -> None:
    async def play() -> None:
        hung, other = Dial("smart"), Dial("ecc")
        hung.gate.clear()
        scene = Scene(tmp_path, hung, other)
        scene.shows("ecc", "bad")
        health = scene.node(deadline_s=2.0)
        task = asyncio.create_task(health.run())
        try:
            await scene.until(NodeVerdict.EVACUATE)
            async with asyncio.timeout(WAIT_S):
                while not any(each.level == "unknown" for each in health.told().record.signs) or other.readings < 5:
                    await asyncio.sleep(0.02)
            assert hung.readings == 1  # no second thread while the first hangs
            states = {each.sensor: each for each in health.told().sensors}
            assert (states["smart"].late, states["smart"].level) == (True, "unknown")
        finally:
            hung.gate.set()
            await stop(task)

    asyncio.run(play())


def test_a_restart_forgets_no_fact_and_a_reboot_those_of_the_boot(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path, Dial("ecc"), Dial("smart"))
        boot = scene.root / "proc/sys/kernel/random/boot_id"
        boot.parent.mkdir(parents=True)
        boot.write_text("first\n")
        scene.shows("ecc", "bad")
        task = asyncio.create_task(scene.node().run())
        await scene.until(NodeVerdict.EVACUATE)
        await stop(task)
        scene.shows("ecc", "ok")
        again = scene.node()
        assert again.told().record.verdict is NodeVerdict.EVACUATE
        boot.write_text("second\n")
        assert scene.node().told().record.verdict is NodeVerdict.WELL

    asyncio.run(play())


def test_what_is_kept_and_cannot_be_read_is_as_nothing(tmp_path: Path) -> None:
    async def play() -> None:
        (tmp_path / "health.json").write_bytes(b"\x00{" * 1000)
        assert Scene(tmp_path, Dial()).node().told().record.verdict is NodeVerdict.WELL

    asyncio.run(play())


def test_a_sensor_that_is_off_is_not_read(tmp_path: Path) -> None:
    async def play() -> None:
        off, other = Dial("ecc"), Dial("smart")
        scene = Scene(tmp_path, off, other, ecc=SensorMode.OFF)
        scene.shows("smart", "ok")
        task = asyncio.create_task(scene.node().run())
        async with asyncio.timeout(WAIT_S):
            while other.readings < 3:
                await asyncio.sleep(0.02)
        assert off.readings == 0
        await stop(task)

    asyncio.run(play())


def test_a_mode_for_a_sensor_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no sensor 'eec'"):
        Scene(tmp_path, Dial(), eec=SensorMode.OFF).node()


def test_well_of_a_sensor_that_is_not_at_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no sensor 'smart' is at work"):
        Scene(tmp_path, Dial("ecc")).node().well("smart", "root")


def test_the_store_may_be_away(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path, Dial())
        scene.store.set_available(False)
        scene.shows("ecc", "bad")
        health = scene.node()
        task = asyncio.create_task(health.run())
        async with asyncio.timeout(WAIT_S):
            while health.told().record.verdict is not NodeVerdict.EVACUATE:
                await asyncio.sleep(0.02)
        scene.store.set_available(True)
        await scene.until(NodeVerdict.EVACUATE)
        await stop(task)

    asyncio.run(play())


def test_real_sensors_read_a_recorded_tree(tmp_path: Path) -> None:
    async def play() -> None:
        root = tmp_path / "root"
        counter = root / "sys/devices/system/edac/mc/mc0/ue_count"
        counter.parent.mkdir(parents=True)
        counter.write_text("0\n")
        store = MemoryStore(RealClock())
        settings = HealthSettings(pace=0.01, root=str(root))
        task = asyncio.create_task(Health("test1", store, RealClock(), tmp_path, settings).run())
        scene = Scene(tmp_path)
        scene.store = store
        await scene.until(NodeVerdict.WELL)
        counter.write_text("2\n")
        assert "uncorrected memory errors since boot: 2" in (await scene.until(NodeVerdict.EVACUATE)).reason
        await stop(task)

    asyncio.run(play())


def test_the_doctor_tells_what_sensors_found_and_what_they_lack(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path, Dial())
        scene.shows("ecc", "bad")
        health = scene.node()
        assert (health.finding().level, health.finding().told) == ("ok", "nothing speaks against the node")
        task = asyncio.create_task(health.run())
        await scene.until(NodeVerdict.EVACUATE)
        assert (health.finding().level, health.finding().told) == ("bad", "ecc it: it is bad (1)")
        await stop(task)

    asyncio.run(play())


def test_readings_are_bounded_and_span_a_day() -> None:
    moments: list[Moment[Any]] = []
    for minute in range(3 * 24 * 60):
        moments = thinned([*moments, Moment(minute * 60.0, minute)])
    assert len(moments) <= 30
    assert moments[-1].at is not None
    assert moments[0].at is not None
    assert 82_000 < moments[-1].at - moments[0].at <= 86_400


class Slot(Dial):
    """A sensor whose file holds the level and the serial of its disk."""

    def judge(self, series: Series[str]) -> Iterator[Sign]:
        level, serial = series.last.split()
        yield sign(self.name, "sda", Level(level), "1", f"it is {level}", serial=serial)


def test_another_disk_ends_a_fact_and_a_restart_forgets_no_serial(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path, Slot("smart"))
        scene.shows("smart", "bad A1")
        task = asyncio.create_task(scene.node().run())
        assert (await scene.until(NodeVerdict.EVACUATE)).signs[0].serial == "A1"
        await stop(task)
        scene.shows("smart", "ok A1")
        again = scene.node()
        assert (again.told().record.verdict, again.told().record.signs[0].serial) == (NodeVerdict.EVACUATE, "A1")
        task = asyncio.create_task(again.run())
        async with asyncio.timeout(WAIT_S):
            while again.told().sensors[0].age_s is None:
                await asyncio.sleep(0.02)
        assert again.told().record.verdict is NodeVerdict.EVACUATE
        await stop(task)
        scene.shows("smart", "ok B2")
        last = scene.node()
        task = asyncio.create_task(last.run())
        await scene.until(NodeVerdict.WELL)
        assert any("smart sda: another part has taken the place of A1" in each.text for each in last.told().history)
        await stop(task)

    asyncio.run(play())
