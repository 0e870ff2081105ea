"""The rules that hold a tap to its MAC and addresses, as text; the real kernel judges them in the integration tests."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from veery.errors import Failed
from veery.network.filter import Hold, TapFilter, indexes, networks, transaction

MAC = "00:16:3e:11:22:33"


def rules(ip: str = "") -> list[str]:
    """The rules of tap 7, without the words that each begins with."""
    lines = transaction([Hold(index=7, device="vif7.0", mac=MAC, ip=ip)]).splitlines()
    return [line.removeprefix("add rule netdev veery tap7 ") for line in lines if " rule netdev veery tap7 " in line]


def test_the_chain_of_a_tap_is_replaced_at_once_and_removed_wherever_it_is() -> None:
    assert transaction([Hold(index=7, device="vif7.0", mac=MAC)], (9,)).splitlines()[:3] == [
        "add table netdev veery",
        'add chain netdev veery tap7 { type filter hook ingress device "vif7.0" priority -350 ; policy accept ; }',
        "flush chain netdev veery tap7",
    ]
    assert transaction([], (9,)).splitlines()[1:] == [
        f"{verb} chain netdev veery tap9" for verb in ("add", "flush", "delete")
    ]


def test_a_tap_is_held_to_its_mac_and_serves_nobody() -> None:
    found = rules()
    assert f"ether saddr != {MAC} drop" in found
    assert f"arp saddr ether != {MAC} drop" in found
    assert "ether type ip udp sport 67 drop" in found
    assert "icmpv6 type { nd-router-advert, nd-redirect } drop" in found
    assert "ether type { 0x8100, 0x88a8 } drop" in found
    assert not [rule for rule in found if "saddr ip" in rule or "ip saddr" in rule or "ip6 saddr" in rule]


def test_where_ip_is_given_addresses_are_held_too() -> None:
    found = rules("10.0.0.5 2001:db8::5/64")
    assert "ether type arp arp saddr ip != { 0.0.0.0/32, 10.0.0.5/32 } drop" in found
    assert "ether type ip ip saddr != { 0.0.0.0/32, 10.0.0.5/32 } drop" in found
    assert "ether type ip6 ip6 saddr != { ::/128, 2001:db8::5/128, fe80::/10 } drop" in found
    assert "icmpv6 type nd-neighbor-advert @th,64,128 0x20010db8000000000000000000000005 accept" in found
    assert found[-1] == "icmpv6 type nd-neighbor-advert drop"


def test_with_ipv4_alone_ipv6_is_held_to_link_local() -> None:
    assert "ether type ip6 ip6 saddr != { ::/128, fe80::/10 } drop" in rules("10.0.0.5")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", []),
        ("dhcp", []),
        ("10.0.0.5/24,10.0.0.5", ["10.0.0.5/32"]),
        ("10.0.0.0/24", ["10.0.0.0/24"]),
        ("fe80::1/64 10.0.0.9", ["fe80::1/128", "10.0.0.9/32"]),
    ],
)
def test_the_words_of_ip(words: str, told: list[str]) -> None:
    assert [str(one) for one in networks(words)] == told


def test_members_of_a_set_never_overlap() -> None:
    assert "ether type ip ip saddr != { 0.0.0.0/32, 10.0.0.0/24 } drop" in rules("10.0.0.0/24 10.0.0.7")
    anything = rules("0.0.0.0/0 ::/0")
    assert anything == rules()


def test_bad_values_never_reach_nft() -> None:
    for mac in ("", "00:16:3e:11:22", f"{MAC}; flush ruleset", f"{MAC}\n"):
        with pytest.raises(Failed, match="is no MAC"):
            transaction([Hold(index=7, device="vif7.0", mac=mac)])
    for device in ("", 'a"b', "vif*", "a b", "a\\b", "a\n", "sixteen-letters-"):
        with pytest.raises(Failed, match="is invalid for nft"):
            transaction([Hold(index=7, device=device, mac=MAC)])
    assert rules("10.0.0.5}; flush ruleset") == rules()  # no address, so no rule
    with pytest.raises(Failed, match="65 addresses"):
        networks(" ".join(f"10.0.0.{number}" for number in range(65)))


def test_the_filters_that_are_there() -> None:
    chains = [("netdev", "veery", "tap12"), ("netdev", "mine", "tap4"), ("inet", "veery", "tap3")]
    rows = [{"chain": {"family": family, "table": table, "name": name}} for family, table, name in chains]
    assert indexes(json.dumps({"nftables": [{"metainfo": {}}, *rows]})) == {12}
    for bad in ("", "[]", '{"nftables": [{"chain": 1}]}', "[" * 100_000):
        with pytest.raises(Failed, match="cannot be read"):
            indexes(bad)


@pytest.mark.parametrize(
    ("script", "told"), [("", "not installed"), ("echo no such thing >&2; exit 1", "no such thing")]
)
async def test_without_nft_a_tap_stays_and_the_trouble_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, script: str, told: str
) -> None:
    program = tmp_path / "nft"
    if script:
        program.write_text(f"#!/bin/sh\ncat >/dev/null\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    taps = TapFilter(program=str(program))
    await taps.hold("lo", MAC)
    assert told in taps.trouble
    assert told in caplog.text
    assert taps.due()  # it tries again at the next look
    await taps.settle({"lo": (MAC, "")})
    assert told in taps.trouble


async def test_switched_off_nothing_is_asked_of_a_missing_nft(tmp_path: Path) -> None:
    taps = TapFilter(on=False, program=str(tmp_path / "nft"))
    await taps.hold("lo", MAC)
    await taps.settle({"lo": (MAC, "")})
    assert taps.trouble == ""
