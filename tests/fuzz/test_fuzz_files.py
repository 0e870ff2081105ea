"""Files of strangers: domain files, save files, disk images. Each is taken or refused, in one line, with a hint."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_values import shaped, spoilt
from hypothesis import given
from hypothesis import strategies as st
from plenty import KEPT, plenty

from veery.cli import imports
from veery.config import xljson
from veery.config.check import check_spec
from veery.config.domain import load_domain, parse_domain, render_domain
from veery.config.keys import KEYS
from veery.errors import Refused, VeeryError
from veery.model.codec import encode
from veery.node import savefile

SEEDS = [
    "name = 'web'\nmemory = 64\nkernel = '/boot/vmlinuz'\n",
    "name='web'\ntype='hvm'\nvcpus=2\ndisk=['/x.img,raw,xvda,rw','volume=web,xvdb,w,bps=20M,iops_wr=9','file:/x,hda:cdrom,r']\nvif=['bridge=xenbr0,mac=00:16:3e:00:00:01']\n",
    "name='web'\nvif=['','ip=10.0.0.1,rate=1Mb/s@20ms,model=e1000','script=/x,backend=0']\nvif_unfiltered=[0]\n"
    "extra='a b' root='/dev/xvda ro'\non_crash='restart'\ncpus='0-3,^1'\n",
]
PIECES = st.sampled_from(
    [
        *(f"\n{name}=" for name in KEYS),
        *(
            "'",
            '"',
            "[",
            "]",
            ",",
            "=",
            "\\",
            "\\x4",
            "\\777",
            "\n",
            ";",
            "#",
            "+=",
            "0x",
            "-1",
            "99999999999999999999",
        ),
        *(
            "'xvda'",
            "['volume=x,xvda']",
            "[['a']]",
            "'1Mb/s@20ms'",
            "'0-3,^1'",
            "[" * 30,
            "'" + "x" * 5000 + "'",
            "(",
            "\r",
        ),
        *(
            "format=",
            "vdev=",
            "target=",
            "bps=",
            "iops_rd=",
            "backendtype=",
            "mac=",
            "ip=",
            "rate=",
            "type=",
            "\x00",
            "\x1b[31m",
            "\ud800",
            "é",
        ),
    ]
)


@st.composite
def mutants(draw: st.DrawFn) -> str:
    """A domain file with some places changed."""
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 5))):
        at, cut = draw(st.integers(0, len(text))), draw(st.integers(0, 12))
        text = text[:at] + draw(PIECES | st.text(max_size=3)) + text[at + cut :]
    return text


def judge(error: Refused) -> None:
    """Fail unless a refusal is one line with a hint that any terminal can show."""
    assert error.hint
    assert not re.search("[\x00-\x1f\x7f]", error.message + error.hint), repr(error.message)


@plenty(700)
@given(mutants() | st.lists(PIECES, max_size=10).map("".join), st.lists(PIECES | st.text(max_size=5), max_size=2))
def test_any_domain_file_is_read_or_refused(text: str, overrides: list[str]) -> None:
    try:
        loaded = parse_domain(text, "f", overrides)
    except Refused as error:
        judge(error)
        return
    assert parse_domain(render_domain(loaded.spec), "f").spec == loaded.spec
    shown, _ = xljson.config_json(loaded.spec, loaded.given)
    assert json.loads(xljson.pretty(shown)) is not None
    assert json.loads(xljson.pretty(xljson.domain_json(loaded.spec, 7)))["domid"] == 7


@plenty(200)
@given(
    mutants() | st.binary(max_size=200).map(lambda data: data.decode("latin-1")),
    st.binary(max_size=4),
    st.integers(0, 300),
)
def test_any_bytes_are_a_domain_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, more: bytes, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "domain"
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(data[:at] + more + data[at:])
    try:
        load_domain(path)
    except Refused as error:
        judge(error)


SAVED = {
    "spec": {"name": "web", "uuid": "11111111-2222-4333-8444-555555555555", "memory": 64, "kernel": "/boot/vmlinuz"},
    "token": "0123456789abcdef",
    "luggage": {"machine": "pc-q35-9.0", "cpu": "qemu64,+pni", "memory": 128},
    "backlog": "Ym9vdA==",
    "paused": False,
}


@plenty(500)
@given(
    spoilt(st.just(SAVED) | shaped(savefile.Saved)).map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=80),
    st.integers(-9, 9) | st.sampled_from([1 << 20, 1 << 25, (1 << 25) + 1, 1 << 40, (1 << 64) - 1000]),
    st.binary(max_size=30),
    st.sampled_from([savefile.MAGIC, savefile.MAGIC, savefile.MAGIC, b"VEERYSAVE2", b""]),
)
def test_any_save_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, off: int, stream: bytes, magic: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "saved"
    length = (len(data) + off) % (1 << 64)
    path.write_bytes(stream + data + struct.pack("!Q", length) + magic)
    try:
        saved = savefile.read(path)
    except Refused as error:
        judge(error)
        return
    assert check_spec(saved.spec, settled=True)
    assert encode(saved)


FORMATS = ("qcow2", "vmdk", "vhdx", "vpc", "qed", "raw")
OFFSETS = st.integers(0, 130) | st.integers(0, 4096) | st.integers(0, 1 << 18)
WORDS = st.sampled_from(
    [b"\xff" * 8, bytes(8), b"\x00\x00\x00\x01", b"/etc/passwd\x00", b"json:{}", b"KDMV", b"QFI\xfb", b"\x7f"]
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """One image of each format, of a disk of a MiB."""
    folder, made = tmp_path_factory.mktemp("images"), {}
    for name in FORMATS:
        path = folder / name
        subprocess.run(["qemu-img", "create", "-q", "-f", name, path, "1M"], check=True, timeout=60)
        made[name] = path.read_bytes()[: 1 << 22]
    yield made


def looked_at(path: Path) -> None:
    """What `volume import` does with an image before and while it reads one."""
    kind = imports.image_format(path)
    try:
        size = imports.inspect(path, kind)
    except Refused as error:
        judge(error)
        return
    assert size >= 0
    if size <= 16 << 20:
        try:
            imports.convert(path, kind, path.with_suffix(".raw"))
        except VeeryError as error:
            assert error.message


def test_any_image_is_looked_at_or_refused(images: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "image"

    @plenty(50)
    @given(
        st.sampled_from(FORMATS),
        st.lists(st.tuples(OFFSETS, WORDS | st.binary(min_size=1, max_size=8)), max_size=5),
        OFFSETS,
    )
    def tried(name: str, changes: list[tuple[int, bytes]], cut: int) -> None:
        data = bytearray(images[name])
        for at, word in changes:
            data[at : at + len(word)] = word
        path.write_bytes(data[:cut] if cut % 7 == 0 else data)
        looked_at(path)

    tried()


@pytest.mark.parametrize("path", sorted(KEPT.glob("image-*")), ids=lambda path: path.name)
def test_images_that_were_once_mishandled(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "image"
    copy.write_bytes(path.read_bytes())
    looked_at(copy)


@pytest.mark.parametrize("path", sorted(KEPT.glob("domain-*")), ids=lambda path: path.name)
def test_domain_files_that_were_once_mishandled(path: Path) -> None:
    try:
        loaded = load_domain(path)
    except Refused as error:
        judge(error)
        return
    assert parse_domain(render_domain(loaded.spec), "f").spec == loaded.spec
