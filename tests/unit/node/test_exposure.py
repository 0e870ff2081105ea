"""What the doctor says of the guests' network."""

from __future__ import annotations

from veery.errors import Failed
from veery.model.health import Level
from veery.network.bridge import Bridge
from veery.network.filter import TapFilter
from veery.node.exposure import Exposure, judge_filter, judge_ports, judge_user


def bridge(name: str, *addresses: str) -> Bridge:
    return Bridge(name=name, mac="02:00:00:00:00:01", mtu=1500, up=True, addresses=addresses, ports=())


NODE = "172.16.31.1"
PORTS = {"API": NODE, "etcd": NODE, "iSCSI": "10.0.0.1"}


def test_ports_on_the_guests_bridge() -> None:
    known = [bridge("xenbr0", f"{NODE}/16", "fe80::1/64"), bridge("own", "10.0.0.1/24")]
    (found,) = judge_ports("a", PORTS, known, {"xenbr0"})
    assert (found.level, found.told) == (Level.WARN, "guests on xenbr0 can reach API, etcd")
    assert "docs/hosts.md" in found.advice
    assert [one.told for one in judge_ports("a", PORTS, known, {"xenbr0", "own"})] == [
        "guests on own can reach iSCSI",
        "guests on xenbr0 can reach API, etcd",
    ]


def test_a_bridge_without_an_address_reaches_nothing() -> None:
    known = [bridge("xenbr0", "fe80::1/64"), bridge("own", f"{NODE}/24", "10.0.0.1/24")]
    assert [one.level for one in judge_ports("a", PORTS, known, {"xenbr0"})] == [Level.OK]
    assert [one.level for one in judge_ports("a", {"API": "0.0.0.0"}, known, {"xenbr0"})] == [Level.OK]
    (found,) = judge_ports("a", {"API": "0.0.0.0", "relocation": "::"}, known, {"own"})
    assert found.told == "guests on own can reach API, relocation"


def test_whom_qemu_runs_as() -> None:
    assert judge_user("a", "auto", account=True).told == "QEMU runs as veery-qemu"
    assert judge_user("a", "200000-265535", account=False).told == "QEMU runs as 200000-265535"
    assert judge_user("a", "", account=True).level is Level.OK
    found = judge_user("a", "auto", account=False)
    assert (found.level, "as root" in found.told, "veery setup" in found.advice) == (Level.WARN, True, True)


def test_the_filter() -> None:
    assert judge_filter("a", on=True, trouble="").level is Level.OK
    assert "off" in judge_filter("a", on=False, trouble="").told
    bad = judge_filter("a", on=True, trouble="nft is not installed")
    assert (bad.level, "nft is not installed" in bad.told) == (Level.WARN, True)
    assert bad.advice


async def test_a_driver_that_fails_is_a_finding() -> None:
    async def guests() -> frozenset[str]:
        raise Failed("no answer")

    found = await Exposure("a", PORTS, guests, TapFilter()).findings([])
    assert [(one.what, one.level) for one in found] == [("tap filter", Level.OK), ("guests' reach", Level.WARN)]
    assert [one.what for one in await Exposure("a", PORTS, guests, None).findings([])] == ["guests' reach"]
