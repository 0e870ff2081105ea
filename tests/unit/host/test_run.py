"""A program that is not there is told from one that fails."""

from __future__ import annotations

import pytest

from veery.errors import Failed, Refused
from veery.host.run import NotInstalled, run

pytestmark = pytest.mark.asyncio
LOST = "no-such-program-of-ours"


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(NotInstalled, match=f"{LOST} is not installed") as told:
        await run([LOST], deadline=20)
    assert isinstance(told.value, Refused)
    assert LOST in told.value.hint


@pytest.mark.parametrize("wrapper", [("env",), ("nsenter", "--net=/proc/self/ns/net", "--"), ("timeout", "5")])
async def test_a_program_that_another_one_does_not_find(wrapper: tuple[str, ...]) -> None:
    with pytest.raises(NotInstalled, match=f"{LOST} is not installed"):
        await run([*wrapper, LOST, "word"], deadline=20)


async def test_another_failure() -> None:
    with pytest.raises(Failed, match="sh failed with 3: said"):
        await run(["sh", "-c", "echo said >&2; exit 3"], deadline=20)


async def test_the_status_itself_is_told_where_it_is_asked_for() -> None:
    assert (await run(["env", LOST], deadline=20, check=False)).code == 127
