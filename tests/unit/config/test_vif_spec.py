"""Interface specs become VifSpecs, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veery.config.vif import parse_vif, render_vif
from veery.errors import Refused
from veery.model.domain import VifSpec


@pytest.mark.parametrize(
    ("spec", "vif"),
    [
        ("", VifSpec()),
        ("bridge=xenbr0", VifSpec(bridge="xenbr0")),
        (" mac=00:16:3E:74:3d:76 ,  bridge=xenbr0 ", VifSpec(mac="00:16:3e:74:3d:76", bridge="xenbr0")),
        ("mac=0-16-3e-1-2-3", VifSpec(mac="00:16:3e:01:02:03")),
        ("mac=00:00:00:00:00:00", VifSpec()),
        (
            "type=ioemu,model=e1000,vifname=n,script=s,ip=10.0.0.1 10.0.0.2,backend=b,gatewaydev=g,rate=1MB/s@20ms,"
            "mtu=9000,devid=2,trusted",
            VifSpec(
                type="ioemu",
                model="e1000",
                vifname="n",
                script="s",
                ip="10.0.0.1 10.0.0.2",
                backend="b",
                gatewaydev="g",
                rate="1MB/s@20ms",
                mtu=9000,
                devid=2,
                trusted=True,
            ),
        ),
    ],
)
def test_forms(spec: str, vif: VifSpec) -> None:
    assert parse_vif(spec) == (vif, ())
    assert parse_vif(render_vif(vif)) == (vif, ())


def test_deprecated_forms_warn() -> None:
    vif, warnings = parse_vif("type=netfront,netdev=eth0,accel=1")
    assert vif == VifSpec(type="vif", gatewaydev="eth0")
    assert len(warnings) == 3


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("brigde=xenbr0", "unknown key 'brigde=xenbr0'", "did you mean bridge?"),
        ("xenbr0", "unknown key 'xenbr0'", "keys are"),
        ("mac=00:16:3e", "invalid 'mac=00:16:3e'", "00:16:3e:xx"),
        ("mac=00:16:3e:01:02:03:04", "invalid mac", "00:16:3e:xx"),
        ("mac=01:16:3e:01:02:03", "group address", "even"),
        ("type=e1000", "invalid 'type=e1000'", "type=vif"),
        ("rate=10", "invalid rate in `10' in vif", "rate=10Mb/s"),
        ("mtu=big", 'failed to convert "big" to number', "mtu=1500"),
        ("mtu=70000", "out of range", "mtu=1500"),
        ("bridge=a b", "'a b' is not an interface name", "15 characters"),
        ("vifname=0123456789abcdef", "is not an interface name", "15 characters"),
        ("forwarddev=eth1", "COLO", "remove"),
        ("bridge=a\nb", "cannot contain '\\n'", "remove"),
    ],
)
def test_refusals(spec: str, message: str, hint: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_vif(spec)
    assert message in caught.value.message
    assert hint in caught.value.hint


words = st.just("") | st.text("abcé/.=: x", min_size=1, max_size=15).filter(lambda text: text == text.strip(" "))
names = st.just("") | st.text("abcx09.-_", min_size=3, max_size=15).filter(lambda text: text.strip("."))
vifs = st.builds(
    VifSpec,
    bridge=names,
    mac=st.just("")
    | st.lists(st.integers(0, 255), min_size=5, max_size=5).map(
        lambda octets: ":".join(f"{octet:02x}" for octet in (2, *octets))
    ),
    vifname=names,
    script=words,
    ip=words,
    backend=words,
    type=st.sampled_from(["", "vif", "ioemu"]),
    model=words,
    gatewaydev=words,
    rate=st.sampled_from(["", "10Mb/s", "1MB/s@20ms"]),
    mtu=st.integers(0, 65535),
    trusted=st.sampled_from([None, True, False]),
    devid=st.integers(-1, 100),
)


@given(vifs)
def test_render_is_read_back(vif: VifSpec) -> None:
    assert parse_vif(render_vif(vif)) == (vif, ())


pieces = st.sampled_from(
    ("mac=", "00:16:3e:01:02:03", "bridge=", "xenbr0", ",", "rate=", "1MB/s", "@", "20ms", "mtu=", "9", "trusted", "=")
)


@given(st.text() | st.lists(pieces, max_size=8).map("".join))
def test_any_text_is_an_interface_or_refused(spec: str) -> None:
    try:
        vif, _ = parse_vif(spec)
    except Refused as error:
        assert error.hint
    else:
        assert parse_vif(render_vif(vif))[0] == vif
