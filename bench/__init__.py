"""The benchmarks: `python -m bench` (docs/bench.md)."""
