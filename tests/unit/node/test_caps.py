"""How many connections a listener holds."""

from __future__ import annotations

import pytest

from veery.host.caps import Caps


def test_strangers_have_a_share_and_members_the_rest() -> None:
    caps = Caps(total=6, strangers=4, each=2)
    first, second = caps.enter("10.0.0.1", known=False), caps.enter("10.0.0.1", known=False)
    assert first is not None
    assert second is not None
    assert caps.enter("10.0.0.1", known=False) is None, "one address has its two"
    assert [caps.enter(f"10.0.0.{number}", known=False) is not None for number in (2, 3, 4)] == [True, True, False]
    assert [caps.enter("10.0.0.9", known=True) is not None for _ in range(3)] == [True, True, False]
    assert caps.count == 6
    first.leave()
    first.leave()
    assert caps.count == 5
    second.vouch()  # it proved to be a node: a stranger may come in its place
    assert caps.enter("10.0.0.1", known=False) is not None
    second.leave()
    second.vouch()
    assert caps.count == 5


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("fd00::1", "fd00::2", True),
        ("fd00::1", "fd00:0:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("user 1", "user 2", False),
    ],
)
def test_what_one_machine_can_have_for_itself_is_one_address(one: str, other: str, same: bool) -> None:
    caps = Caps(total=9, strangers=9, each=1)
    assert caps.enter(one, known=False) is not None
    assert (caps.enter(other, known=False) is None) is same
