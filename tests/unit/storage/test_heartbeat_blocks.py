"""The blocks of heartbeats."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from veery.storage.heartbeat import BLOCK_BYTES, SLOTS, HeartbeatBlock, HeartbeatFile, decode, encode, slot

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=63)


@given(NAMES, st.integers(0, 2**64 - 1), st.booleans())
def test_a_block_says_what_was_written(node: str, number: int, stopped: bool) -> None:
    block = encode(HeartbeatBlock(node, number, stopped))
    assert len(block) == BLOCK_BYTES
    assert decode(block) == HeartbeatBlock(node, number, stopped)


@given(st.binary(max_size=BLOCK_BYTES), st.integers(0, 79))
def test_what_is_torn_or_empty_says_nothing(noise: bytes, place: int) -> None:
    assert decode(noise) is None
    block = bytearray(encode(HeartbeatBlock("test1", 7)))
    block[place] ^= 0x40
    assert decode(bytes(block)) is None


def test_neighbours_have_blocks_of_their_own() -> None:
    addresses = [f"172.16.{one}.{two}" for one in range(16) for two in range(256)]
    assert len({slot(address) for address in addresses}) == len(addresses)
    assert all(0 <= slot(address) < SLOTS for address in ("255.255.255.255", "0.0.0.1", "fd00::1", "fe80::ffff:ffff"))


def test_the_file_is_sparse_and_made_once(tmp_path: Path) -> None:
    file = HeartbeatFile(tmp_path / "state" / "heartbeats")
    assert file.read(5) is None
    file.make()
    assert file.path.stat().st_size == file.size
    assert file.path.stat().st_blocks < 64
    with file.path.open("r+b") as raw:
        raw.seek(5 * BLOCK_BYTES)
        raw.write(encode(HeartbeatBlock("test1", 1)))
    file.make()
    assert file.read(5) == HeartbeatBlock("test1", 1)
    assert file.read(6) is None
