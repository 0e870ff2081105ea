"""What init leaves behind, and the command line that etcd gets."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from veery.cluster import identity, join, server
from veery.config.settings import Etcd, Settings
from veery.errors import Refused
from veery.host import tls
from veery.model.node import Role

EPOCH = 1_795_430_400.0  # 2026-11-23


def make(folder: Path, **other: object) -> identity.Identity:
    wish: dict[str, object] = {
        "name": "test1",
        "address": "172.16.31.1",
        "roles": [Role.HYPERVISOR, Role.VOTER],
        "driver": "qemu",
        "cluster": "lab",
        "epoch": EPOCH,
    }
    return identity.init(Settings(state=str(folder / "state"), run=str(folder / "run")), **{**wish, **other})  # type: ignore[arg-type]


def test_init_leaves_all_that_the_daemon_needs(tmp_path: Path) -> None:
    who = make(tmp_path)
    state = tmp_path / "state"
    assert identity.load(state) == who
    assert who.cluster.authority == "iqn.2026-11.internal.lab"
    assert who.node.initiator == "iqn.2026-11.internal.lab:node:test1"
    assert who.voters == ("https://172.16.31.1:2379",)
    first = identity.load_bootstrap(state)
    assert first is not None
    assert first.initiator.user == "test1"
    assert len(first.initiator.password) == 16
    assert "PRIVATE KEY" in first.ca_key
    for path in state.rglob("*"):
        secret = path.name.endswith("-key.pem") or path.suffix == ".json"
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600 if secret else 0o644), path
    tls.client_context(state / "tls")
    tls.server_context(state / "tls")


def test_a_node_has_one_cluster(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(Refused, match="belongs to cluster lab already"):
        make(tmp_path, cluster="other")


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"name": "Test 1"}, "not a node name"),
        ({"name": "-"}, "not a node name"),
        ({"cluster": "a/b"}, "not a cluster name"),
        ({"address": "test1"}, "not an IP address"),
        ({"address": "0.0.0.0"}, "no node can be reached"),
        ({"roles": [Role.HYPERVISOR]}, "must be a voter"),
    ],
)
def test_what_init_refuses_leaves_nothing(tmp_path: Path, wish: dict[str, object], message: str) -> None:
    with pytest.raises(Refused, match=message) as refused:
        make(tmp_path, **wish)
    assert refused.value.hint
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.parametrize(
    "name",
    ["local", "localhost", "localhost.lan", "a.localhost", "1.2.3.4", "10", "node.1", "0x7f", "a..b", "a.-b", "a-.b"],
)
def test_names_that_mean_something_else_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="not a node name"):
        make(tmp_path, name=name)


@pytest.mark.parametrize("name", ["a", "test1", "n1.lan", "0a", "1.rack", "locally", "x-1.example.org"])
def test_usual_names_are_taken(name: str) -> None:
    identity.check_node_name(name)


def test_a_node_without_cluster_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="belongs to no cluster") as refused:
        identity.load(tmp_path)
    assert "veery init" in refused.value.hint


def test_etcd_listens_at_the_nodes_address_and_at_loopback_only(tmp_path: Path) -> None:
    who = make(tmp_path)
    settings = Settings(state=str(tmp_path / "state"), etcd=Etcd(client_port=12379, peer_port=12380))
    words = [str(word) for word in server.command(settings, who)]
    given = dict(zip(words[1::2], words[2::2], strict=False))
    assert given["--listen-client-urls"] == "https://172.16.31.1:12379,https://127.0.0.1:12379"
    assert given["--listen-peer-urls"] == "https://172.16.31.1:12380"
    assert given["--initial-cluster-token"] == who.cluster.id
    assert {"--client-cert-auth", "--peer-client-cert-auth"} <= set(words)
    six = make(tmp_path / "six", address="fd00::1")
    assert "https://[fd00::1]:12379,https://127.0.0.1:12379" in server.command(settings, six)


def test_etcd_compares_its_members_data_now_and_then(tmp_path: Path) -> None:
    who, settings = make(tmp_path), Settings(state=str(tmp_path / "state"))
    for version, flag in (((3, 4), "--experimental-corrupt-check-time"), ((3, 6), "--corrupt-check-time")):
        words = server.command(settings, who, version)
        assert words[words.index(flag) + 1] == server.CHECK_INTERVAL
        assert not any("initial-corrupt" in str(word) or "feature-gates" in str(word) for word in words)
    assert not any("corrupt" in str(word) for word in server.command(settings, who, (0, 0)))
    assert server.parse_version("etcd Version: 3.4.23\nGit SHA: Not provided\n") == (3, 4)
    assert server.parse_version("etcd Version: 3.6.1-rc.0") == (3, 6)
    assert server.parse_version("no etcd") == (0, 0)


def test_a_token_is_read_back_or_refused() -> None:
    mark = "ab" * 32
    secret, read = join.read_token("veery.0123456789abcdef_-XYZ9.q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s\n")
    assert (secret, read) == ("0123456789abcdef_-XYZ9", mark)
    for wrong in ("", "veery", "veery.a.b", "xeery.0123456789abcdef.q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s"):
        with pytest.raises(Refused, match="not a token"):
            join.read_token(wrong)
