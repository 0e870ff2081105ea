"""rate= as calls of tc."""

from __future__ import annotations

from veery.config import vif
from veery.network.limit import BURST_MIN_BYTES, Limit, limit_of, orders


def limit(rate: str) -> Limit | None:
    """What `rate=RATE` asks for."""
    fields = vif.read([f"rate={rate}"]).fields
    return limit_of(fields.per_interval, fields.interval)


def test_bits_bytes_and_intervals() -> None:
    assert limit("1Mb/s") == Limit(125_000, BURST_MIN_BYTES)
    assert limit("10MB/s@50ms") == Limit(10_000_000, 500_000)
    assert limit("1GB/s@1s") == Limit(1_000_000_000, 1_000_000_000)


def test_no_rate_is_no_limit() -> None:
    assert limit_of(0, 50_000) is None
    assert limit_of(100, 0) is None


def test_the_calls_name_both_directions() -> None:
    to_guest, ingress, police = (" ".join(call) for call in orders("vif1.0", Limit(125_000, 70_000)))
    assert "dev vif1.0 root tbf rate 125000bps burst 70000b" in to_guest
    assert ingress == "tc qdisc replace dev vif1.0 ingress"
    assert "police rate 125000bps burst 70000b" in police
    assert police.endswith("drop flowid :1")
