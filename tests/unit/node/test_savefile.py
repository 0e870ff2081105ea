"""Save files: what was written is read, and what was changed is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veery.errors import Refused
from veery.model.domain import DiskSpec, DomainSpec
from veery.node import savefile

UUID = "6f3c1a52-9d7e-4b7c-8c55-0d5a4a3c1b2e"
SPEC = DomainSpec(name="web", uuid=UUID, kernel="/boot/vmlinuz", disks=(DiskSpec(vdev="xvda", volume="web"),))
SAVED = savefile.Saved(
    spec=SPEC, token="0123456789abcdef", luggage=msgspec.Raw(b'{"machine":"pc-q35-9.0"}'), backlog=b"boot"
)
STREAM = b"the hypervisor's stream" * 100


def written(folder: Path, saved: savefile.Saved = SAVED) -> Path:
    (folder / "part").write_bytes(STREAM)
    savefile.finish(folder / "part", folder / "saved", saved)
    return folder / "saved"


def with_json(folder: Path, data: bytes, length: int | None = None) -> Path:
    """A save file with `data` behind the stream, and a length that may be another."""
    path = folder / "saved"
    path.write_bytes(STREAM + data + struct.pack("!Q10s", len(data) if length is None else length, savefile.MAGIC))
    return path


def told(folder: Path, **changes: Any) -> bytes:
    data = json.loads(written(folder).read_bytes()[len(STREAM) : -18])
    for place, value in changes.items():
        *steps, last = place.split("__")
        inner = data
        for step in steps:
            inner = inner[step]
        inner[last] = value
    return json.dumps(data).encode()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert savefile.read(written(tmp_path)) == SAVED


@pytest.mark.parametrize("length", [0, 1, 10, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_another_length_is_refused(tmp_path: Path, length: int) -> None:
    path = with_json(tmp_path, told(tmp_path), length)
    with pytest.raises(Refused, match="not a save file of veery"):
        savefile.read(path)


def test_a_length_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
        file.seek(0, 2)
        file.write(struct.pack("!Q10s", 1 << 39, savefile.MAGIC))
    with pytest.raises(Refused, match="not a save file"):
        savefile.read(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"spec__name": "../web"},
        {"spec__uuid": "/etc"},
        {"spec__uuid": ""},
        {"spec__memory": -1},
        {"spec__kernel": "/boot/a\nb"},
        {"spec__disks": [{"vdev": "../x", "target": "/x"}]},
        {"spec__xl": [["kernel", '"/bin/sh"']]},
        {"luggage": {"machine": "pc,kernel-irqchip=off"}},
        {"luggage": {"cpu": "qemu64 -device x"}},
        {"token": 7},
        {"spec": None},
        {"backlog": "no base64!"},
    ],
)
def test_a_changed_description_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        savefile.read(with_json(tmp_path, told(tmp_path, **changes)))
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_what_is_no_text_or_too_deep_is_refused(tmp_path: Path) -> None:
    for data in (told(tmp_path).replace(b"web", b"w\xffb"), b"[" * 100_000, b'{"spec":' * 50_000):
        with pytest.raises(Refused):
            savefile.read(with_json(tmp_path, data))


@given(at=st.integers(0, 4000), data=st.binary(min_size=1, max_size=8), cut=st.integers(0, 8))
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files(tmp_path: Path, at: int, data: bytes, cut: int) -> None:
    whole = written(tmp_path).read_bytes()
    at = len(STREAM) + at % (len(whole) - len(STREAM))
    path = tmp_path / "mutant"
    path.write_bytes(whole[:at] + data + whole[at + cut :])
    try:
        saved = savefile.read(path)
    except Refused as error:
        assert error.hint
        return
    assert saved.spec.uuid


@given(data=st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_of_no_meaning(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "noise"
    for content in (data, data + savefile.MAGIC, data + struct.pack("!Q10s", len(data), savefile.MAGIC)):
        path.write_bytes(content)
        with pytest.raises(Refused):
            savefile.read(path)
