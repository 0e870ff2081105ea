"""Whom programs run as: what a setting may say."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path

import pytest

from veery.errors import Refused
from veery.host.owner import Owner, Owners, has_account, owners
from veery.host.process import Process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts programs as others")


def test_nothing_is_root() -> None:
    assert owners("") is None


def test_auto_is_the_user_of_the_package_where_there_is_one() -> None:
    nobody = pwd.getpwnam("nobody")
    assert owners("auto", account="nobody") == Owners(nobody.pw_uid, 1, nobody.pw_gid)
    assert owners("auto", account="no-such-user") is None
    assert not has_account("root")


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


def test_a_program_runs_as_its_owner_and_nothing_more(tmp_path: Path) -> None:
    """Also in a folder that only root can reach."""
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed" / "own").mkdir()
    Process.spawn(
        ["sh", "-c", "id -u; id -g; id -G; pwd -P >/dev/null; ls /proc/self/cwd/ >/dev/null && echo in"],
        log_file=tmp_path / "log",
        cwd=tmp_path / "closed" / "own",
        owner=Owner(200001, 200002),
    )
    for _ in range(600):
        if "in" in (told := (tmp_path / "log").read_text().split()):
            break
        time.sleep(0.1)
    assert told[:3] == ["200001", "200002", "200002"]
    assert told[-1] == "in"


def test_a_program_closed_to_its_owner_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    with pytest.raises(Refused, match="cannot be started by user 200001"):
        Process.spawn([program], log_file=tmp_path / "log", owner=Owner(200001, 200001))


@pytest.mark.parametrize("text", ["0", "0-5", "9-5", "5000000000", "root", "no-such-user", "1-2-3", "-1", "a b"])
def test_root_and_what_is_no_user_are_refused(text: str) -> None:
    with pytest.raises(Refused) as told:
        owners(text)
    assert told.value.hint
