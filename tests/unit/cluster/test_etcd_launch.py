"""With which data etcd is started, and when it is not started."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.cluster import restoring, server
from veery.cluster.identity import EtcdStart, Identity
from veery.config.settings import Settings
from veery.errors import Failed
from veery.host import crl
from veery.model.cluster import Cluster
from veery.model.node import Node, Role


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / crl.FILE).touch()
    return Settings(state=str(tmp_path), run=str(tmp_path / "run"))


def identity(*, store: str = "", prepared: bool = False) -> Identity:
    node = Node(name="a", address="127.0.0.1", roles=(Role.VOTER,))
    cluster = Cluster(id="c", name="lab", ca="", authority="iqn.2026-11.internal.lab")
    start = EtcdStart(initial_cluster="", initial_cluster_state="new", store=store, prepared=prepared)
    return Identity(cluster=cluster, node=node, voters=(), etcd=start)


def prepare(settings: Settings) -> Path:
    new = Path(settings.state) / "etcd.new"
    (new / "member").mkdir(parents=True)
    (new / "member/mark").touch()
    return new


def test_a_prepared_store_waits_for_the_identity(settings: Settings) -> None:
    """Data of the old store is gone; its etcd is tried again and again while the recovery asks the other nodes."""
    new = prepare(settings)
    with pytest.raises(Failed, match="the store's data is missing"):
        server.launch(settings, identity(store="old"))
    assert new.is_dir()
    with pytest.raises(Failed, match="the store's data is missing"):
        server.launch(settings, identity(store="old", prepared=True))  # it was recovered once before
    assert new.is_dir()


def test_a_prepared_store_is_taken_once_the_identity_says_so(settings: Settings) -> None:
    new = prepare(settings)
    assert server.launch(settings, identity(prepared=True))[0] == "etcd"
    assert not new.exists()
    assert (restoring.data(Path(settings.state)) / "member/mark").exists()


def test_a_recovered_store_never_begins_empty(settings: Settings) -> None:
    with pytest.raises(Failed, match="the store's data is missing"):
        server.launch(settings, identity(prepared=True))


def test_the_first_voter_begins_with_nothing(settings: Settings) -> None:
    prepare(settings)
    assert server.launch(settings, identity())[0] == "etcd"
    assert not restoring.has_data(Path(settings.state))
