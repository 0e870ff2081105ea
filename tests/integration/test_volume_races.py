"""A domain claims its name while its volume is about to be deleted or filled: it must not lose its disk."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from storage_parts import TEST1, Storage, qemu_io, storage

from veery.errors import Refused
from veery.model.units import MIB


class ClaimedMeanwhile(dict[str, list[str]]):
    """Nobody uses the volume when first asked; from then on a domain does."""

    asked = 0

    def get(self, name: str, default: object = None) -> list[str]:  # type: ignore[override]
        self.asked += 1
        return [] if self.asked == 1 else ["busybox on test1"]


@pytest.fixture
async def node() -> AsyncIterator[Storage]:
    async with storage(TEST1) as made:
        yield made


@pytest.mark.parametrize("order", ["delete", "fill"])
async def test_who_claims_a_volume_in_between_keeps_it(node: Storage, order: str) -> None:
    volume = await node.volumes.create("disk", 4 * MIB)
    assert (await qemu_io(volume, TEST1, "write -q -P 7 0 64k")).code == 0
    node.records.used = ClaimedMeanwhile()
    with pytest.raises(Refused, match="busybox on test1"):
        if order == "delete":
            await node.volumes.delete("disk")
        else:
            async with node.volumes.filling("disk"):
                raise AssertionError("it was given out")
    assert node.records.used.asked == 2
    assert await node.volumes.get("disk") == volume
    read = await qemu_io(volume, TEST1, "read -P 7 0 64k")
    assert read.code == 0 and "Pattern verification failed" not in read.out


async def test_who_starts_after_the_mark_sees_it(node: Storage) -> None:
    """The other half of the proof: the mark stands when users are asked for the second time."""
    await node.volumes.create("disk", 4 * MIB)
    marks: list[bool] = []
    records = node.records

    class Looking(dict[str, list[str]]):
        def get(self, name: str, default: object = None) -> list[str]:  # type: ignore[override]
            marks.append(records.kept[name].ready)
            return []

    records.used = Looking()
    await node.volumes.delete("disk")
    assert marks == [True, False]
    assert await node.volumes.targets() == ()
