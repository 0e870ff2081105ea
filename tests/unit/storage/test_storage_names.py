"""Names on the storage network."""

from __future__ import annotations

import re

import pytest

from veery.errors import Refused
from veery.storage import names


@pytest.mark.parametrize("name", ["busybox", "a", "0", "web-1.data", "x" * 64])
def test_good_volume_names(name: str) -> None:
    assert names.check_volume_name(name) == name
    assert names.volume_iqn("2026-11.lab.veery", name) == f"iqn.2026-11.lab.veery:{name}"


@pytest.mark.parametrize(
    "name",
    ["", "Upper", "under_score", "a:b", "a/b", "..", ".a", "a.", "-a", "a b", "a,b", "a..b", "x" * 65, "ä", "a\n"],
)
def test_bad_volume_names(name: str) -> None:
    with pytest.raises(Refused, match="cannot be a volume's name"):
        names.check_volume_name(name)


@pytest.mark.parametrize("authority", ["", "lab.veery", "2026-13.lab.veery", "2026-11", "2026-11.Lab", "2026-11.a..b"])
def test_bad_authorities(authority: str) -> None:
    with pytest.raises(Refused, match="naming authority"):
        names.volume_iqn(authority, "busybox")


def test_credentials() -> None:
    first, second = (names.new_initiator("2026-11.lab.veery", "Test1") for _ in range(2))
    assert first.iqn == "iqn.2026-11.lab.veery:node:test1"
    assert first.user == "test1"
    assert re.fullmatch(r"[\w-]{16}", first.password)
    assert first.password != second.password
    with pytest.raises(Refused, match="initiator name"):
        names.new_initiator("2026-11.lab.veery", "test 1")
