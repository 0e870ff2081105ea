"""What other nodes may say on the relocation port: every field of every message with hostile values, and what a target
does with an offer that is none."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from two_nodes import SPEC, UUID, Pair, make_certificates, two_nodes

from veery.cluster import owner as owners
from veery.errors import Failed, Refused
from veery.migrate import wire
from veery.model.domain import DiskFormat, DiskSpec, DomainSpec, VifSpec
from veery.model.flow import Flow
from veery.model.move import MoveSettings, MoveState
from veery.model.volume import CarriedDisk

DISK = CarriedDisk(
    vdev="xvda", path="/srv/web.img", format=DiskFormat.RAW, block=False, size=1 << 30, allocated=1 << 20, target="/x"
)
FLOW = Flow(source="192.0.2.1", target="2001:db8::1", protocol=6, source_port=1, target_port=2, status=6, timeout=9)
OFFER = wire.Offer(
    move="0a1b2c3d",
    source="test1",
    domain="web",
    boot="0123456789abcdef",
    owner_revision=7,
    driver="qemu",
    spec=DomainSpec(
        name="web",
        uuid=UUID,
        kernel="/boot/vmlinuz",
        ramdisk="/boot/initrd",
        disks=(DiskSpec(vdev="xvda", target="/srv/web.img"), DiskSpec(vdev="xvdb", volume="data")),
        vifs=(VifSpec(bridge="xenbr0", mac="00:16:3e:00:00:01", vifname="web0"),),
        xl=(("cpu_weight", "512"),),
    ),
    luggage=msgspec.Raw(b'{"machine":"pc-q35-9.0","cpu":"qemu64,+pni","memory":128,"ports":8,"slots":{"disk-xvda":0}}'),
    backlog=b"boot",
    disks=(DISK,),
    disk_dir="/srv",
)
MESSAGES: tuple[wire.Message, ...] = (
    OFFER,
    wire.Ready(token="0" * 32, reservation=9, disks=(DISK,), disk_token="1" * 32),
    wire.Wait(),
    wire.Loaded(),
    wire.Finish(flows=(FLOW,), started=1764500000.5),
    wire.Running(),
    wire.Problem("refused", "no room", "make room"),
    wire.Pour(0.1),
    wire.Poured(5, 0.1),
    wire.Poised(),
    wire.Mend("0a1b2c3d", UUID),
    wire.Mending(),
    wire.Ask("0a1b2c3d", UUID),
    wire.Told("here"),
)
TEXTS = (
    *("../x", "/etc/cron.d/x", "a,b=c", "a\nb", "a\x1b[31mb", "a\x00b", "-x", "x" * 200_000, "", "é", "\u2028"),
    *("..", "a/b", "{}"),
)
NUMBERS: tuple[Any, ...] = (-1, -(1 << 63), 1 << 63, 1 << 70, 10**400, 1e308)
FREE = {  # where any one line is as good as another, or a text has no meaning
    "offer": {"spec.cmdline", "backlog", "spec.kernel", "spec.ramdisk", "spec.xl.0.1", "spec.disks.0.target"},
    "problem": {"kind", "message", "hint"},
}
LETS: dict[str, set[Any]] = {  # which of the hostile values a field may have all the same
    "path": {"/etc/cron.d/x"},  # the source's own; the file at the target gets a new name
    "target": {"/etc/cron.d/x"},
    "disk_dir": {"/etc/cron.d/x"},  # the administrator's choice
    "script": {"/etc/cron.d/x", "a/b", "é", "{}"},  # a domain file is as good as root
    "ip": {"..", "a/b"},  # signs of addresses
    "bridge": {"é", "{}"},
    "vifname": {"é", "{}"},
    "devid": {-1},
    "inode": {1 << 63},
    "cpu": {"a,b=c"},
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each text and number in JSON `value`, with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    elif not isinstance(value, bool) and value is not None:
        yield path, value


def changed(message: wire.Message, path: tuple[Any, ...], value: Any) -> bytes:
    """The frame's JSON with another value at one place."""
    data = json.loads(msgspec.json.encode(message))
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(data).encode()


def refused(data: bytes) -> str:
    """Why it is refused: one line of bounded length; "" where it is taken."""
    try:
        wire.decode(data)
    except Refused as error:
        for text in (error.message, error.hint):
            assert text.isprintable()
            assert len(text) < 4096
        return error.message
    return ""


