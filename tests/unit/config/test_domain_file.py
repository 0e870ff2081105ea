"""Whole domain files: the seed's, every key, errors with their place, and back to a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veery.config.check import check_name
from veery.config.domain import Loaded, find_domain_file, load_domain, parse_domain, render_domain
from veery.config.keys import KEYS, Kind, Use
from veery.errors import Refused
from veery.model.domain import DiskSpec, DomainSpec, DomainType, OnEvent, VifSpec

DATA = Path(__file__).parents[2] / "data/xl"
LEAST = "name='a'\nkernel='/k'\nmemory=64\n"


def parse(text: str, *overrides: str) -> Loaded:
    return parse_domain(text, "f", overrides)


def refusal(text: str, *overrides: str) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(text, *overrides)
    return caught.value


def test_the_article_s_file_as_it_stands() -> None:
    loaded = load_domain(DATA / "busybox")
    assert loaded.spec == DomainSpec(
        name="busybox",
        kernel="/boot/vmlinuz-2.6.32-504.el6.x86_64",
        ramdisk="/boot/initramfs-2.6.32-504.el6.x86_64.img",
        cmdline="root=/dev/xvda ro selinux=0 init=/bin/sh",
        memory=512,
        vcpus=1,
        disks=(DiskSpec(vdev="xvda", target="/scsistore/busybox.img"),),
        vifs=(VifSpec(bridge="xenbr0"),),
        on_poweroff=OnEvent.DESTROY,
        on_reboot=OnEvent.DESTROY,
        on_crash=OnEvent.DESTROY,
    )
    (warning,) = loaded.warnings
    assert warning.startswith(f"{DATA / 'busybox'}:12:1: on_shutdown:")


def test_defaults_are_xl_s() -> None:
    loaded = parse("name='a'\nkernel='/k'\n")
    assert loaded.spec == DomainSpec(name="a", kernel="/k", memory=128)
    assert loaded.warnings == ("f:1:1: memory is not given: the domain gets 128 MiB",)


def test_overrides() -> None:
    spec = parse(LEAST + "extra='x'", "memory=256", "name=other", "extra+=' y'", "disk=['volume=v,xvda,w']").spec
    assert (spec.memory, spec.name, spec.cmdline) == (256, "other", "x y")
    assert spec.disks == (DiskSpec(vdev="xvda", volume="v"),)
    assert refusal(LEAST, "memmory=3").message == "command line:1:1: unknown key 'memmory'"


@pytest.mark.parametrize(
    ("text", "cmdline", "warnings"),
    [
        ("root='/dev/xvda ro'\nextra='4'", "root=/dev/xvda ro 4", 0),
        ("root='/dev/xvda'", "root=/dev/xvda", 0),
        ("extra='quiet'", "quiet", 0),
        ("cmdline='c'\nroot='r'\nextra='e'", "c", 2),
        ("root=''\nextra=''", "root= ", 0),
        ("", "", 0),
    ],
)
def test_the_command_line_is_joined_as_xl_does(text: str, cmdline: str, warnings: int) -> None:
    loaded = parse(LEAST + text)
    assert loaded.spec.cmdline == cmdline
    assert len(loaded.warnings) == warnings


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", DomainType.PV),
        ("type='pvh'", DomainType.PVH),
        ("builder='hvm'", DomainType.HVM),
        ("builder='linux'", DomainType.PV),
        ("type='hvm'\nbuilder='hvm'", DomainType.HVM),
    ],
)
def test_types(text: str, kind: DomainType) -> None:
    assert parse(LEAST + text).spec.type is kind


def test_hvmloader_is_no_kernel() -> None:
    loaded = parse("name='a'\nmemory=64\ntype='hvm'\nkernel='/usr/lib/xen/boot/hvmloader'\n")
    assert loaded.spec.kernel == ""
    assert "hvmloader is ignored" in loaded.warnings[0]


def test_numbers_are_c_s() -> None:
    spec = parse("name='a'\nkernel='/k'\nmemory=0x40\nmaxmem=\"0200\"\nvcpus='2'\nmaxvcpus=3").spec
    assert (spec.memory, spec.maxmem, spec.vcpus, spec.maxvcpus) == (64, 128, 2, 3)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("kernel='/k'", "f:1:1: name is missing", 'name = "busybox"'),
        ("name='a'\nmemory=1", "f:1:1: kernel is missing", "kernel ="),
        (LEAST + "name='a b'", "f:4:6: 'a b' is not a valid domain name", "letters"),
        (LEAST + "name='12'", "f:4:6: the name 12 reads like a domid", "letter"),
        (LEAST + "name='Domain-0'", "f:4:6: the name Domain-0", "another"),
        (LEAST + "memroy=1", "f:4:1: unknown key 'memroy'", "did you mean memory?"),
        (LEAST + "memory='512M'", "f:4:8: memory must be a number, not '512M'", "MiB"),
        (LEAST + "memory=0", "f:4:8: memory must be from 1 to", "MiB"),
        (LEAST + "memory=[1]", "f:4:8: memory must be a number, not a list", "[ ]"),
        (LEAST + "memory+=1", "f:4:9: += cannot add to the number memory", "MiB"),
        (LEAST + "memory=99999999999999999999999999999999999999999999999999", "f:4:8: memory must be a number", "MiB"),
        (LEAST + "maxmem=63", "f:4:8: maxmem 63 is less than memory 64", "raise maxmem"),
        (LEAST + "vcpus=2\nmaxvcpus=1", "f:5:10: maxvcpus 1 is less than vcpus 2", "raise maxvcpus"),
        (LEAST + "uuid='x'", "f:4:6: 'x' is not a UUID", "uuidgen"),
        (LEAST + "type='kvm'", "f:4:6: 'kvm' is not a domain type", "pv, pvh and hvm"),
        (LEAST + "type='pv'\nbuilder='hvm'", "f:5:9: builder 'hvm' contradicts type 'pv'", "remove builder"),
        (LEAST + "on_crash='explode'", "f:4:10: 'explode' is not an action for on_crash", "coredump-destroy"),
        (LEAST + "disk='/a,raw,xvda'", "f:4:6: disk must be a [ list ]", "disk = ["),
        (LEAST + "disk=[ '/a,raw,xvda,x' ]", "f:4:21: unknown value for access: 'x'", "r or w"),
        (LEAST + "disk=[ '/a,raw,xvda', '/b,raw,d0p0' ]", "f:4:23: disk d0p0 appears twice", "xvdb"),
        (LEAST + "disk=[ ['/a'] ]", "f:4:8: disk cannot contain a list", "disk = ["),
        (LEAST + "vif=[ 'brige=x' ]", "f:4:7: unknown key 'brige=x'", "did you mean bridge?"),
        (
            LEAST + "vif=[ 'mac=00:16:3e:0:0:1', 'mac=00:16:3e:00:00:01' ]",
            "f:4:29: mac 00:16:3e:00:00:01 appears twice",
            "or none",
        ),
        (LEAST + "pci=['00:1f.0']", "f:4:1: pci is not supported: it binds the domain to one machine", "remove it"),
        (LEAST + "nomigrate=1", "f:4:1: nomigrate is not supported", "remove it"),
        (LEAST + "firmware='pvgrub64'", "f:4:1: firmware is not supported", "kernel="),
        (LEAST + "kernel='/a\\nb'", "f:4:8: '\\n' is not allowed here", "remove it"),
        (LEAST + "hap='yes'", "f:4:5: hap must be a number, not 'yes'", "hap = 1"),
    ],
)
def test_an_error_names_its_place_and_what_to_do(text: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert error.message.startswith(message)
    assert hint in error.hint
    assert "\n" not in error.message


def test_keys_that_only_xen_heeds_are_kept() -> None:
    loaded = parse(LEAST + "cpus = [ '0-3', \"4\" ]\ncpu_weight=0x200\nvga='std\\n'\nvfb=[]")
    assert loaded.spec.xl == (("cpus", '[ "0-3", "4" ]'), ("cpu_weight", "0x200"), ("vga", '"std\\n"'), ("vfb", "[ ]"))
    assert loaded.warnings == ()  # the node warns, where its driver is not Xen's
    assert parse(render_domain(loaded.spec)).spec == loaded.spec
    assert parse("name='a'\nmemory=64\ntype='hvm'\nfirmware='uefi'").spec.xl == (("firmware", '"uefi"'),)


def test_every_key_is_admitted_or_refused_with_a_reason() -> None:
    samples = {Kind.NUMBER: "1", Kind.FLAG: "1", Kind.ITEMS: "['x']", Kind.TEXT_OR_ITEMS: "['x']"}
    for name, key in KEYS.items():
        value = "['0']" if name in ("cpus", "cpus_soft") else samples.get(key.kind, "'x'")
        text = LEAST + f"{name}={value}"
        if key.use is Use.REFUSED:
            error = refusal(text)
            assert key.why in error.message
            assert error.hint == key.instead != ""
            empty = {Kind.FLAG: "0", Kind.ITEMS: "[]"}.get(key.kind, "''")
            assert parse(LEAST + f"{name}={empty}").warnings == ()
        elif key.use is Use.IGNORED:
            assert len(parse(text).warnings) == 1


def test_a_setting_made_twice_is_told() -> None:
    assert parse(LEAST + "memory=128").warnings == ("f:3:1: memory is set again below; the last value applies",)


def test_files(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (there / "busybox").write_text(LEAST)
    (here / "busybox").mkdir()
    assert find_domain_file("busybox", [here, there]) == there / "busybox"
    assert find_domain_file(str(there / "busybox"), []) == there / "busybox"
    assert find_domain_file("/dev/null") == Path("/dev/null")
    for name, hint in (("busibox", "did you mean busybox?"), ("nothing", "give the path"), ("./x", "give the path")):
        with pytest.raises(Refused) as caught:
            find_domain_file(name, [here, there])
        assert caught.value.hint.startswith(hint)
    assert load_domain(there / "busybox").spec.name == "a"
    assert load_domain(Path("/dev/null"), ["name=n", "kernel=/k", "memory=1"]).spec.name == "n"
    (there / "large").write_bytes(b"\n" * ((1 << 20) + 1))
    (there / "latin").write_bytes(b"name='\xe9'\n")
    for name, message in (("missing", "No such file"), ("large", "larger than"), ("latin", ":1:7: this is not UTF-8")):
        with pytest.raises(Refused, match=message):
            load_domain(there / name)
    with pytest.raises(Refused, match="Is a directory"):
        load_domain(here)


@pytest.mark.parametrize(
    "name", ["", "-a", ".", "..", "a/b", "a b", "é", "7", "x" * 101, "0f0e0d0c-0102-0304-0506-0708090a0b0c"]
)
def test_names_that_no_domain_has(name: str) -> None:
    with pytest.raises(Refused):
        check_name(name)


text = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), max_size=20)
paths = st.text("ab/.-é \"\\'", min_size=1, max_size=20)
specs = st.builds(
    DomainSpec,
    name=st.from_regex(r"[a-z][a-z0-9.:+_-]{0,10}", fullmatch=True),
    uuid=st.just("") | st.uuids().map(str),
    type=st.sampled_from([DomainType.PV, DomainType.PVH]),
    kernel=paths,
    ramdisk=st.just("") | paths,
    cmdline=text,
    memory=st.integers(1, 4096),
    maxmem=st.just(0) | st.integers(4096, 9999),
    vcpus=st.integers(1, 8),
    maxvcpus=st.just(0) | st.integers(8, 16),
    disks=st.lists(
        st.builds(
            DiskSpec, vdev=st.sampled_from(["xvda", "xvdb", "hdc", "sdd"]), target=paths, readwrite=st.booleans()
        ),
        max_size=3,
        unique_by=lambda disk: disk.vdev,
    ).map(tuple),
    vifs=st.lists(
        st.builds(
            VifSpec,
            bridge=st.sampled_from(["", "xenbr0"]),
            mac=st.integers(0, 0xFFFFFF).map(lambda n: f"00:16:3e:{n >> 16:02x}:{n >> 8 & 255:02x}:{n & 255:02x}"),
        ),
        max_size=3,
        unique_by=lambda vif: vif.mac,
    ).map(tuple),
    on_poweroff=st.sampled_from(OnEvent),
    on_reboot=st.sampled_from(OnEvent),
    on_crash=st.sampled_from(OnEvent),
    on_watchdog=st.sampled_from(OnEvent),
    on_soft_reset=st.sampled_from(OnEvent),
    xl=st.sampled_from([(), (("cpus", '"0-3"'), ("cpu_weight", "512"))]),
)


@given(specs)
def test_render_is_read_back(spec: DomainSpec) -> None:
    assert parse(render_domain(spec)).spec == spec


lines = st.lists(
    st.sampled_from([f"{name}=" for name in KEYS] + ["name+=", "nonsense="])
    | st.sampled_from(
        ["1", "'x'", "[]", "['x']", "[['x']]", "'xvda'", "['/a,raw,xvda']", "['bridge=x']", "\n", ";", ","]
    ),
    max_size=12,
).map("".join)


@given(st.text() | lines | lines.map(lambda more: LEAST + more), st.lists(st.text() | lines, max_size=2))
def test_any_text_is_a_domain_or_refused(content: str, overrides: list[str]) -> None:
    try:
        loaded = parse_domain(content, "f", overrides)
    except Refused as error:
        assert error.message
    else:
        assert parse(render_domain(loaded.spec)).spec == loaded.spec


@given(content=st.binary())
def test_any_bytes_are_a_domain_or_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(content)
    with pytest.raises(Refused, match=str(path)):
        load_domain(path)


def test_interfaces_without_a_filter() -> None:
    """The key is a line of its own, because xl refuses an unknown key in an interface and passes over one beside it."""
    spec = parse(LEAST + "vif=['bridge=a', 'bridge=b', '']\nvif_unfiltered=[ 0, '2' ]").spec
    assert [vif.filtered for vif in spec.vifs] == [False, True, False]
    text = render_domain(spec)
    assert "vif_unfiltered = [ 0, 2 ]\n" in text
    assert "filter" not in text.replace("vif_unfiltered", "")
    assert parse(text).spec == spec
    for bad in ("[3]", "['-1']", "['all']", "['1x']", "[99999]", "[[0]]", "0"):
        refusal(LEAST + f"vif=['','','']\nvif_unfiltered={bad}")
    assert "vif= has no interface '0'" in refusal(LEAST + "vif_unfiltered=[0]").message
