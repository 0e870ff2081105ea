"""CpuBaseline under KVM: what hosts of two vendors tell, the baseline of each vendor, and who takes whose domains. The
answers are in tests/data/qemu/hosts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from veery.hypervisor.qemu import build, tsc
from veery.hypervisor.qemu.abilities import MODELS, needs, obstacles, processor, read
from veery.hypervisor.qemu.build import Build
from veery.model.domain import DomainSpec
from veery.model.plan import Abilities, Obstacle, Processor, common, family

HOSTS = Path(__file__).parents[2] / "data" / "qemu" / "hosts"
INTEL, AMD = ("intel-haswell", "intel-skylake", "intel-icelake"), ("amd-zen1", "amd-zen3")
SPEC = DomainSpec(name="web", uuid="7c2f4b1e-0000-4000-8000-000000000001")


def host(name: str) -> Abilities:
    told = read((HOSTS / f"{name}.jsonl").read_text())
    return Abilities(
        driver="qemu",
        version="10.0.2",
        accelerator="kvm",
        machines=told.machines,
        features=told.features,
        models=told.models,
        vendor=told.vendor,
    )


def started(*names: str) -> Build:
    """The build of a new domain on the first of the hosts `names`, which are all of their vendor in the cluster."""
    hosts = [host(name) for name in names]
    features = frozenset.intersection(*(frozenset(each.features) for each in hosts))
    models = frozenset.intersection(*(frozenset(each.models) for each in hosts))
    cpu, _ = processor(features, "kvm", models, hosts[0].vendor)
    return Build(layout=2, accel="kvm", memory=512, ports=8, cpu=cpu, vendor=hosts[0].vendor)


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (INTEL, "Haswell-v4"),
        (INTEL[1:], "Skylake-Server-v5"),
        (INTEL[2:], "Icelake-Server-v6"),
        (AMD, "EPYC-v4"),
        (AMD[1:], "EPYC-Milan-v2"),
    ],
)
def test_the_baseline_is_the_newest_model_that_all_give_whole(names: tuple[str, ...], model: str) -> None:
    plan = started(*names)
    assert plan.cpu.split(",")[0] == model
    for name in names:
        assert obstacles(host(name), SPEC, plan) == ()
        assert needs(plan.cpu) <= set(host(name).features)


def test_no_domain_goes_from_one_vendor_to_the_other() -> None:
    for here, there in (*((i, a) for i in INTEL for a in AMD), *((a, i) for a in AMD for i in INTEL)):
        found = obstacles(host(there), SPEC, started(here))
        assert found[0].kind is Obstacle.CPU
        assert "runs on a processor of" in found[0].reason
        assert found[0].hint
        plain = replace(started(here), cpu=build.CPU)  # no feature keeps it there: the vendor does
        assert [each.kind for each in obstacles(host(there), SPEC, plain)] == [Obstacle.CPU]


def test_addresses_as_wide_as_the_guests_are_asked_of_a_target() -> None:
    plan, wide, narrow = started("intel-icelake"), host("intel-icelake"), host("intel-icelake")
    wide, narrow = replace(wide, phys_bits=46), replace(narrow, phys_bits=39)
    pinned = replace(plan, layout=3, phys_bits=40)
    assert obstacles(wide, SPEC, pinned) == ()
    (found,) = obstacles(narrow, SPEC, pinned)
    assert found.kind is Obstacle.CPU
    assert "39 bits" in found.reason
    assert obstacles(narrow, SPEC, plan) == (), "a guest of layout 2 with little memory ran on both all along"
    large = replace(plan, memory=2 << 20)
    assert obstacles(replace(wide, phys_bits=40), SPEC, large)[0].kind is Obstacle.CPU
    assert obstacles(host("intel-icelake"), SPEC, pinned) == (), "a node of an older veery does not tell"


def test_a_model_that_the_target_lacks_is_an_obstacle() -> None:
    found = obstacles(host("intel-haswell"), SPEC, replace(started("intel-icelake"), cpu="Icelake-Server-v6"))
    assert [each.kind for each in found] == [Obstacle.CPU]
    assert "Icelake-Server-v6" in found[0].reason


def test_only_a_guest_that_saw_its_vendor_for_good_gets_hypercalls_of_it() -> None:
    able = host("intel-icelake")
    assert "+kvm-pv-unhalt" in processor(able.features, "kvm", able.models, able.vendor)[0]
    unknown = processor(able.features, "kvm", able.models, "")[0]
    assert unknown.startswith("qemu64,")
    assert "kvm-pv" not in unknown


def test_what_tells_of_faults_goes_to_intel_guests_only() -> None:
    assert {"mds-no", "arch-capabilities"} <= needs(started("intel-icelake").cpu)
    forged = (*host("amd-zen3").features, "arch-capabilities", "mds-no")
    assert "arch-capabilities" not in processor(forged, "kvm", (), "AuthenticAMD")[0]


def test_tcg_gives_what_it_always_gave() -> None:
    able = host("amd-zen3")
    assert processor(able.features, "tcg", able.models, able.vendor)[0] == build.CPU


def test_processors_of_one_family_share_a_baseline() -> None:
    zen = Processor(node="a", accelerator="kvm", model="", version="", features=("sse",), vendor="AuthenticAMD")
    assert family(zen) != family(replace(zen, vendor="GenuineIntel"))
    assert family(replace(zen, accelerator="tcg")) == family(replace(zen, accelerator="tcg", vendor="GenuineIntel"))
    assert common([zen, replace(zen, features=("sse", "avx"))]) == ("sse",)


def test_a_domain_of_layout_1_knows_its_vendor_only_where_it_was_written_down() -> None:
    old = Build(accel="kvm", memory=512, ports=8)
    assert obstacles(host("amd-zen1"), SPEC, old) == ()
    assert [each.kind for each in obstacles(host("amd-zen1"), SPEC, replace(old, vendor="GenuineIntel"))] == [
        Obstacle.CPU
    ]


def test_a_layout_that_is_not_known_is_told() -> None:
    found = obstacles(host("amd-zen1"), SPEC, Build(layout=99, accel="kvm", memory=512, ports=8))
    assert [each.kind for each in found] == [Obstacle.VERSION]
    assert found[0].reason == "web is built by layout 99, the node knows 1, 2 and 3"


def test_each_model_is_named_once_and_with_its_version() -> None:
    names = [name for models in MODELS.values() for name in models]
    assert len(names) == len(set(names))
    assert all(name.rpartition("-v")[2].isdigit() for name in names)


def test_a_node_without_kvm_tells_no_counter(tmp_path: Path) -> None:
    assert tsc.ask(tmp_path / "kvm") == tsc.Tsc()
    assert tsc.ask(Path("/dev/null")) == tsc.Tsc()


@pytest.mark.parametrize(
    ("name", "vendor", "model"),
    [
        ("recorded-epyc-7713", "AuthenticAMD", "EPYC-Milan-v1"),
        ("recorded-xeon-6530", "GenuineIntel", "Cascadelake-Server-v5"),
    ],
)
def test_real_hosts_get_a_processor_that_they_can_give(name: str, vendor: str, model: str) -> None:
    """The Xeon has no TSX: so neither SapphireRapids, which wants it, nor Icelake, which wants taa-no."""
    able = host(name)
    assert able.vendor == vendor
    plan = started(name)
    assert plan.cpu.split(",")[0] == model
    assert needs(plan.cpu) <= set(able.features)
    assert {"aes", "avx2", "rdrand", "spec-ctrl", "ssbd", "xsaves", "kvm-pv-unhalt"} <= needs(plan.cpu)
    assert obstacles(able, SPEC, plan) == ()
    assert replace(plan, layout=3).model.endswith(f"vendor={vendor},enforce")


def test_what_kvm_emulates_on_a_real_amd_host_is_not_asked_for() -> None:
    """QEMU tells arch-capabilities and rdctl-no there, and leaves them out from 10.1 on: a move would end there."""
    told = host("recorded-epyc-7713")
    assert {"arch-capabilities", "rdctl-no", "mds-no"} <= set(told.features)
    assert not {"arch-capabilities", "rdctl-no", "mds-no"} & needs(started("recorded-epyc-7713").cpu)
    assert {"arch-capabilities", "rdctl-no", "mds-no"} <= needs(started("recorded-xeon-6530").cpu)


@pytest.mark.parametrize("written", [*INTEL, *AMD])
def test_real_hosts_and_those_of_another_vendor_keep_apart(written: str) -> None:
    for name in ("recorded-epyc-7713", "recorded-xeon-6530"):
        alike = host(name).vendor == host(written).vendor
        plan = replace(started(name), cpu=build.CPU)
        assert (obstacles(host(written), SPEC, plan) == ()) is alike
