"""xl's talk beside a domain's memory, however it is cut into pieces."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from veery.hypervisor.xen.handshake import BANNER, MAGIC, READY, REPORT, Garbled, Header, Word, Words, furnished


def stream(config: dict[str, Any], *, order: int = 0x01020304, flags: int = 3, tail: bytes = b"") -> bytes:
    text = json.dumps(config).encode() + b"\0"
    body = struct.pack("=I", len(text)) + text + tail
    return struct.pack("=32sIIII", MAGIC, order, flags, 0, len(body)) + body


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_receiver_s_words(size: int) -> None:
    words, heard = Words(), []
    for piece in pieces(BANNER + READY, size):
        heard += words.feed(piece)
    assert heard == [Word.BANNER, Word.READY]


@pytest.mark.parametrize("said", [b"Welcome to Debian\n", BANNER + b"no", BANNER + READY + REPORT])
def test_other_words_are_not_taken_for_them(said: bytes) -> None:
    with pytest.raises(Garbled):
        Words().feed(said)


@pytest.mark.parametrize("size", [1, 13, 1 << 16])
def test_the_configuration_is_changed_and_the_memory_is_not(size: int) -> None:
    header, out = Header(lambda config: {**config, "added": "ä" * 100}), b""
    memory = bytes(range(256)) * 40
    for piece in pieces(stream({"c_info": {"name": "busybox"}}, tail=b"more") + memory, size):
        out += header.feed(piece)
    assert header.passed
    (length,) = struct.unpack_from("=I", out, 44)
    (size_of_text,) = struct.unpack_from("=I", out, 48)
    text = out[52 : 52 + size_of_text]
    assert json.loads(text[:-1]) == {"c_info": {"name": "busybox"}, "added": "ä" * 100}
    assert text[-1:] == b"\0"
    assert out[52 + size_of_text : 48 + length] == b"more"
    assert out[48 + length :] == memory


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        stream({}, order=0x04030201),
        stream({}, flags=2),
        stream({})[:52] + b"{]" + stream({})[54:],
    ],
)
def test_what_is_no_stream_is_not_let_through(data: bytes) -> None:
    with pytest.raises(Garbled):
        Header(lambda config: config).feed(data)


def test_disks_and_interfaces_are_those_of_this_node() -> None:
    config = {
        "c_info": {"name": "busybox"},
        "disks": [
            {"vdev": "xvda", "pdev_path": "/dev/sdb", "backend": "phy"},
            {"vdev": "xvdb", "pdev_path": "/srv/a.img", "backend": "phy"},
            {"vdev": "xvdc", "pdev_path": "rbd:x", "backend": "phy", "script": "block-rbd"},
        ],
        "nics": [
            {"mac": "a"},
            {"mac": "b", "script": "/etc/xen/scripts/vif-bridge"},
            {"mac": "c", "script": "vif-route"},
        ],
    }
    made = furnished(config, {"xvda": "/dev/veery/one"}, {"disk": "/x/veery-block", "nic": "/x/veery-vif"})
    assert [(each["pdev_path"], each.get("script")) for each in made["disks"]] == [
        ("/dev/veery/one", "/x/veery-block"),
        ("/srv/a.img", None),
        ("rbd:x", "block-rbd"),
    ]
    assert [each["script"] for each in made["nics"]] == ["/x/veery-vif", "/x/veery-vif", "vif-route"]
    assert furnished(config, {}, {}) == {**config, "nics": config["nics"]}
    assert config["disks"][0]["pdev_path"] == "/dev/sdb"
