"""Which accelerator a node has, and what memory is left on it: a QEMU that is a script, a processor that is a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from veery.config.settings import Qemu
from veery.errors import Refused
from veery.host.clock import RealClock
from veery.hypervisor.qemu import machine
from veery.hypervisor.qemu.build import machine_type
from veery.hypervisor.qemu.driver import QemuDriver
from veery.hypervisor.qemu.process import Home
from veery.hypervisor.qemu.registry import Registry
from veery.model.domain import DomainSpec, HostReading
from veery.model.health import Level
from veery.node.doctor import judge_accelerator, judge_hypervisor


@dataclass(frozen=True)
class Host:
    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "accel.json"

    def qemu(self, *lines: str) -> Qemu:
        program = self.folder / "qemu"
        told = 'case "$1" in --version) echo QEMU emulator version 10.0.2; exit 0;; esac'
        program.write_text("\n".join(["#!/bin/sh", told, *lines]) + "\n")
        program.chmod(0o755)
        return Qemu(binary=str(program))

    async def find(self, settings: Qemu, flags: str, kvm: str = "/dev/null") -> machine.Hypervisor:
        cpuinfo = self.folder / "cpuinfo"
        cpuinfo.write_text(f"processor\t: 0\nvmx flags\t: ept\nflags\t\t: {flags}\n")
        return await machine.find(settings, self.cache, cpuinfo=cpuinfo, kvm=Path(kvm))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


GOOD = f"exit {machine.PROBE_EXIT}"
BUSY = ("echo 'ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy' >&2", "exit 1")


async def test_a_failed_probe_makes_no_kvm_host_a_tcg_host(host: Host) -> None:
    for flags in ("fpu vmx", "fpu svm"):
        with pytest.raises(Refused, match="Device or resource busy") as caught:
            await host.find(host.qemu(*BUSY), flags)
        assert 'accel = "tcg"' in caught.value.hint
        assert not host.cache.exists(), "only a yes is kept"
    with pytest.raises(Refused, match="No such file"):
        await host.find(host.qemu(GOOD), "fpu vmx", kvm=str(host.folder / "kvm"))
    found = await host.find(host.qemu(GOOD), "fpu vmx")
    assert found.accel == "kvm"
    assert (await host.find(host.qemu(*BUSY), "fpu vmx")).accel == "kvm", "the yes is kept"


async def test_a_no_of_an_older_veery_is_not_believed(host: Host) -> None:
    assert (await host.find(host.qemu(*BUSY), "fpu")).accel == "tcg"
    assert (await host.find(host.qemu(GOOD), "fpu vmx")).accel == "kvm"


async def test_a_processor_without_virtualization_has_tcg_and_says_why(host: Host) -> None:
    found = await host.find(host.qemu(*BUSY), "fpu sse4_2")
    assert found.accel == "tcg"
    assert "no vmx or svm" in found.reason
    assert "busy" in found.reason
    with pytest.raises(Refused, match="the settings require KVM"):
        await host.find(Qemu(binary=host.qemu(*BUSY).binary, accel="kvm"), "fpu")


async def test_tcg_as_set_asks_nothing(host: Host) -> None:
    settings = Qemu(binary=host.qemu("exit 1").binary, accel="tcg")
    assert (await host.find(settings, "fpu vmx")).reason == "as set"


async def test_a_node_that_can_start_nothing_has_no_room(tmp_path: Path) -> None:
    driver = QemuDriver(tmp_path, None, Qemu(binary="no-such-qemu", accel="tcg"), RealClock())
    await driver.open()
    try:
        reading = await driver.host()
        assert reading.memory_free == 0
        assert "not installed" in str(reading.facts["accelerator_reason"])
    finally:
        await driver.close()


@pytest.mark.parametrize("user", ["no-such-user", "0", "root"])
async def test_a_user_that_qemu_cannot_run_as_lets_nothing_start_as_root(host: Host, tmp_path: Path, user: str) -> None:
    settings = replace(host.qemu("exit 1"), accel="tcg", user=user)
    driver = QemuDriver(tmp_path / "run", None, settings, RealClock())
    await driver.open()
    try:
        reading = await driver.host()
        assert reading.memory_free == 0
        assert "[qemu]" in str(reading.facts["accelerator_reason"])
    finally:
        await driver.close()


# ---- memory: 64 GiB, ten domains of 6 GiB that have touched 0.5 GiB each


def test_memory_is_counted_as_promised() -> None:
    total, available = 65536, 57344
    assert machine.left(total, available, [6144] * 10) == total - total // 50 - 10 * (6144 + 64 + 30)
    assert machine.left(total, available, []) == available
    assert machine.left(total, available, [6144] * 11) == 0
    assert machine.left(1024, 900, []) == 1024 - machine.RESERVE


def test_two_at_once_do_not_take_the_same_memory(tmp_path: Path) -> None:
    roster = Registry(tmp_path, RealClock())
    one, two = (DomainSpec(name=name, uuid=f"7c2f4b1e-0000-4000-8000-00000000000{name}") for name in "ab")
    roster.promise(one, 6144, 16384, 12000)
    with pytest.raises(Refused, match="not enough memory: 10000 MiB and 114"):
        roster.promise(two, 10000, 16384, 12000)
    roster.promise(two, 6144, 16384, 12000)
    assert roster.left(16384, 12000) == 16384 - 327 - 2 * (6144 + 94)


def test_doctor_tells_why_nothing_starts() -> None:
    nothing = HostReading(
        host="n",
        release="",
        version="",
        machine="",
        cpus=1,
        cpu_mhz=0.0,
        cpu_model="",
        memory_total=1,
        memory_free=0,
        accelerator="",
        software={},
        facts={"accelerator_reason": "KVM does not run a guest"},
    )
    found = judge_accelerator("n", nothing)
    assert (found.level, found.told) == (Level.BAD, "KVM does not run a guest")
    assert judge_accelerator("n", replace(nothing, accelerator="kvm")).level is Level.OK


def test_a_machine_type_without_a_version_is_refused() -> None:
    for name in ("q35", "pc"):
        with pytest.raises(Refused, match="means another type in each QEMU"):
            machine.pinned(Qemu(machine=name))
    assert machine.pinned(Qemu(machine="pc-q35-9.2")) == "pc-q35-9.2"
    assert machine.pinned(Qemu()) == ""


def test_what_qemu_warned_of_is_kept(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.warnings() == ()
    home.qemu_log.write_text(
        "2026-11-30T06:00:00.000000Z qemu-system-x86_64: warning: TSC frequency mismatch between VM (1 kHz) and host\n"
        "qemu-system-x86_64: -cpu qemu64,+avx: warning: host doesn't support requested feature: CPUID.01H:ECX.avx\n"
        "qemu-system-x86_64: -cpu qemu64,+avx: warning: host doesn't support requested feature: CPUID.01H:ECX.avx\n"
        "qemu-system-x86_64: warning: Host physical bits (46) does not match phys-bits property (40)\n"
        "qemu-system-x86_64: terminating on signal 15\n"
    )
    kept = home.warnings()
    assert len(kept) == 2
    assert kept[0].startswith("warning: TSC frequency mismatch")
    assert "CPUID.01H:ECX.avx" in kept[1]
    assert home.words() == ""


def test_a_processor_that_is_too_narrow_is_heard_of(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.qemu_log.write_text(
        "qemu-system-x86_64: warning: Host physical bits (39) does not match phys-bits property (40)\n"
    )
    assert len(home.warnings()) == 1


def test_the_width_of_addresses_is_the_kernels() -> None:
    assert machine.address_bits("model name\t: x\naddress sizes\t: 46 bits physical, 48 bits virtual\n") == 46
    assert machine.address_bits("model name\t: x\n") == 0


def test_doctor_names_a_version_with_a_known_defect() -> None:
    host = HostReading(
        host="n",
        release="",
        version="",
        machine="x86_64",
        cpus=1,
        cpu_mhz=1.0,
        cpu_model="x",
        memory_total=1,
        memory_free=1,
        accelerator="kvm",
        software={"qemu": "10.0.4"},
        facts={},
    )
    (found,) = judge_hypervisor("n", host)
    assert found.level is Level.WARN
    assert "10.0.6 or newer" in found.advice
    assert judge_hypervisor("n", replace(host, software={"qemu": "10.0.6"})) == ()
    assert judge_hypervisor("n", replace(host, accelerator="tcg")) == ()
    assert judge_hypervisor("n", replace(host, software={"xen": "4.17"})) == ()


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ([("pc-q35-9.0", "pc-q35-10.0"), ("pc-q35-9.0", "pc-q35-9.2")], "pc-q35-9.0"),
        ([("pc-q35-10.0", "pc-q35-10.2"), ("pc-q35-9.2", "pc-q35-10.0")], "pc-q35-10.0"),
        ([("pc-q35-11.0", "pc-q35-12.0"), ("pc-q35-11.0", "pc-q35-12.0")], "pc-q35-11.0"),
        ([("pc-q35-rhel9.4.0", "pc-q35-rhel9.6.0"), ("pc-q35-rhel9.4.0",)], "pc-q35-rhel9.4.0"),
        ([("pc-q35-10.0",), ("pc-q35-9.2",)], ""),
        ([(), ("pc-q35-9.2",)], "pc-q35-9.0"),
    ],
)
def test_new_domains_get_a_machine_type_that_all_nodes_have(told: list[tuple[str, ...]], wanted: str) -> None:
    assert machine_type(told) == wanted
