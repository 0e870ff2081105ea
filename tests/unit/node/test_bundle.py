"""The bundle of `veery report`: what must not be in it, however it came there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from veery.node.bundle import FILES_MAX, LEFT_OUT, Bundle, plain, secrets_in, secrets_of_keys, without_secrets

LINE = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg" + "A" * 16
PEM = f"-----BEGIN PRIVATE KEY-----\n{LINE}\n-----END PRIVATE KEY-----\n"


def unpacked(bundle: Bundle) -> dict[str, str]:
    stream = io.BytesIO()
    bundle.write(stream, "top", 1000.0)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        return {each.name: archive.extractfile(each).read().decode() for each in archive}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"password": "geheim12"}, {"password": LEFT_OUT}),
        ({"a": [{"vncpasswd": "geheim12"}]}, {"a": [{"vncpasswd": LEFT_OUT}]}),
        ({"xl": [["vncpasswd", "geheim12"], ["keymap", "de"]]}, {"xl": [["vncpasswd", LEFT_OUT], ["keymap", "de"]]}),
        ({"webhook": "https://hooks/T0/B0/x"}, {"webhook": LEFT_OUT}),
        ({"options": {"passwd": "geheim12", "ip": "10.0.0.1"}}, {"options": {"passwd": LEFT_OUT, "ip": "10.0.0.1"}}),
        ({"password_file": "/etc/veery/pw"}, {"password_file": "/etc/veery/pw"}),
        ({"password": ""}, {"password": ""}),
        ({"vfb": ["type=vnc,vncpasswd=geheim12,vnc=1"]}, {"vfb": [f"type=vnc,vncpasswd={LEFT_OUT},vnc=1"]}),
        ({"monkey": "ape", "keymap": "de"}, {"monkey": "ape", "keymap": "de"}),
    ],
)
def test_what_is_named_as_a_secret_is_left_out(value: Any, kept: Any) -> None:
    assert without_secrets(value) == kept


def test_texts_lose_keys_and_passwords() -> None:
    assert plain(f"a\n{PEM}b") == f"a\n{LEFT_OUT}\nb"
    assert plain(PEM[:60]) == LEFT_OUT  # cut off in the midst
    assert plain("GET https://me:geheim@host/x") == f"GET https://{LEFT_OUT}@host/x"
    assert plain("agent password=geheim -v") == f"agent password={LEFT_OUT} -v"


def test_a_known_secret_is_blotted_out_wherever_it_stands() -> None:
    bundle = Bundle()
    bundle.add_json("settings.json", {"power": {"a": {"options": {"passwd": "geheim12"}}}})
    bundle.add_text("log.txt", "the agent said: geheim12 is wrong\n")
    bundle.secrets |= secrets_of_keys(PEM)
    bundle.add_text("dump.txt", f"somebody logged {LINE}\n")
    files = unpacked(bundle)
    assert files["top/log.txt"] == f"the agent said: {LEFT_OUT} is wrong\n"
    assert files["top/dump.txt"] == f"somebody logged {LEFT_OUT}\n"
    assert not any("geheim12" in text for text in files.values())


def test_short_values_blot_out_nothing() -> None:
    assert secrets_in([{"password": "on"}, {"password": "longer-one"}]) == {"longer-one"}


def test_it_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 5000 + b"END")
    bundle = Bundle()
    bundle.add_end("log", tmp_path / "log", 100)
    bundle.add_end("none", tmp_path / "nothing", 100)
    assert len(bundle.files["log"]) == 100
    assert bundle.files["log"].endswith(b"END")
    assert "No such file" in bundle.missing["none"]
    for number in range(FILES_MAX + 5):
        bundle.add_text(f"f{number}", "")
    assert len(bundle.files) == FILES_MAX
    assert "missing.json" in "".join(unpacked(bundle))
