"""Keys set in veery.toml: only those lines change, and what cannot be changed safely is refused."""

from __future__ import annotations

import tomllib

import pytest

from veery.config.amend import amended
from veery.errors import Refused

MANY = """\
# Settings of this node
state = "/var/lib/veery" # the state

[ relocation ] # moves
port = 8003
#address = ""

[storage]
pool = "/srv/pool"
[storage_like]
address = "x"
"""


def test_an_empty_file_gets_the_section() -> None:
    assert amended("", "storage", "address", "10.20.0.1") == '[storage]\naddress = "10.20.0.1"\n'


@pytest.mark.parametrize("section", ["storage", "relocation", "api"])
@pytest.mark.parametrize("end", ["\n", ""])
def test_every_other_line_stays(section: str, end: str) -> None:
    text = MANY.removesuffix("\n") + end
    result = amended(text, section, "address", "fd00::1")
    wanted = tomllib.loads(text)
    wanted.setdefault(section, {})["address"] = "fd00::1"
    assert tomllib.loads(result) == wanted
    kept = [line for line in result.splitlines() if line not in ('address = "fd00::1"', "[api]", "")]
    assert kept == [line for line in text.splitlines() if line]
    assert amended(result, section, "address", "fd00::1") == result


def test_an_empty_value_is_replaced() -> None:
    text = '[storage]\npool = "p"\naddress = "" # none yet\n[api]\naddress = ""\n'
    result = amended(text, "storage", "address", "10.0.0.1")
    assert result == '[storage]\naddress = "10.0.0.1"\npool = "p"\n[api]\naddress = ""\n'


def test_another_value_is_refused() -> None:
    with pytest.raises(Refused, match=r"storage.address is '10.0.0.9' already, not '10.0.0.1'"):
        amended('[storage]\naddress = "10.0.0.9"\n', "storage", "address", "10.0.0.1")


def test_another_value_is_replaced_where_that_is_ordered() -> None:
    text = '[storage]\naddress = "10.0.0.9" # old\npool = "p"\n[api]\naddress = "10.0.0.9"\n'
    result = amended(text, "storage", "address", "10.0.0.1", replace=True)
    assert result == '[storage]\naddress = "10.0.0.1"\npool = "p"\n[api]\naddress = "10.0.0.9"\n'


@pytest.mark.parametrize(
    "text",
    [
        'storage = { pool = "p" }\n',
        'storage.pool = "p"\n',
        'storage = "no table"\n',
        'state = """\n[storage]\n"""\n',
        "[storage\n",
    ],
)
def test_a_text_that_cannot_be_changed_safely_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        amended(text, "storage", "address", "10.0.0.1")
    assert refused.value.hint == 'set it by hand: address = "10.0.0.1" in [storage]'