def test_every_message_is_here() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(wire.Message))
    for message in MESSAGES:
        assert wire.decode(msgspec.json.encode(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_field_with_hostile_values(message: wire.Message) -> None:
    tag, taken = str(message.__struct_config__.tag), []
    for path, value in leaves(json.loads(msgspec.json.encode(message))):
        place = ".".join(map(str, path))
        for hostile in TEXTS if isinstance(value, str) else NUMBERS:
            if place in FREE.get(tag, ()) or hostile == "" or hostile in LETS.get(path[-1], ()):
                continue
            if not refused(changed(message, path, hostile)):
                taken.append((place, hostile if isinstance(hostile, float | int) else hostile[:20]))
    assert not taken, "; ".join(map(str, taken))


def test_free_texts_reach_nobody_as_more_than_one_line() -> None:
    for hostile in TEXTS:
        message = wire.decode(changed(MESSAGES[6], ("message",), hostile))
        assert isinstance(message, wire.Problem)
        assert message.message.isprintable()
        assert len(message.message) <= wire.SAID_MAX
    for place in ("kernel", "ramdisk"):
        for hostile in ("a\nb", "a\x1b[31mb", "a\x00b", "x" * 200_000):
            assert refused(changed(OFFER, ("spec", place), hostile))
    assert refused(changed(OFFER, ("spec", "cmdline"), "a\x00b"))
    for path in (("domain",), ("move",), ("source",), ("boot",), ("spec", "name"), ("spec", "uuid")):
        assert refused(changed(OFFER, path, ""))
    for hostile in ('1\nbootloader = "/x"', '1;bootloader="/x"', "/etc/x", "../x", "a,b"):
        assert refused(changed(OFFER, ("spec", "xl", 0, 1), hostile))


def test_an_offer_is_of_one_domain_and_its_own_disks() -> None:
    assert "offered as" in refused(changed(OFFER, ("domain",), "other"))
    assert "not a disk of the domain" in refused(changed(OFFER, ("disks", 0, "vdev"), "xvdc"))
    assert "too many" in refused(changed(OFFER, ("disks",), [json.loads(msgspec.json.encode(DISK))] * 1000))
    assert "twice" in refused(changed(OFFER, ("disks",), [json.loads(msgspec.json.encode(DISK))] * 2))


@given(data=st.binary(max_size=300))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_bytes_of_no_meaning(data: bytes) -> None:
    refused(data)


@given(at=st.integers(0, 900), cut=st.integers(0, 8), data=st.binary(max_size=8), which=st.sampled_from(MESSAGES))
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_mutated_messages(at: int, cut: int, data: bytes, which: wire.Message) -> None:
    whole = msgspec.json.encode(which)
    at %= len(whole)
    refused(whole[:at] + data + whole[at + cut :])


@given(data=st.binary(max_size=64))
@settings(max_examples=200, deadline=None)
def test_frames_of_no_meaning(data: bytes) -> None:
    async def receive() -> None:
        reader = asyncio.StreamReader(limit=wire.FRAME_MAX)
        reader.feed_data(data)
        reader.feed_eof()
        channel = wire.Channel(reader, None, "test1")  # type: ignore[arg-type]
        try:
            await channel.receive(5)
        except Failed as error:
            assert error.message.isprintable()

    asyncio.run(receive())


# ---- a target


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def said_to(pair: Pair, data: bytes) -> wire.Message:
    """What `b` answers to a frame with `data` from `a`."""
    node = pair.b.node
    channel = await wire.open_control(node.address, node.relocation_port, "b", pair.a.context.client_tls, 10)
    try:
        await channel.pour(struct.pack("!I", len(data)) + data)
        return await channel.receive(20)
    finally:
        await channel.close()


async def offer_of(pair: Pair, **changes: Any) -> wire.Offer:
    owner = await owners.read(pair.a.store, "busybox")
    assert owner is not None
    values: dict[str, Any] = {
        "move": "0a1b2c3d",
        "source": "a",
        "domain": "busybox",
        "boot": owner.boot,
        "owner_revision": owner.revision,
        "driver": "fake",
        "spec": SPEC,
        "luggage": msgspec.Raw(b'{"started":1.0}'),
    }
    return wire.Offer(**(values | changes))


def untouched(pair: Pair, tmp_path: Path) -> None:
    assert pair.b.attacher.attached == 0
    assert pair.b.context.journal.open() == ()
    assert [path for path in (tmp_path / "b").rglob("*") if path.is_file() and "journal" in path.parts] == []


@pytest.mark.parametrize("field", ["move", "spec"])
async def test_an_offer_with_a_path_for_a_name_makes_nothing(tmp_path: Path, certificates: Path, field: str) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        path = ("move",) if field == "move" else ("spec", "uuid")
        answer = await said_to(pair, changed(await offer_of(pair), path, str(tmp_path / "pwn")))
        assert isinstance(answer, wire.Problem)
        assert answer.kind == "refused"
        untouched(pair, tmp_path)
        assert not list(tmp_path.glob("pwn*"))
        await pair.check("a")


async def test_an_offer_that_is_no_text_is_refused(
    tmp_path: Path, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        whole = msgspec.json.encode(await offer_of(pair))
        answer = await said_to(pair, whole.replace(b'"busybox"', b'"busy\xffbox"'))
        assert isinstance(answer, wire.Problem)
        assert answer.kind == "refused"
        assert not any(record.exc_info for record in caplog.records)
        assert "unexpected" not in caplog.text
        untouched(pair, tmp_path)


async def test_without_a_promise_nothing_is_made(tmp_path: Path, certificates: Path) -> None:
    """The source does not own the domain: no disk's file, no tap and no half domain may ever have been there."""
    async with two_nodes(tmp_path, certificates) as pair:
        disk = DiskSpec(vdev="xvda", target=str(tmp_path / "source.img"))
        going = CarriedDisk(
            vdev="xvda", path=disk.target, format=DiskFormat.RAW, block=False, size=1 << 20, allocated=0
        )
        spec = DomainSpec(name="other", uuid=UUID[:-1] + "6", disks=(disk,))
        folder = tmp_path / "disks"
        folder.mkdir()
        pair.b.hold.mkdir(parents=True)
        (pair.b.hold / "PREPARE").touch()  # whatever is made comes before this is over
        offer = await offer_of(pair, domain="other", spec=spec, disks=(going,), disk_dir=str(folder))
        answer = await said_to(pair, msgspec.json.encode(offer))
        assert isinstance(answer, wire.Problem)
        assert "other" in answer.message
        assert list(folder.iterdir()) == []
        assert await pair.b.driver.list() == ()
        untouched(pair, tmp_path)


async def test_a_source_does_not_offer_what_no_target_takes(tmp_path: Path, certificates: Path) -> None:
    async with two_nodes(tmp_path, certificates) as pair:
        report = await pair.a.move(pair.b, MoveSettings(with_disks=True, disk_dir="../elsewhere"))
        assert report.state is MoveState.FAILED
        assert "not an absolute path" in report.reason
        await pair.check("a")
