"""The marks by which a lab's shell finds an answer on a guest's serial console."""

from __future__ import annotations

import re

from veery.lab.shell import doubled


def test_a_mark_is_found_although_a_character_was_printed_twice() -> None:
    assert re.search(doubled("12d417caz"), "done\r\n12d4177caz\r\n")
    assert re.search(doubled("aa1"), "aa1")
    assert not re.search(doubled("12d417caz"), "echo 12d417ca''z")
    assert not re.search(doubled("12d417caz"), "12d17caz"), "a lost character is not made up for"
    assert re.split(doubled("end-1"), "written-hereend-1")[0] == "written-here"
