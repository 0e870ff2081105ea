"""MACs are Xen's, and never one that is taken."""

from random import Random

from veery.network.mac import generate


class OneFirst(Random):
    """Draws the same address twice before it goes on."""

    def __init__(self) -> None:
        super().__init__(1)
        self.drawn: list[int] = []

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:  # type: ignore[override]
        self.drawn.append(start)
        return 1 if len(self.drawn) <= 6 else 2


def test_form() -> None:
    for seed in range(200):
        octets = [int(part, 16) for part in generate(Random(seed)).split(":")]
        assert octets[:3] == [0x00, 0x16, 0x3E]
        assert octets[3] < 0x80
        assert len(octets) == 6


def test_same_source_same_address() -> None:
    assert generate(Random(7)) == generate(Random(7)) != generate(Random(8))


def test_a_taken_address_is_drawn_again() -> None:
    assert generate(OneFirst()) == "00:16:3e:01:01:01"
    assert generate(OneFirst(), {"00:16:3e:01:01:01"}) == "00:16:3e:02:02:02"
