"""The machine around: temperatures, the management controller, interfaces, the kernel, the clock, Xen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from health_trees import Files, judge, log


def _hwmon(chip: str, **files: int) -> Files:
    folder = "sys/class/hwmon/hwmon0"
    return {f"{folder}/name": chip, **{f"{folder}/temp1_{name}": str(value) for name, value in files.items()}}


@pytest.mark.parametrize(
    ("tree", "level"),
    [
        (_hwmon("coretemp", input=45000, max=80000, crit=100000, crit_alarm=1), "ok"),  # the alarm never clears
        (_hwmon("coretemp", input=98500, max=80000, crit=100000), "bad"),
        (_hwmon("k10temp", input=94000, max=70000), "ok"),  # the driver's 70 C is of no processor
        (_hwmon("nct6798", input=115000, max=80000, crit=100000), "unknown"),
        (_hwmon("nvme", input=90000, max=84850, crit=94850), "watch"),
        (_hwmon("jc42", input=60000, max=0, crit=0), "ok"),
        (_hwmon("nvme", input=70000, max=84850, crit=94850, alarm=1), "watch"),
        (log("CPU1: Core temperature is above threshold, cpu clock is throttled (total events = 1)"), "watch"),
        (
            log(
                "CPU1: Core temperature is above threshold, cpu clock is throttled (total events = 1)",
                "CPU1: Core temperature/speed normal (total events = 1)",
            ),
            "ok",
        ),
        (log("thermal thermal_zone0: acpitz: critical temperature reached, shutting down"), "bad"),
    ],
)
def test_temperatures(tmp_path: Path, tree: Files, level: str) -> None:
    assert judge(tmp_path, tree).level == level


def test_heat_has_to_last(tmp_path: Path) -> None:
    cool, hot = _hwmon("coretemp", input=50000, crit=100000), _hwmon("coretemp", input=99000, crit=100000)
    assert judge(tmp_path / "a", cool, hot, hot, at=(0, 10, 30)).level == "watch"
    assert judge(tmp_path / "b", cool, hot, hot, at=(0, 10, 70)).level == "bad"
    assert judge(tmp_path / "c", hot, cool, at=(0, 70)).level == "ok"


@pytest.mark.parametrize(
    ("row", "level"),
    [
        ("1,CPU Temp,Temperature,Critical,101.00,C,'At or Above (>=) Upper Critical Threshold'", "bad"),
        ("1,CPU Temp,Temperature,Warning,90.00,C,'At or Above (>=) Upper Non-Critical Threshold'", "watch"),
        ("1,SSB Temp,Temperature,Critical,0.00,C,'At or Below (<=) Lower Critical Threshold'", "ok"),
        ("1,VCORE,Voltage,Critical,0.40,V,'At or Below (<=) Lower Critical Threshold'", "bad"),
        ("1,VBAT,Voltage,Critical,2.40,V,'At or Below (<=) Lower Critical Threshold'", "watch"),
        ("1,CPU2 VCORE,Voltage,Critical,0.00,V,'At or Below (<=) Lower Critical Threshold'", "ok"),
        ("1,FAN 3,Fan,Critical,0.00,RPM,'At or Below (<=) Lower Critical Threshold'", "watch"),
        ("1,CPU1,Processor,Critical,N/A,N/A,'IERR'", "bad"),
        ("1,DIMM A1,Memory,Critical,N/A,N/A,'Uncorrectable memory error'", "bad"),
        ("1,DIMM A1,Memory,Warning,N/A,N/A,'Correctable ECC or other correctable memory error detected'", "watch"),
        ("1,Intrusion,Physical Security,Critical,N/A,N/A,'General Chassis Intrusion'", "ok"),
        ("1,SEL,Event Logging Disabled,Critical,N/A,N/A,'SEL Full'", "ok"),
        ("1,Drive 0,Drive Slot,Critical,N/A,N/A,'Drive Presence' 'Drive Fault'", "watch"),
        ("1,CMOS,Battery,Critical,N/A,N/A,'low'", "watch"),
        ("1,CPU Temp,OEM Reserved,Nominal,N/A,N/A,'Low'", "ok"),
        ("1,Any,Temperature,N/A,N/A,C,N/A", "unknown"),
        ("1,Temp 9,Temperature,Critical,255.00,C,'At or Above (>=) Upper Critical Threshold'", "ok"),
        ("1,Mode,OEM Reserved,Critical,N/A,N/A,'OEM Event = 0001h'", "ok"),
        ("1,ACPI,System ACPI Power State,Critical,N/A,N/A,'S4/S5 soft-off'", "ok"),
        ("1,Pwr Unit,Power Unit,Critical,N/A,N/A,'Power Off/Power Down'", "ok"),
        ("1,Slot 3,Slot/Connector,Critical,N/A,N/A,'Fault Status asserted'", "watch"),
        ("1,SAS Presence,Module/Board,Critical,N/A,N/A,'Device Removed/Device Absent'", "ok"),
        (
            "1 | PSU2 | Power Supply | Critical | N/A | N/A | 'Presence detected' 'Power Supply Failure detected'",
            "watch",
        ),
        ("1,CPU1 Temp,Temperature,Critical,99,C,0,0,0,79,82,84,'At or Above (>=) Upper Critical Threshold'", "bad"),
        ("1,CPU1 Temp,Temperature,99.00,C,'At or Above (>=) Upper Critical Threshold'", "bad"),
        ("1,CPU1 Temp,Temperature,41.00,C,'OK'", "ok"),
        ("1 | CPU 1 Status | Processor | N/A | N/A | 'Processor Presence detected'", "ok"),
        ("1 | DIMM | Memory | N/A | N/A | 'Uncorrectable ECC'", "bad"),
    ],
)
def test_sensors_as_freeipmi_shows_them(tmp_path: Path, row: str, level: str) -> None:
    assert judge(tmp_path, {"ipmi-sensors.csv": row + "\n"}).level == level


def test_a_machine_with_one_supply_had_no_redundancy_to_lose(tmp_path: Path) -> None:
    lost = "3,PS Redundancy,Power Supply,Critical,N/A,N/A,'Redundancy Lost'\n"
    one = "1,PS1,Power Supply,Nominal,N/A,N/A,'Presence detected'\n2,PS2,Power Supply,N/A,N/A,N/A,N/A\n"
    two = one.replace("PS2,Power Supply,N/A,N/A,N/A,N/A", "PS2,Power Supply,Nominal,N/A,N/A,'Presence detected'")
    assert judge(tmp_path / "a", {"ipmi-sensors.csv": one + lost}).level == "ok"
    assert judge(tmp_path / "b", {"ipmi-sensors.csv": two + lost}).level == "watch"


@pytest.mark.parametrize(
    ("name", "row", "level"),
    [
        ("sdr", "CPU1 Temp        | 98 degrees C      | cr", "bad"),
        ("sdr", "CPU1 Temp        | 88 degrees C      | nc", "watch"),
        ("sdr", "FAN1             | no reading        | ns", "unknown"),
        ("sdr", "PS Redundancy    | 77h | ok  |  7.1 | Redundancy Lost", "watch"),
        ("sdr", "PS Redundancy    | 77h | ok  |  7.1 | Fully Redundant", "ok"),
        ("sdr", "Status           | 60h | ok  |  3.1 | Presence detected", "ok"),
        ("sensor", "CPU Temp | 99.000 | degrees C | ucr | 0.0 | 0.0 | 0.0 | 90.0 | 95.0 | 100.0", "bad"),
        ("sensor", "FAN 1 | 200.000 | RPM | lcr | 0.0 | 300.0 | 400.0 | 1.0 | 1.0 | 1.0", "watch"),
        ("sdr", "Could not open device at /dev/ipmi0", "unknown"),
    ],
)
def test_sensors_as_ipmitool_shows_them(tmp_path: Path, name: str, row: str, level: str) -> None:
    assert judge(tmp_path, {f"ipmitool-{name}.txt": row + "\n"}).level == level


OLD = " 1 | 01/02/2026 | 10:00:00 | Memory ECC | Uncorrectable ECC | Asserted\n"
QUIET = " 9 | 05/02/2026 | 10:00:00 | System Event BIOS | OEM System boot event | Asserted\n"
PSU = " a | 05/02/2026 | 11:00:00 | Power Supply PS1 | Power Supply AC lost | {}\n"


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        (QUIET, QUIET + OLD, "ok"),  # a record of before is listed again
        (QUIET, QUIET + PSU.format("Asserted"), "watch"),
        (QUIET, QUIET + PSU.format("Asserted") + PSU.format("Deasserted"), "ok"),
        (QUIET, QUIET + OLD.replace("01/02", "05/03"), "bad"),
        (QUIET, QUIET + OLD.replace("01/02", "05/03").replace("Uncorr", "Corr"), "watch"),
        (OLD, "SEL has no entries\n", "ok"),
        (QUIET, "Get SEL Info command failed\n", "unknown"),
    ],
)
def test_events_of_the_controller(tmp_path: Path, before: str, after: str, level: str) -> None:
    moments = [{"ipmitool-sel.txt": text} for text in (before, after)]
    assert judge(tmp_path, *moments, at=(0, 300)).level == level


def test_of_one_listing_the_recent_events_count(tmp_path: Path) -> None:
    assert judge(tmp_path / "a", {"ipmitool-sel.txt": OLD}).level == "bad"
    assert judge(tmp_path / "b", {"ipmitool-sel.txt": OLD + QUIET}).level == "ok"
    free = "7,May-02-2026,10:00:00,ECC,Memory,Uncorrectable memory error\n"
    assert judge(tmp_path / "c", {"ipmi-sel.csv": "ID,Date,Time,Name,Type,Event\n" + free}).level == "bad"


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        (["NMI watchdog: Enabled. Permanently consumes one hw-PMU counter."], "ok"),
        (["watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [kvm:1]"] * 3, "bad"),
        (["NMI watchdog: Watchdog detected hard LOCKUP on cpu 3"], "bad"),
        (["INFO: rcu_sched self-detected stall on CPU"], "watch"),
        (["Memory cgroup out of memory: Killed process 4 (x)"], "ok"),
        (["Out of memory: Killed process 4 (x)"], "watch"),
        (["usb 1-1: device descriptor read/64, error -71"], "ok"),
        (["I/O error, dev sda, sector 1 op 0x0:(READ) flags 0x80700"], "ok"),
        (["I/O error, dev sda, sector 1 op 0x0:(READ) flags 0x0"] * 3, "watch"),
        (["I/O error, dev sda, sector 1 op 0x3:(DISCARD) flags 0x800"] * 9, "ok"),
        (["critical medium error, dev sda, sector 1 op 0x0:(READ)"], "watch"),
        (["I/O error, dev sr0, sector 0 op 0x0:(READ)"] * 9, "ok"),
        (["sd 0:0:0:0: [sda] tag#1 rejecting I/O to offline device"], "bad"),
        (["nvme nvme0: I/O 12 QID 3 timeout, completion polled"] * 9, "ok"),
        (["nvme nvme0: controller is down; will reset: CSTS=0xffffffff, PCI_STATUS=0xffff"], "watch"),
        (["nvme nvme0: I/O tag 12 (100c) opcode 0x2 QID 3 timeout, aborting req_op:READ(0)"] * 3, "watch"),
        (["ata1.00: failed command: PACKET"] * 9, "ok"),
        (["ata2: SATA link down (SStatus 0 SControl 300)"], "ok"),
        (["nvme 0000:01:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x1 address=0x0]"] * 3, "watch"),
        (["mpt2sas_cm0: fault_state(0x5854)!"], "bad"),
        (["sd 0:0:0:0: rejecting I/O to offline device"], "watch"),
        (["Uhhuh. NMI received for unknown reason 20 on CPU 0."], "ok"),
        (["NMI: PCI system error (SERR) for reason a1 on CPU 0."], "watch"),
        (["pcieport 0000:00:1d.0: AER: Corrected error received: 0000:07:00.0"] * 101, "watch"),
        (["igb 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer"], "bad"),
        (
            [
                "igb 0000:01:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer",
                "igb 0000:01:00.0:    [20] UnsupReq               (First)",
            ],
            "watch",
        ),
    ],
)
def test_the_kernel_log(tmp_path: Path, rows: list[str], level: str) -> None:
    assert judge(tmp_path, log(*rows)).level == level


def test_errors_far_apart_are_not_often(tmp_path: Path) -> None:
    rows = ["ata1.00: failed command: READ FPDMA QUEUED"] * 5
    assert judge(tmp_path / "a", log(*rows, step=400)).level == "ok"
    assert judge(tmp_path / "b", log(*rows, step=60)).level == "watch"


def test_disks_of_domains_and_of_nobody_do_not_count(tmp_path: Path) -> None:
    rows = log(*["I/O error, dev sdb, sector 1 op 0x1:(WRITE) flags 0x0"] * 5)
    assert judge(tmp_path / "a", rows, own_luns=["sdb"]).level == "ok"
    assert judge(tmp_path / "b", rows, host_disks=["/dev/sda"]).level == "ok"
    assert judge(tmp_path / "c", rows, host_disks=["/dev/sdb"]).level == "watch"
    gone = log("sd 4:0:0:1: [sdb] Attached SCSI disk", "sd 4:0:0:1: rejecting I/O to offline device")
    assert judge(tmp_path / "d", gone, host_disks=["sda"]).level == "ok"
    assert judge(tmp_path / "e", gone, host_disks=["sdb"]).level == "watch"
    shut = log("XFS (sdb1): Filesystem has been shut down due to log error (0x2).")
    assert judge(tmp_path / "f", shut).level == "watch"
    assert judge(tmp_path / "g", shut, own_luns=["sdb"]).level == "ok"


def test_a_log_as_dmesg_or_syslog_shows_it(tmp_path: Path) -> None:
    text = "EDAC MC0: 1 CE memory read error on A1 (channel:0)"
    assert judge(tmp_path / "a", {"kmsg.txt": f"[ 5000.123456] {text}\n"}).level == "watch"
    assert judge(tmp_path / "b", {"dmesg.txt": f"<4>[ 5000.123456] {text}\n"}).level == "watch"
    assert judge(tmp_path / "c", {"kmsg.txt": f"Aug 30 05:09:18 host kernel: {text}\n"}).level == "watch"


def _link(name: str, carrier: int = 1, **files: int) -> Files:
    folder = f"sys/class/net/{name}"
    return {f"{folder}/carrier": str(carrier), **{f"{folder}/{key}": str(value) for key, value in files.items()}}


def test_interfaces(tmp_path: Path) -> None:
    both = _link("eno1") | _link("eno2")
    one = _link("eno1", 0) | _link("eno2")
    dark = _link("eno1", 0) | _link("eno2", 0)
    uplinks = ["eno1", "eno2"]
    assert judge(tmp_path / "a", both, uplinks=uplinks).level == "ok"
    assert judge(tmp_path / "b", one, uplinks=uplinks).level == "watch"
    assert judge(tmp_path / "c", dark, uplinks=uplinks).level == "bad"
    assert judge(tmp_path / "d", both, dark, dark, at=(0, 5, 8), uplinks=uplinks).level == "watch"
    assert judge(tmp_path / "e", both, dark, dark, at=(0, 5, 16), uplinks=uplinks).level == "bad"
    assert judge(tmp_path / "f", dark, both, at=(0, 16), uplinks=uplinks).level == "ok"
    assert judge(tmp_path / "g", both, _link("eno1"), at=(0, 16), uplinks=uplinks).level == "watch"
    assert judge(tmp_path / "h", _link("tap0", 0), uplinks=["eno1"]).level == "unknown"


def test_flaps_and_speed(tmp_path: Path) -> None:
    def moments(key: str, *values: int) -> list[Files]:
        return [_link("eno1", **{key: value}) for value in values]

    def level(name: str, *trees: Files, at: float) -> str:
        return judge(tmp_path / name, *trees, at=(0, at), uplinks=["eno1"]).level

    assert level("a", *moments("carrier_down_count", 7, 10), at=600) == "watch"
    assert level("b", *moments("carrier_down_count", 7, 8), at=600) == "ok"
    assert level("c", *moments("carrier_down_count", 7, 10), at=86400) == "ok"
    assert level("d", *moments("speed", 10000, 1000), at=60) == "watch"
    assert level("e", *moments("speed", 10000, -1), at=60) == "ok"


BOND = "Bonding Mode: {}\nMII Status: up\n"
SLAVE = "\nSlave Interface: {}\nMII Status: {}\n"


def test_bonds(tmp_path: Path) -> None:
    def level(name: str, text: str) -> str:
        return judge(tmp_path / name, {"proc/net/bonding/bond0": text}, uplinks=["bond0"]).level

    head = BOND.format("fault-tolerance (active-backup)")
    assert level("a", head + SLAVE.format("eno1", "up") + SLAVE.format("eno2", "up")) == "ok"
    assert level("b", head + SLAVE.format("eno1", "up") + SLAVE.format("eno2", "down")) == "watch"
    assert level("c", head + SLAVE.format("eno1", "down") + SLAVE.format("eno2", "down")) == "bad"
    assert level("d", head) == "ok"
    assert level("e", "\x00\x01") == "unknown"


@pytest.mark.parametrize(
    ("name", "text", "level"),
    [
        ("chronyc-tracking.txt", "Reference ID : 00000000 ()\nLeap status     : Not synchronised\n", "watch"),
        ("chronyc-tracking.txt", "506 Cannot talk to daemon\n", "unknown"),
        ("adjtimex.json", '{"status": 8193, "maxerror": 4000}', "ok"),
        ("adjtimex.json", '{"status": 64, "maxerror": 16000000}', "watch"),
        ("adjtimex.json", '{"status": 64, "maxerror": 20000}', "ok"),
        ("adjtimex.json", '{"status": 8193, "maxerror": 4000, "offset": 90000000}', "watch"),
        ("adjtimex.json", '{"status": 1, "maxerror": 4000, "offset": 9000}', "ok"),
        ("timedatectl.txt", "System clock synchronized: no\n", "watch"),
    ],
)
def test_the_clock(tmp_path: Path, name: str, text: str, level: str) -> None:
    assert judge(tmp_path, {name: text}).level == level


def test_failed_units(tmp_path: Path) -> None:
    row = "● {} loaded failed failed Something\n"
    assert judge(tmp_path / "a", {"systemctl-failed.txt": row.format("fwupd.service")}).level == "ok"
    assert judge(tmp_path / "b", {"systemctl-failed.txt": row.format("tgt.service")}).level == "watch"
    assert judge(tmp_path / "c", {"systemctl-failed.txt": row.format("xenstored.service")}).level == "bad"


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        (["Xen version 4.17.5", "CMCI: threshold 0x2 too large for CPU0 bank 17, using 0x1"], "ok"),
        (["MCE: The hardware reports a non fatal, correctable incident occurred on CPU 0."], "watch"),
        (["[2026-01-02 03:04:05] Bank 5: fa00000000400405[ 100]"], "bad"),
        (["[VT-D]DMAR:[DMA Write] Request device [0000:00:02.0] fault addr 8c000"] * 4, "ok"),
        (["AMD-Vi: IO_PAGE_FAULT: 0000:03:00.0 d0 addr 00000000fffff000 flags 0x8"] * 4, "watch"),
        (["Watchdog timer fired for domain 5"], "ok"),
        (["Watchdog timer detects that CPU3 is stuck!"], "bad"),
    ],
)
def test_xen_log(tmp_path: Path, rows: list[str], level: str) -> None:
    text = "".join(f"(XEN) {row}\n" for row in rows)
    assert judge(tmp_path, {"xl-dmesg.txt": text}).level == level


@pytest.mark.parametrize(("status", "level"), [(0, "ok"), (1, "watch"), (2, "bad"), (3, "unknown"), (124, "unknown")])
def test_plug_ins(tmp_path: Path, status: int, level: str) -> None:
    found = judge(tmp_path, {"plugin.fans.json": json.dumps({"exit": status, "out": "two fans stand still\nmore"})})
    assert (found.level, found.signs[0].sentence) == (level, "two fans stand still")


@pytest.mark.parametrize(
    ("counts", "level"), [(("1000000", "10"), "ok"), (("1000000", "20000"), "watch"), (("10", "5"), "ok")]
)
def test_damaged_frames(tmp_path: Path, counts: tuple[str, str], level: str) -> None:
    files = {
        "sys/class/net/eno1/statistics/rx_packets": counts[0],
        "sys/class/net/eno1/statistics/rx_errors": counts[1],
    }
    assert judge(tmp_path, _link("eno1") | files, uplinks=["eno1"]).level == level


def _supplies(*states: str) -> Files:
    rows = [
        f"{number},PS{number},Power Supply,{'Nominal' if said == FINE else 'Critical'},N/A,N/A,{said}\n"
        for number, said in enumerate(states, 1)
    ]
    return {"ipmi-sensors.csv": "".join(rows)}


FINE, LOST = "'Presence detected'", "'Presence detected' 'Power Supply input lost (AC/DC)'"
FAILED, AGED = "'Presence detected' 'Power Supply Failure detected'", "'Presence detected' 'Predictive failure'"


@pytest.mark.parametrize(
    ("states", "level", "exposed"),
    [
        ((FINE, FINE), "ok", False),
        ((FINE, LOST), "watch", True),
        ((FINE, FAILED), "watch", True),
        ((FINE, AGED), "watch", True),
        ((LOST, LOST), "watch", True),  # the node runs, so the controller is wrong
        ((FAILED, LOST), "bad", False),
        ((FAILED, AGED), "bad", False),
        ((FAILED, FAILED, FINE), "watch", True),
        ((FAILED, "'Entity Absent'"), "watch", True),
        ((FAILED,), "watch", True),  # boards report so of a supply to which they have no bus
    ],
)
def test_power_supplies(tmp_path: Path, states: tuple[str, ...], level: str, exposed: bool) -> None:
    found = judge(tmp_path, _supplies(*states))
    assert found.level == level
    assert any(each.exposed for each in found.signs) is exposed


@pytest.mark.parametrize(
    ("row", "exposed"),
    [
        ("PS Redundancy    | 77h | ok  |  7.1 | Redundancy Lost", True),
        ("Pwr Unit Redund  | 77h | ok  |  7.1 | Redundancy Lost", True),
        ("Fan Redundancy   | 77h | ok  |  7.1 | Redundancy Lost", False),
        ("PSU2 Status      | 77h | ok  |  7.1 | Presence detected, Power Supply AC lost", True),
    ],
)
def test_only_lost_power_asks_for_quarantine(tmp_path: Path, row: str, exposed: bool) -> None:
    found = judge(tmp_path, {"ipmitool-sdr.txt": row + "\n"})
    assert (found.level, any(each.exposed for each in found.signs)) == ("watch", exposed)
