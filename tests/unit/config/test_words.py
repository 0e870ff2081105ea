"""Words that help: keys of newer Xen, suggestions, byte-order marks, quotes, processors."""

from __future__ import annotations

import pytest

from veery.config.domain import Loaded, parse_domain
from veery.config.keys import KEYS, Use, suggestion
from veery.errors import Refused

LEAST = "name='a'\nkernel='/k'\nmemory=64\n"


def parse(text: str) -> Loaded:
    return parse_domain(text, "f", ())


def refusal(text: str) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize(
    "setting",
    ["smbios=['bios_vendor=x']", "bootloader_restrict=1", "altp2m_count=2", "llc_colors=['0-3']", "nr_spis=1"],
)
def test_a_key_of_xen_4_18_to_4_21_is_kept_for_xen(setting: str) -> None:
    assert [name for name, _ in parse(LEAST + setting).spec.xl] == [setting.partition("=")[0]]


def test_no_suggestion_leads_to_the_next_refusal() -> None:
    assert refusal(LEAST + "mem=256").hint == "did you mean memory?"
    for name in KEYS:
        for wrong in (name[1:], name[:-1], name + "x"):
            if wrong not in KEYS and (found := suggestion(wrong)):
                assert KEYS[found].use is not Use.REFUSED


def test_a_byte_order_mark_is_no_part_of_the_file() -> None:
    assert parse("\ufeff" + LEAST).spec.name == "a"


@pytest.mark.parametrize("quote", ["\u201c", "\u2018", "\u00ab", "`"])
def test_a_typographic_quote_is_named(quote: str) -> None:
    error = refusal(f"name = {quote}a{quote}\n")
    assert error.message == f"f:1:8: {quote} is a typographic quote"
    assert "plain quotes" in error.hint


@pytest.mark.parametrize("value", ["0", "0-3", "0-3,^1", "all", "all,^0", "nodes:0-1", "node:1,^node:0", "^3"])
def test_processors_that_xl_takes(value: str) -> None:
    assert parse(LEAST + f"cpus='{value}'").spec.xl == (("cpus", f'"{value}"'),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"3-1"', "f:4:7: cpus: the range '3-1' ends before it begins"),
        ('"abc"', "f:4:7: cpus: 'abc' is not a processor"),
        ('"0,x"', "f:4:9: cpus: 'x' is not a processor"),
        ('["0", "2-"]', "f:4:13: cpus: '2-' is not a processor"),
        ('"99999"', "f:4:7: cpus: processor 99999 is more than"),
    ],
)
def test_processors_that_xl_refuses_have_their_column(value: str, message: str) -> None:
    assert refusal(LEAST + f"cpus={value}").message.startswith(message)


def test_one_line_for_all_keys_that_nobody_carries_out() -> None:
    (line,) = parse(LEAST + "vcpu_avail=1\nvif2=['']\nip='10.0.0.2'\n").warnings
    assert line.startswith("f:4:1: vcpu_avail, vif2, ip are ignored: only xm knew it; it has no effect in xl either; ")
    assert line.endswith("add it to extra=")


@pytest.mark.parametrize(
    "name",
    ["OVM_simple_name", "OVM_description", "OVM_high_availability", "OVM_domain_type", "OVM_os_type", "X_y", "_owner"],
)
def test_a_key_of_another_program_is_passed_over_with_a_warning(name: str) -> None:
    loaded = parse(f"{name} = 'shop'\n{LEAST}")
    assert loaded.spec == parse(LEAST).spec
    (warning,) = loaded.warnings
    assert warning == f"f:1:1: {name}: ignored, as by xm: keys of another program"


def test_many_of_them_are_one_line() -> None:
    (warning,) = parse("".join(f"OVM_x{number} = [ 'a' ]\n" for number in range(20)) + LEAST).warnings
    assert warning.startswith("f:1:1: OVM_x0, OVM_x1")
    assert "and 12 more" in warning


@pytest.mark.parametrize("name", ["Memory", "MEMORY", "Vcpus", "Memroy", "Disk"])
def test_a_key_of_ours_in_capitals_is_not_passed_over(name: str) -> None:
    assert "names are in lower case" in refusal(f"{LEAST}{name} = 1\n").hint


def test_a_word_in_capitals_is_no_value() -> None:
    assert refusal("name = Shop\n").message == "f:1:8: unexpected 'Shop' where a value was expected"
