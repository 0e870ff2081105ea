"""What a machine lacks to be a node, judged from facts; and what `setup` does of it."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from veery.config.settings import Settings, load
from veery.errors import Failed, Refused
from veery.lab import packages as lab
from veery.model.node import Role
from veery.network.bridge import Bridge
from veery.node import needs, setup
from veery.node.setup import Facts, State

ALL = dict.fromkeys(needs.packages(tuple(Role)), "1:10.0.2")
GUESTS = Bridge(name="xenbr0", mac="", mtu=1500, up=True, addresses=("fe80::1/64",), ports=())
NODES = Bridge(name="br0", mac="", mtu=1500, up=True, addresses=("10.0.0.1/24",), ports=())
WHOLE = Facts(
    roles=tuple(Role),
    driver="qemu",
    member=True,
    codename="bookworm",
    packages=ALL,
    enabled=frozenset(),
    running=frozenset(),
    masked=frozenset(),
    bridges=(GUESTS,),
    ruled=True,
    unit=True,
    pool="/srv/veery",
    pool_shared=False,
)
BARE = dataclasses.replace(
    WHOLE, member=False, packages={}, bridges=(), ruled=False, unit=False, pool_shared=True, account=False
)


def states(facts: Facts) -> dict[str, State]:
    return {step.what: step.state for step in setup.decide(facts)}


def test_a_whole_node_lacks_nothing() -> None:
    assert set(states(WHOLE).values()) == {State.READY}


def test_a_bare_machine() -> None:
    assert states(BARE) == {
        "Debian's etcd.service": State.MISSING,
        "Debian's tgt.service": State.MISSING,
        "packages": State.MISSING,
        "veeryd.service": State.MISSING,
        "pool": State.ADVICE,
        "QEMU's user": State.ADVICE,
        "bridge": State.MISSING,
        "firewall": State.ADVICE,
        "cluster": State.ADVICE,
    }


def test_every_command_tells_how_to_undo_it() -> None:
    running = dataclasses.replace(WHOLE, running=frozenset({"etcd.service"}), ruled=False)
    for step in (*setup.decide(BARE), *setup.decide(running)):
        assert bool(step.commands) == bool(step.undo), step.what


@pytest.mark.parametrize("field", ["running", "enabled"])
def test_a_daemon_that_runs_is_not_stopped_by_setup(field: str) -> None:
    facts = dataclasses.replace(WHOLE, **{field: frozenset({"etcd.service"})})
    (step,) = (each for each in setup.decide(facts) if each.state is not State.READY)
    assert step.what == "Debian's etcd.service"
    assert step.commands == ("systemctl disable --now etcd.service",)
    assert not step.safe


def test_only_additions_are_safe() -> None:
    assert {step.what for step in setup.decide(BARE) if step.safe} == {
        "Debian's etcd.service",
        "Debian's tgt.service",
        "packages",
        "QEMU's user",
    }


def test_the_user_for_qemu_is_a_hypervisors_with_the_driver_qemu() -> None:
    for changes in ({"driver": "xen"}, {"roles": (Role.VOTER, Role.STORAGE)}):
        assert "QEMU's user" not in states(dataclasses.replace(BARE, **changes))


def test_an_old_qemu_is_replaced_from_backports_and_not_purged() -> None:
    facts = dataclasses.replace(WHOLE, packages={**ALL, "qemu-utils": "1:7.2+dfsg-7"})
    (step,) = (each for each in setup.decide(facts) if each.state is not State.READY)
    assert "-t bookworm-backports qemu-utils" in step.commands[0]
    assert step.undo == ()
    trixie = dataclasses.replace(facts, codename="trixie")
    assert all("-t" not in each.split() for step in setup.decide(trixie) for each in step.commands)


def test_each_role_has_its_own_packages() -> None:
    assert needs.packages((Role.VOTER,)) == ("iproute2", "nftables", "etcd-server", "etcd-client")
    assert "qemu-system-x86" not in needs.packages((Role.HYPERVISOR,), "xen")


def test_the_lab_has_what_nodes_need() -> None:
    assert {*needs.packages(tuple(Role))} <= {*lab.QEMU, *lab.OTHERS}
    assert {setup._leading(least)[1] for least in needs.LEAST.values()} == {lab.QEMU_MIN_MAJOR}


# ---- the rule set
def test_rules_let_nodes_in_and_drop_what_guests_send() -> None:
    text = setup.rules(["10.0.0.1", "10.0.0.2"], (GUESTS, NODES))
    assert "elements = { 10.0.0.1, 10.0.0.2 }" in text
    assert 'iifname "xenbr0" drop' in text
    assert text.index("policy accept") < text.index("saddr @nodes") < text.index("8002 } drop")


def test_rules_keep_the_bridge_that_has_the_node_s_address() -> None:
    assert "br0" not in setup.rules(["10.0.0.1"], (NODES,))


def test_rules_for_ipv6() -> None:
    text = setup.rules(["fd00::1"], ())
    assert "type ipv6_addr" in text
    assert "ip6 saddr @nodes6" in text
    assert "ip saddr" not in text


def test_rules_refuse_what_is_no_address() -> None:
    with pytest.raises(Refused, match="not an IP address"):
        setup.rules(["10.0.0.1 } ; flush ruleset"], ())


# ---- observing and doing, below a folder of its own
def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, apt_get: str) -> Path:
    """A PATH whose apt-get writes its arguments down; the file that it writes to."""
    folder.mkdir()
    calls = folder / "calls"
    (folder / "apt-get").write_text(f'#!/bin/sh\necho "$*" >>{calls}\n{apt_get}\n')
    (folder / "useradd").write_text(f'#!/bin/sh\necho "$*" >>{folder}/users\n')
    for name in ("apt-get", "useradd"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return calls


async def test_daemons_are_masked_before_their_packages_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = tmp_path / "root" / setup.UNITS
    calls = programs(tmp_path / "bin", monkeypatch, f"test -L {units}/etcd.service && test -L {units}/tgt.service")
    await setup.carry_out(BARE, root=tmp_path / "root")
    ordinary, late = calls.read_text().splitlines()
    assert "tgt" in ordinary.split()
    assert "qemu-system-x86" not in ordinary.split()
    assert "-t bookworm-backports qemu-system-x86" in late
    assert str((units / "tgt.service").readlink()) == "/dev/null"
    assert (calls.parent / "users").read_text().split()[-1] == "veery-qemu"


async def test_what_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = programs(tmp_path / "bin", monkeypatch, "exit 1")
    await setup.carry_out(WHOLE, root=tmp_path / "root")
    assert not calls.exists()
    assert not (calls.parent / "users").exists()
    assert not (tmp_path / "root" / setup.UNITS).exists()


async def test_a_failed_install_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs(tmp_path / "bin", monkeypatch, "case $* in *backports*) exit 100;; esac")
    with pytest.raises(Failed) as failed:
        await setup.carry_out(BARE, root=tmp_path / "root")
    assert "bookworm-backports" in failed.value.hint


async def test_observing(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="trixie"\n')
    wants = tmp_path / setup.UNITS / "multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "etcd.service").symlink_to("/nowhere/etcd.service")
    (tmp_path / setup.UNITS / "tgt.service").symlink_to("/dev/null")
    (tmp_path / "sys/fs/cgroup/system.slice/etcd.service").mkdir(parents=True)
    settings = Settings(state=str(tmp_path / "state"))
    facts = await setup.observe(settings, [Role.VOTER], driver="", member=False, root=tmp_path)
    assert facts.codename == "trixie"
    assert facts.enabled == facts.running == {"etcd.service"}
    assert facts.masked == {"tgt.service"}
    assert facts.packages.keys() >= {"iproute2"}
    assert facts.pool_shared
    assert not facts.unit


# ---- the example of the settings, which the Debian package brings
def test_the_settings_of_the_package_are_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = Path(__file__).parents[3]
    monkeypatch.syspath_prepend(str(top / "packaging/deb"))
    from example import example

    text = example((top / "docs/settings.md").read_text())
    assert tomllib.loads(text) == {}
    lines = [
        line.removeprefix("#") for line in text.splitlines() if line.startswith("#") and line[1:2] not in (" ", "")
    ]
    path = tmp_path / "veery.toml"
    path.write_text("\n".join(lines))
    found = load(path)
    assert found.power.keys() == {"NODE"}
    assert dataclasses.replace(found, power={}) == Settings()
    assert {each.partition(" ")[0] for each in lines if "=" in each} >= {"state", "quota", "webhook_token_file"}
