"""The grammar of domain files: what xl accepts, what xl refuses, and where an error points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veery.config import xlcfg
from veery.config.xlcfg import Atom, Items, Value
from veery.errors import Refused

RECORDED = Path(__file__).parents[2] / "data/xl/4.17"


def plain(value: Value) -> object:
    return value.text if isinstance(value, Atom) else [plain(item) for item in value.values]


def settings(text: str, *overrides: str) -> dict[str, object]:
    return {name: plain(setting.value) for name, setting in xlcfg.read(text, "f", overrides).settings.items()}


def refusal(text: str) -> Refused:
    with pytest.raises(Refused) as caught:
        xlcfg.read(text, "f")
    return caught.value


def test_agrees_with_the_recorded_xl_on_what_is_a_domain_file() -> None:
    rows = json.loads((RECORDED / "grammar.json").read_text())
    assert len(rows) > 200
    for row in rows:
        try:
            xlcfg.read(row["file"], "f")
            refused = False
        except Refused:
            refused = True
        assert refused == row["refused"], row["file"]


def test_settings_strings_numbers_and_lists() -> None:
    text = "# a comment\nname = 'a b' ; memory=0x10\n\nvif = [ 'x', # one\n \"y\",\n 3, [ 'z' ], ]\n"
    text += "empty=[]\nlast.key=1 # end"
    assert settings(text) == {
        "name": "a b",
        "memory": "0x10",
        "vif": ["x", "y", "3", ["z"]],
        "empty": [],
        "last.key": "1",
    }


def test_escapes_mean_their_characters() -> None:
    assert settings(r"""a = "\"\'\\\a\b\f\n\r\t\v\x41\101\7" """) == {"a": "\"'\\\a\b\f\n\r\t\vAA\7"}
    assert settings(r"""a = '\'"'""") == {"a": "'\""}


def test_the_last_setting_counts_and_the_earlier_ones_are_told() -> None:
    config = xlcfg.read("a=1\nb=2\na=3\n", "f")
    assert plain(config.settings["a"].value) == "3"
    assert [str(setting.at) for setting in config.repeated] == ["f:1:1"]


def test_plus_joins_strings_and_lists() -> None:
    assert settings("a='x'\na+='y'\nb=['p']\nb+=['q','r']\nc+='alone'\n") == {
        "a": "xy",
        "b": ["p", "q", "r"],
        "c": "alone",
    }
    assert refusal("a='x'\na+=['y']\n").message.startswith("f:2:1: += cannot join")


def test_overrides_come_last() -> None:
    assert settings("a=1\nb='x'\n", "a=2", "b+='y'", "c=[ 'z' ]") == {"a": "2", "b": "xy", "c": ["z"]}
    assert settings("name='a'", "name=other", "kernel=/boot/x y") == {"name": "other", "kernel": "/boot/x y"}


@pytest.mark.parametrize("override", ["memory", "", "a=1\nb=2", "=x", "A=1", "a=[", "a='x", "a=1 b=2", "a=x\ny"])
def test_bad_overrides(override: str) -> None:
    with pytest.raises(Refused) as caught:
        xlcfg.read("a=1", "f", [override])
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a = 'x\n", "f:1:5: this string is not closed on its line", "close it with '"),
        ("ok = 1\n a = b\n", "f:2:6: unexpected 'b' where a value was expected", "put it in quotes: 'b'"),
        ("a = [ 1, 2\n", "f:1:5: this list is not closed", "end it with ]"),
        ("a = [ 1 2 ]\n", "f:1:9: unexpected '2' in a list", "comma"),
        ("a = 1 b = 2\n", "f:1:7: unexpected 'b' after this setting", "line end missing"),
        ("Memory = 1\n", "f:1:1: unexpected 'Memory'", "lower case: memory"),
        ("a = True\n", "f:1:5: True is not a value here", "write 1 for true"),
        ("a = 1\r\n", "f:1:6: a carriage return", "DOS"),
        ("import os\n", "f:1:8: unexpected 'os' after 'import'", "not programs"),
        ("a = str(1)\n", "f:1:8: unexpected '('", "not programs"),
        ("a = b[1]\n", "f:1:5: unexpected 'b' where a value was expected", "not programs"),
        ("a = 'x' + 'y'\n", "f:1:9: unexpected '+'", "not programs"),
        ("a =\n", "f:1:4: the line ends where a value was expected", "'string'"),
        ("a", "f:1:2: the file ends after 'a'", "write a = VALUE"),
        (r"a = 'b\q'", r"f:1:7: unknown escape '\\q'", "backslash"),
        (r"a = '\x00'", "f:1:6: a string cannot contain", "remove it"),
        ("a = '\ud800'", "f:1:6: this is not UTF-8", "UTF-8"),
        ("a = " + "[" * 100, "f:1:21: lists are nested too deep", "three"),
    ],
)
def test_an_error_names_its_place_and_what_to_do(text: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert error.message.startswith(message)
    assert hint in error.message + error.hint
    assert "\n" not in error.message
    assert error.hint


def test_an_offset_within_a_string_is_a_column() -> None:
    value = xlcfg.read("a = [ 'abc',\n  'd\\n' ]", "f").settings["a"].value
    assert isinstance(value, Items)
    first, second = value.values
    assert isinstance(first, Atom)
    assert isinstance(second, Atom)
    assert str(first.inside(2)) == "f:1:10"
    assert str(second.inside(1)) == "f:2:3"


@given(st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"])))
def test_quote_is_read_back(text: str) -> None:
    assert settings(f"a={xlcfg.quote(text)}") == {"a": text}


@given(st.text() | st.text("ab='\"\\[],;#\n +1\x00(\ud800", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        xlcfg.read(text, "f")
    except Refused as error:
        assert error.message.startswith("f:")
        assert error.hint
