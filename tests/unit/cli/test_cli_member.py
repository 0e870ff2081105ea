"""init and join: the addresses of a new node's networks, and a node with a vote alone."""

from __future__ import annotations

import stat
from argparse import Namespace
from pathlib import Path

import pytest
from cli_standin import HOST, NODE, VOLUME, Run, StandIn

from veery.cli import membersettings
from veery.cli.session import Usage
from veery.cluster import identity
from veery.config.settings import load
from veery.errors import Failed
from veery.model.node import Role

STORAGE, MIGRATION = "127.0.20.1", "127.0.30.1"


def settings_file(folder: Path, more: str = "") -> Path:
    path = folder / "veery.toml"
    path.write_text(f'state = "{folder / "state"}"\n{more}')
    path.chmod(0o640)
    return path


def init(run: Run, path: Path, *words: str, roles: str = "hypervisor,storage,voter") -> tuple[int, str]:
    told = run("--settings", str(path), "init", "--name", "n1", "--address", "127.0.0.1", "--roles", roles, *words)
    return told.code, told.err


def test_init_writes_the_addresses_to_the_settings(run: Run, tmp_path: Path) -> None:
    path = settings_file(tmp_path, "# kept\n")
    code, err = init(run, path, "--storage-address", STORAGE, "--migration-address", MIGRATION)
    assert code == 0, err
    settings = load(path)
    assert (settings.storage.address, settings.relocation.address) == (STORAGE, MIGRATION)
    assert "# kept" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    node = identity.load(tmp_path / "state").node
    assert (node.storage_address, node.relocation_address, node.address) == (STORAGE, MIGRATION, "127.0.0.1")


def test_what_init_refuses_leaves_the_settings_alone(run: Run, tmp_path: Path) -> None:
    path = settings_file(tmp_path)
    before = path.read_text()
    for word, said in {
        "10.255.255.1": "is not an address of this machine",
        "fe80::1": "no node can be reached at fe80::1",
        "here": "not an IP address: 'here'",
    }.items():
        code, err = init(run, path, "--storage-address", word)
        assert (code, said in err) == (1, True), err
    code, err = init(run, path, "--storage-address", STORAGE, roles="hypervisor")
    assert (code, "must be a voter" in err) == (1, True), err
    code, err = init(run, path, "--migration-address", MIGRATION, roles="storage,voter")
    assert (code, "--migration-address needs the role hypervisor" in err) == (2, True), err
    path.write_text(f'{before}[storage]\naddress = "127.0.0.9"\n')
    code, err = init(run, path, "--storage-address", STORAGE)
    assert (code, f"{path}: storage.address is '127.0.0.9' already" in err) == (1, True), err
    assert path.read_text() == f'{before}[storage]\naddress = "127.0.0.9"\n'
    assert not (tmp_path / "state" / "identity.json").exists()


def test_a_witness_is_the_first_node(run: Run, tmp_path: Path) -> None:
    path = settings_file(tmp_path)
    before = path.read_text()
    code, err = init(run, path, "--storage-address", STORAGE, roles="voter")
    assert (code, "--storage-address needs the role storage or hypervisor" in err) == (2, True), err
    assert init(run, path, roles="voter") == (0, "")
    node = identity.load(tmp_path / "state").node
    assert (node.roles, node.driver, node.storage_address) == ((Role.VOTER,), "", "")
    assert path.read_text() == before


def test_settings_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    args = Namespace(storage_address=STORAGE, migration_address="")
    (tmp_path / "absent").mkdir()
    change = membersettings.plan(str(tmp_path / "absent" / "veery.toml"), [Role.STORAGE], args, "join")
    (tmp_path / "absent").rmdir()
    (tmp_path / "absent").symlink_to(file)
    with pytest.raises(Failed) as failed:
        membersettings.write(change)
    assert failed.value.hint == f'before veeryd starts the next time, write there: [storage] address = "{STORAGE}"'
    with pytest.raises(Usage):
        membersettings.plan(str(tmp_path / "veery.toml"), [Role.VOTER], args, "join")


@pytest.fixture
def in_service(daemon: StandIn) -> StandIn:
    """This machine's veeryd, of node test1."""
    daemon.routes["GET /v1/host"] = {"host": HOST, "node": {**NODE, "roles": ["hypervisor", "storage", "voter"]}}
    daemon.routes["GET /v1/volumes"] = [{"volume": {**VOLUME, "node": "test1"}, "used_by": ["busybox on test1"]}]
    return daemon


def test_a_node_in_service_gets_new_addresses(in_service: StandIn, run: Run, folder: Path) -> None:
    path = folder / "veery.toml"
    before = path.read_text()
    told = run("node", "readdress", "test1", "--storage-address", STORAGE, "--plan")
    assert (told.code, told.out) == (0, f'{path}: [storage] address = "{STORAGE}"\nsystemctl restart veeryd\n')
    assert "volumes of test1 are in use by busybox on test1: keep the old address" in told.err
    assert path.read_text() == before
    order = ("node", "readdress", "test1", "--storage-address", STORAGE, "--migration-address", MIGRATION)
    told = run(*order)
    assert (told.code, told.out.splitlines()[-1]) == (0, "next: systemctl restart veeryd")
    told = run("node", "readdress", "test1", "--storage-address", "127.0.20.2", "--json")
    assert told.code == 0
    settings = load(path)
    assert (settings.storage.address, settings.relocation.address) == ("127.0.20.2", MIGRATION)
    assert before in path.read_text()
    assert in_service.orders() == []


def test_another_machine_keeps_its_settings(in_service: StandIn, run: Run, folder: Path) -> None:
    before = (folder / "veery.toml").read_text()
    told = run("node", "readdress", "test2", "--storage-address", STORAGE)
    assert (told.code, "this is not test2\n  hint: run the command on test2, without --node" in told.err) == (1, True)
    told = run("--node", "test1", "node", "readdress", "test1", "--storage-address", STORAGE)
    assert (told.code, "without --node" in told.err) == (1, True), told.err
    told = run("node", "readdress", "test1", "172.16.40.1", "--storage-address", STORAGE)
    assert (told.code, "give a new address, or --storage-address" in told.err) == (2, True), told.err
    assert run("node", "readdress", "test1").code == 2
    assert (folder / "veery.toml").read_text() == before
