"""The verdict on a node's signs, over time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veery.health.sign import Level, Sign, sign
from veery.health.verdict import FIGURES, Figures, History, acknowledge, conclude, follow, rebooted, replaced
from veery.model.verdict import HealthRecord, NodeVerdict, SensorMode

PACE_S = 60.0
BAD, OK, WATCH, UNKNOWN = Level.BAD, Level.OK, Level.WATCH, Level.UNKNOWN
WELL, QUARANTINE, EVACUATE = NodeVerdict.WELL, NodeVerdict.QUARANTINE, NodeVerdict.EVACUATE


class Node:
    """A node whose sensors are read once a minute."""

    def __init__(self, **modes: SensorMode) -> None:
        self.modes, self.history, self.now = modes, History(), 0.0
        self.record = HealthRecord()

    def read(self, *signs: Sign, sensor: str = "") -> NodeVerdict:
        """One reading of one sensor; the verdict after it."""
        self.now += PACE_S
        self.history = follow(self.history, sensor or signs[0].sensor, signs, self.now)
        return self.conclude()

    def conclude(self) -> NodeVerdict:
        self.history, self.record = conclude(self.history, self.modes, self.now)
        return self.record.verdict

    def pass_(self, seconds: float) -> None:
        self.now += seconds - PACE_S


def of(sensor: str, level: Level, value: object = "", *, part: str = "it", counter: bool = False) -> Sign:
    return sign(sensor, part, level, value, f"{sensor} is {level}", counter=counter)


def test_a_fact_empties_the_node_at_once_and_stands() -> None:
    node = Node()
    assert node.read(of("ecc", BAD, 1)) is EVACUATE
    assert node.record.severe
    assert not node.record.singly
    assert node.record.reason == "ecc it: ecc is bad (1)"
    node.pass_(10 * 86400)
    assert node.read(of("ecc", OK)) is EVACUATE


def test_a_state_counts_when_three_of_five_readings_show_it() -> None:
    node = Node()
    levels = [BAD, OK, BAD, OK, BAD]
    assert [node.read(of("rootfs", each)) for each in levels] == [WELL, WELL, WELL, WELL, EVACUATE]


def test_two_bad_readings_of_five_change_nothing() -> None:
    node = Node()
    assert {node.read(of("rootfs", each)) for each in [BAD, OK, OK, BAD, OK] * 10} == {WELL}


def test_back_goes_by_quarantine_and_takes_a_calm_time() -> None:
    node = Node()
    for _ in range(3):
        node.read(of("rootfs", BAD))
    came = [node.read(of("rootfs", OK)) for _ in range(25)]
    assert came[:2] == [EVACUATE, EVACUATE]
    assert set(came[2:19]) == {QUARANTINE}  # ten times the two minutes that it took to be raised
    assert came[-1] is WELL
    assert node.record.signs == ()


def test_one_bad_reading_in_the_calm_begins_it_anew() -> None:
    node = Node()
    for level in [BAD] * 3 + [OK] * 10 + [BAD] + [OK] * 10:
        node.read(of("rootfs", level))
    assert node.record.verdict is QUARANTINE


def test_a_part_that_is_told_of_no_more_is_well() -> None:
    node = Node()
    for _ in range(3):
        node.read(of("md", BAD, part="md0"))
    assert [node.read(sensor="md") for _ in range(3)] == [EVACUATE, EVACUATE, QUARANTINE]
    node.pass_(2000)
    assert node.read(sensor="md") is WELL


def test_flapping_ends_in_quarantine() -> None:
    node = Node()
    for _ in range(2):
        for level in [BAD] * 3 + [OK] * 30:
            node.read(of("nic", level))
    assert node.record.verdict is QUARANTINE
    assert "2 times of late" in node.record.reason
    for _ in range(3):
        assert node.read(of("nic", BAD)) is QUARANTINE  # the third time nothing is moved
    node.pass_(2 * FIGURES.flap_window_s)
    assert [node.read(of("nic", OK)) for _ in range(3)][-1] is WELL


def test_unknown_is_never_bad() -> None:
    node = Node()
    assert {node.read(of("smart", UNKNOWN)) for _ in range(100)} == {WELL}
    assert [each.level for each in node.record.signs] == ["unknown"]


def test_a_state_of_which_nothing_is_learnt_any_more_is_quarantine_and_ends() -> None:
    node = Node()
    for _ in range(3):
        node.read(of("rootfs", BAD, part="/"))
    hung = sign("rootfs", "sensor", UNKNOWN, "", "it gave no answer in time")
    assert node.read(hung) is QUARANTINE
    node.pass_(FIGURES.unknown_keeps_s)
    assert node.read(hung) is WELL


def test_a_fact_stands_while_its_sensor_hangs() -> None:
    node = Node()
    node.read(of("smart", BAD, "FAILED", part="sda"))
    assert node.read(sign("smart", "sensor", UNKNOWN, "", "late")) is EVACUATE
    assert node.record.reason == "smart sda: smart is bad (FAILED)"


def test_watch_is_told_and_changes_nothing() -> None:
    node = Node()
    assert {node.read(of("ipmi", WATCH)) for _ in range(9)} == {WELL}
    assert [each.level for each in node.record.signs] == ["watch"]


# ---- what a log said
def test_what_a_log_said_expires() -> None:
    node = Node(kernel=SensorMode.EVACUATE)
    came = [node.read(of("kernel", BAD, part="sdq")) for _ in range(90)]
    hour = int(FIGURES.log_life_s / PACE_S)
    assert set(came[:hour]) == {EVACUATE}
    assert set(came[hour + 2 : hour + 14]) == {QUARANTINE}
    assert came[-1] is WELL


def test_what_a_log_says_anew_counts_anew() -> None:
    node = Node(kernel=SensorMode.EVACUATE)
    for count in range(1, 200):
        assert node.read(of("kernel", BAD, count)) is EVACUATE


def test_a_log_is_not_believed_where_the_disk_answers() -> None:
    node = Node(kernel=SensorMode.EVACUATE)
    node.read(of("smart", OK, part="nvme0n1"))
    assert node.read(of("kernel", BAD, part="nvme0")) is WELL
    assert node.read(of("kernel", BAD, part="nvme1")) is EVACUATE


# ---- modes
def test_a_counter_is_told_as_it_ships() -> None:
    node = Node()
    for _ in range(3):
        node.read(of("ecc", BAD, 400, counter=True))
    assert node.record.verdict is WELL
    assert node.record.withheld is not None
    assert node.record.withheld.text == "ecc it: ecc is bad (400)"


def test_a_counter_of_memory_that_may_empty_the_node_does_so_one_domain_at_a_time() -> None:
    node = Node(ecc=SensorMode.EVACUATE)
    assert [node.read(of("ecc", BAD, 400, counter=True)) for _ in range(3)] == [WELL, WELL, EVACUATE]
    assert (node.record.severe, node.record.singly) == (False, True)


@pytest.mark.parametrize(
    ("mode", "verdict", "signs"),
    [
        (SensorMode.OFF, WELL, 0),
        (SensorMode.TELL, WELL, 1),
        (SensorMode.QUARANTINE, QUARANTINE, 1),
        (SensorMode.EVACUATE, EVACUATE, 1),
    ],
)
def test_a_mode_says_how_far_a_sensor_may_go(mode: SensorMode, verdict: NodeVerdict, signs: int) -> None:
    node = Node(ecc=mode)
    assert node.read(of("ecc", BAD)) is verdict
    assert len(node.record.signs) == signs


@pytest.mark.parametrize(
    ("sensor", "verdict"),
    [("clock", WELL), ("psi", WELL), ("multipath", WELL), ("units", QUARANTINE), ("plugin", EVACUATE)],
)
def test_the_modes_that_ship(sensor: str, verdict: NodeVerdict) -> None:
    node = Node()
    for _ in range(5):
        node.read(of(sensor, BAD))
    assert node.record.verdict is verdict


# ---- back
def test_an_operator_says_well_and_the_same_finding_counts_no_more() -> None:
    node = Node()
    node.read(of("ecc", BAD, 1))
    node.history = acknowledge(node.history)
    assert node.conclude() is WELL
    assert node.read(of("ecc", BAD, 1)) is WELL
    assert node.read(of("ecc", BAD, 2)) is EVACUATE


def test_an_operator_says_well_of_one_sensor() -> None:
    node = Node()
    node.read(of("ecc", BAD, 1))
    node.read(of("smart", BAD, "FAILED"))
    node.history = acknowledge(node.history, "ecc")
    assert node.conclude() is EVACUATE
    node.history = acknowledge(node.history, "smart")
    assert node.conclude() is WELL


def test_facts_of_a_boot_end_with_it() -> None:
    node = Node()
    node.read(of("ecc", BAD, 1))
    node.history = rebooted(node.history)
    assert node.conclude() is WELL
    node.read(of("smart", BAD, "FAILED"))
    node.history = rebooted(node.history)
    assert node.conclude() is EVACUATE


# ---- whatever comes
readings = st.lists(
    st.tuples(
        st.sampled_from(["ecc", "rootfs", "kernel", "nic"]),
        st.lists(
            st.builds(
                lambda level, part, value, counter: sign("x", part, level, value, "s", counter=counter),
                st.sampled_from([OK, WATCH, UNKNOWN, BAD]),
                st.sampled_from(["a", "b", "sensor"]),
                st.integers(0, 2),
                st.booleans(),
            ),
            max_size=3,
        ),
        st.floats(0.0, 5000.0),
    ),
    max_size=40,
)


def _played(steps: Iterable[tuple[str, list[Sign], float]]) -> Node:
    node = Node(kernel=SensorMode.EVACUATE)
    for sensor, signs, pause_s in steps:
        named = [sign(sensor, each.part, each.level, each.value, each.sentence, counter=each.counter) for each in signs]
        node.pass_(pause_s + PACE_S)
        node.read(*named, sensor=sensor)
    return node


@given(readings)
def test_without_a_bad_sign_a_node_is_well(steps: list[tuple[str, list[Sign], float]]) -> None:
    harmless = [(sensor, [each for each in signs if each.level is not BAD], pause) for sensor, signs, pause in steps]
    assert _played(harmless).record.verdict is WELL


@given(readings)
def test_no_node_is_held_for_ever_once_an_operator_says_well(steps: list[tuple[str, list[Sign], float]]) -> None:
    node = _played(steps)
    node.history = acknowledge(node.history)
    assert node.conclude() is WELL


@given(readings)
def test_all_but_facts_end_by_themselves(steps: list[tuple[str, list[Sign], float]]) -> None:
    node = _played([each for each in steps if each[0] != "ecc"])
    for _ in range(2):
        node.pass_(200_000)
        for _ in range(4):
            for sensor in ("rootfs", "kernel", "nic"):
                node.read(sensor=sensor)
    assert node.record.verdict is WELL


@given(readings)
def test_the_same_readings_give_the_same_verdict(steps: list[tuple[str, list[Sign], float]]) -> None:
    assert _played(steps).record == _played(steps).record


def test_figures_can_be_others() -> None:
    history = follow(History(), "nic", [of("nic", BAD)], 1.0, Figures(up=1))
    assert conclude(history, {}, 1.0, Figures(up=1))[1].verdict is EVACUATE


def disk(level: Level, serial: str, *, part: str = "sda", value: object = "") -> Sign:
    return sign("smart", part, level, value, f"smart is {level}", serial=serial)


def test_a_fact_about_a_part_ends_when_another_serial_is_in_its_place() -> None:
    node = Node()
    assert node.read(disk(BAD, "A1")) is EVACUATE
    assert node.record.signs[0].serial == "A1"
    assert node.read(disk(OK, "A1")) is EVACUATE
    before = node.history
    assert node.read(disk(OK, "B2")) is EVACUATE  # one reading can be wrong
    assert node.read(disk(OK, "B2")) is WELL
    assert [each.serial for each in replaced(before, node.history)] == ["A1"]
    assert node.read(disk(BAD, "B2")) is EVACUATE  # the new disk is judged by itself
    assert node.record.signs[0].serial == "B2"


@pytest.mark.parametrize(
    "readings",
    [
        [disk(OK, ""), disk(OK, "")],
        [disk(OK, "B2"), disk(OK, "A1"), disk(OK, "B2")],
        [disk(OK, "B2"), disk(OK, "C3")],
        [disk(UNKNOWN, "B2"), disk(UNKNOWN, "B2")],
        [disk(WATCH, "N/A"), disk(WATCH, "0000")],
    ],
    ids=["no serial", "it comes and goes", "two others", "nothing is learnt", "no real serial"],
)
def test_a_fact_stands_without_proof_of_another_part(readings: list[Sign]) -> None:
    node = Node()
    node.read(disk(BAD, "A1"))
    assert {node.read(each) for each in readings} == {EVACUATE}


def test_a_fact_of_which_no_serial_is_known_takes_the_first_that_is_read() -> None:
    node = Node()
    node.read(disk(BAD, ""))
    assert {node.read(disk(OK, "A1")) for _ in range(3)} == {EVACUATE}
    node.read(disk(OK, "B2"))
    assert node.read(disk(OK, "B2")) is WELL


def test_a_fact_follows_its_disk_to_another_name() -> None:
    node = Node()
    node.read(disk(BAD, "A1"), disk(OK, "B2", part="sdb"))
    swapped = disk(OK, "B2"), disk(OK, "A1", part="sdb")
    for _ in range(3):
        assert node.read(*swapped) is EVACUATE
    assert [(each.part, each.serial) for each in node.record.signs] == [("sdb", "A1")]
    assert replaced(node.history, node.history) == ()


def test_a_disk_on_two_paths_keeps_both_names() -> None:
    node = Node()
    both = disk(BAD, "A1"), disk(BAD, "A1", part="sdb")
    for _ in range(3):
        assert node.read(*both) is EVACUATE
    assert sorted(each.part for each in node.record.signs) == ["sda", "sdb"]


def test_what_an_operator_called_well_counts_again_for_another_part() -> None:
    node = Node()
    node.read(disk(BAD, "A1"))
    node.history = acknowledge(node.history, "smart")
    assert node.read(disk(BAD, "A1")) is WELL
    node.read(disk(BAD, "B2"))
    assert node.read(disk(BAD, "B2")) is EVACUATE


def test_a_quarantine_for_flapping_ends_with_another_card() -> None:
    node = Node()
    for _ in range(2):
        for level in [BAD] * 3 + [OK] * 30:
            node.read(sign("nic", "eth0", level, "", "it flaps", serial="52:54:00:00:00:01"))
    assert node.record.verdict is QUARANTINE
    other = sign("nic", "eth0", OK, "", "the interface is up", serial="52:54:00:00:00:02")
    assert [node.read(other) for _ in range(2)][-1] is WELL


def supply(level: Level, *, exposed: bool = False) -> Sign:
    return sign("ipmi", "PS2", level, "", f"the supply is {level}", exposed=exposed)


def test_a_lost_supply_is_quarantine_while_it_lasts() -> None:
    node = Node()
    assert [node.read(supply(WATCH, exposed=True)) for _ in range(4)] == [WELL, WELL, QUARANTINE, QUARANTINE]
    assert (node.record.severe, node.record.reason) == (False, "ipmi PS2: the supply is watch")
    assert [node.read(supply(OK)) for _ in range(3)] == [QUARANTINE] * 3
    assert node.record.reason == "ipmi PS2: it was bad a while ago: the supply is watch"
    node.pass_(2000)
    assert node.read(supply(OK)) is WELL


def test_a_sign_to_be_watched_is_no_quarantine_by_itself() -> None:
    node = Node()
    assert {node.read(supply(WATCH)) for _ in range(10)} == {WELL}


def test_the_last_supply_is_severe_when_three_readings_of_five_show_it() -> None:
    node = Node()
    for _ in range(5):
        node.read(supply(WATCH, exposed=True))
    assert [node.read(supply(BAD)) for _ in range(3)] == [QUARANTINE, QUARANTINE, EVACUATE]
    assert node.record.severe
    assert node.read(supply(WATCH, exposed=True)) is EVACUATE  # one reading can be wrong
    assert [node.read(supply(WATCH, exposed=True)) for _ in range(2)] == [EVACUATE, QUARANTINE]
    assert not node.record.severe


def test_a_supply_that_fails_at_once_is_severe() -> None:
    node = Node()
    assert [node.read(supply(BAD)) for _ in range(3)] == [WELL, WELL, EVACUATE]
    assert node.record.severe


def test_an_operator_can_call_a_lost_supply_well() -> None:
    node = Node()
    for _ in range(3):
        node.read(supply(WATCH, exposed=True))
    node.history = acknowledge(node.history)
    assert {node.read(supply(WATCH, exposed=True)) for _ in range(10)} == {WELL}
    assert [node.read(supply(BAD)) for _ in range(3)][-1] is EVACUATE


def test_only_states_can_ask_for_quarantine_while_they_are_watched() -> None:
    node = Node()
    found = sign("smart", "sda", WATCH, "", "it is hot", exposed=True)
    assert {node.read(found) for _ in range(10)} == {WELL}
