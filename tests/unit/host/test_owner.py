"""Whom programs run as: what a setting may say."""

from __future__ import annotations

import os
import pwd

import pytest

from veery.errors import Refused
from veery.host.owner import Owner, Owners, owners

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts programs as others")


def test_nothing_is_root() -> None:
    assert owners("") is None


def test_a_name_and_a_number_are_one_user_for_all() -> None:
    nobody = pwd.getpwnam("nobody")
    assert owners("nobody") == owners(str(nobody.pw_uid)) == Owners(nobody.pw_uid, 1, nobody.pw_gid)
    one = Owners(nobody.pw_uid, 1, nobody.pw_gid)
    assert one.choose(7, {nobody.pw_uid}) == Owner(nobody.pw_uid, nobody.pw_gid)
    assert owners("4000000001") == Owners(4000000001, 1, 4000000001)  # nobody's number


def test_a_range_gives_each_a_user_and_a_group_of_its_own() -> None:
    found = owners("200000-200002")
    assert found == Owners(200000, 3, None)
    assert found.choose(1, ()) == Owner(200001, 200001)
    taken: set[int] = set()
    for number in (5, 5, 5):
        taken.add(found.choose(number, taken).uid)
    assert taken == {200000, 200001, 200002}
    with pytest.raises(Refused, match="all 3 user ids are taken"):
        found.choose(5, taken)


@pytest.mark.parametrize("text", ["0", "0-5", "9-5", "5000000000", "root", "no-such-user", "1-2-3", "-1", "a b"])
def test_root_and_what_is_no_user_are_refused(text: str) -> None:
    with pytest.raises(Refused) as told:
        owners(text)
    assert told.value.hint
