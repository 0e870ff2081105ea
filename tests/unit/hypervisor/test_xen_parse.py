"""What xl prints, as values. Rows of 4.17 as recorded; of other versions as their sources and reports have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.errors import Failed
from veery.hypervisor.xen import parse
from veery.model.domain import DomainEnd, DomainState

HEADER = (
    "Name                                        ID   Mem VCPUs\tState\tTime(s)"
    "   UUID                            Reason-Code\tSecurity Label\n"
)
UUID = "6f3c1a52-9d7e-4b7c-8c55-0d5a4a3c1b2e"


RECORDED = Path(__file__).parents[2] / "data/xl/4.17"


def test_a_real_host() -> None:
    info = parse.info((RECORDED / "info.txt").read_text())
    assert (info.version, info.cpus, info.memory_total, info.memory_free) == ("4.17.5", 1, 1023, 626)
    assert info.processor == (0x078BF3FD, 0x80002001, 0x20100800, 5, 0, 0, 0, 0)
    assert info.logs_dirty_pv()
    (zero,) = parse.rows((RECORDED / "list-v.txt").read_text())
    assert (zero.name, zero.domid, zero.memory, zero.state) == ("Domain-0", 0, 384, DomainState.RUNNING)
    assert zero.uuid == "00000000-0000-0000-0000-000000000000"


def row(letters: str, reason: str = "-", name: str = "busybox") -> parse.Row:
    line = f"{name:<40} {7:5} {512:5} {2:5}     {letters}  {12.5:8.1f} {UUID} {reason:>8} {'-':>16}\n"
    (found,) = parse.rows(HEADER + line)
    return found


def test_a_row() -> None:
    found = row("-b----")
    assert (found.name, found.domid, found.memory, found.vcpus) == ("busybox", 7, 512, 2)
    assert (found.cpu_seconds, found.uuid, found.reason) == (12.5, UUID, None)


@pytest.mark.parametrize(
    ("letters", "reason", "state", "end"),
    [
        ("r-----", "-", DomainState.RUNNING, None),
        ("------", "-", DomainState.RUNNING, None),
        ("-b----", "-", DomainState.BLOCKED, None),
        ("--p---", "-", DomainState.PAUSED, None),
        ("-bp---", "-", DomainState.PAUSED, None),
        ("---s--", "0", DomainState.SHUTDOWN, DomainEnd.POWEROFF),
        ("---sr-", "1", DomainState.SHUTDOWN, DomainEnd.REBOOT),
        ("---ss-", "2", DomainState.PAUSED, None),  # suspended: a save, or the source of a move
        ("---sc-", "3", DomainState.CRASHED, DomainEnd.CRASH),
        ("---sw-", "4", DomainState.SHUTDOWN, DomainEnd.WATCHDOG),
        ("-----d", "-", DomainState.DYING, None),
        ("---scd", "3", DomainState.DYING, None),
    ],
)
def test_states(letters: str, reason: str, state: DomainState, end: DomainEnd | None) -> None:
    found = row(letters, reason)
    assert (found.state, found.end) == (state, end)


def test_names_as_they_are_during_a_move_and_after() -> None:
    assert row("--p---", name="busybox--incoming").name == "busybox--incoming"
    assert row("-----d", name="(null)").name == "(null)"
    assert row("r-----", name="a name with 3 blanks").name == "a name with 3 blanks"


@pytest.mark.parametrize("text", ["", "no domains\n", HEADER + "busybox  7\n"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(Failed):
        parse.rows(text)


def test_vcpus() -> None:
    text = (
        "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)\n"
        "busybox                              7     0    3   r--      12.5  all / all\n"
        "busybox                              7     1    -   --p       0.0  0-3 / all\n"
    )
    assert [(each.number, each.cpu, each.seconds) for each in parse.vcpus(text)] == [(0, 3, 12.5), (1, -1, 0.0)]


def told(version: str, virtual: str) -> parse.Info:
    major, minor = version.split(".")[:2]
    return parse.info(
        f"host                   : test1\nnr_cpus                : 8\ncpu_mhz                : 2100.000\n"
        f"hw_caps                : bfebfbff:77fef3ff:2c100800:00000121:0000000f:d29ffffb:00000008:00000100\n"
        f"virt_caps              :{virtual}\ntotal_memory           : 130562\nfree_memory            : 96501\n"
        f"xen_major              : {major}\nxen_minor              : {minor}\nxen_extra              : .0\n"
        f"xen_version            : {version}\nxen_caps               : xen-3.0-x86_64 hvm-3.0-x86_64 \n"
        f"xen_commandline        : placeholder dom0_mem=32G,max:32G loglvl=guest_loglvl:all\n"
        f"xend_config_format     : 4\n"
    )


def test_info() -> None:
    found = told("4.19.2-pre", " pv hvm hap shadow gnttab-v1 gnttab-v2")
    assert (found.version, found.major, found.minor) == ("4.19.2-pre", 4, 19)
    assert (found.memory_total, found.memory_free, found.cpus, found.cpu_mhz) == (130562, 96501, 8, 2100.0)
    assert found.processor[0] == 0xBFEBFBFF
    assert found.capabilities == ("xen-3.0-x86_64", "hvm-3.0-x86_64")
    assert found.rows["xen_commandline"].endswith("loglvl=guest_loglvl:all")
    assert next(iter(found.rows)) == "host"


@pytest.mark.parametrize(
    ("version", "virtual", "able"),
    [
        ("4.14.0", " hvm hvm_directio pv pv_directio hap shadow iommu_hap_pt_share", True),
        ("4.17.5", " pv hvm hap shadow gnttab-v1 gnttab-v2", True),
        ("4.17.2", " pv hvm hvm_directio pv_directio hap iommu_hap_pt_share vmtrace gnttab-v1", False),
        ("4.20.0", " pv hvm hap gnttab-v1 gnttab-v2", False),
    ],
)
def test_who_can_move_pv_domains(version: str, virtual: str, able: bool) -> None:
    assert told(version, virtual).logs_dirty_pv() is able


def test_what_is_no_info() -> None:
    with pytest.raises(Failed, match="xl info"):
        parse.info("host : test1\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Parsing config from /etc/xen/busybox\n"
            "libxl: error: libxl_device.c:1109:device_backend_callback: Domain 3:unable to add device\n"
            "libxl: error: libxl_create.c:1869:domcreate_attach_devices: Domain 3:unable to add vif devices\n",
            "unable to add device",
        ),
        ("busybox is an invalid domain identifier (rc=-6)\n", "busybox is an invalid domain identifier (rc=-6)"),
        ("", "no reason given"),
    ],
)
def test_complaints(text: str, said: str) -> None:
    assert parse.complaint(text) == said
