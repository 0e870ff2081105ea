"""How long etcd's disk takes: the metrics of a member, and how they are fetched."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from health_trees import Files, judge

from veery.cluster import metrics
from veery.health import live
from veery.health.etcd import Etcd
from veery.health.sign import Level
from veery.health.source import Source
from veery.host import tls

LIMITS = ("0.001", "0.016", "0.128", "0.256", "0.512", "1.024", "8.192")
ROW = "etcd_disk_wal_fsync_duration_seconds"


def _metrics(fast: int, slow: int) -> Files:
    """The text of a member that wrote `fast` times within 16 ms, and `slow` times within a second."""
    rows = ["# HELP etcd_disk_wal_fsync_duration_seconds The latency distributions of fsync called by WAL."]
    for limit in LIMITS:
        count = (fast if float(limit) >= 0.016 else 0) + (slow if float(limit) >= 1 else 0)
        rows.append(f'{ROW}_bucket{{le="{limit}"}} {count}')
    rows += [f'{ROW}_bucket{{le="+Inf"}} {fast + slow}', f"{ROW}_sum 1.5", f"{ROW}_count {fast + slow}", "other 7"]
    return {"etcd-metrics.txt": "\n".join(rows) + "\n"}


@pytest.mark.parametrize(
    ("fast", "slow", "level"),
    [(1000, 0, "ok"), (1000, 2, "ok"), (10, 2, "ok"), (1000, 9, "ok"), (1000, 40, "watch"), (0, 0, "ok")],
)
def test_slow_writes_of_one_reading(tmp_path: Path, fast: int, slow: int, level: str) -> None:
    assert judge(tmp_path, _metrics(fast, slow)).level == level


@pytest.mark.parametrize(
    ("readings", "level"),
    [
        (((1000, 500), (1100, 500)), "ok"),  # it was slow long ago
        (((1000, 0), (1100, 20)), "watch"),
        (((1000, 90), (100, 0)), "ok"),  # etcd has started again
        (((1000, 0), (60, 9)), "watch"),
    ],
)
def test_only_new_writes_count(tmp_path: Path, readings: tuple[tuple[int, int], ...], level: str) -> None:
    assert judge(tmp_path, *(_metrics(*each) for each in readings), at=(0, 60)).level == level


def test_a_reading_after_a_long_pause_waits_for_the_next(tmp_path: Path) -> None:
    found = judge(tmp_path, _metrics(1000, 0), _metrics(1100, 90), at=(0, 3600))
    assert (found.level, found.signs[-1].sentence) == ("ok", "not known yet")


@pytest.mark.parametrize("text", ["", "404 page not found\n", f'{ROW}_count 7\n{ROW}_bucket{{le="0.1"}} nan\n'])
def test_a_text_without_the_figures_is_unknown(tmp_path: Path, text: str) -> None:
    found = judge(tmp_path, {"etcd-metrics.txt": text})
    assert {(each.sensor, each.level) for each in found.signs} == {("etcd", Level.UNKNOWN)}


def test_large_counts_as_prometheus_prints_them(tmp_path: Path) -> None:
    rows = [f'{ROW}_bucket{{le="0.512"}} 1.234e+06', f"{ROW}_count 1.3e+06"]
    assert judge(tmp_path, {"etcd-metrics.txt": "\n".join(rows)}).level == "watch"


class _Member(http.server.BaseHTTPRequestHandler):
    """A member that shows metrics."""

    def do_GET(self) -> None:
        shown = self.path == "/metrics"
        self.send_response(200 if shown else 404)
        self.end_headers()
        self.wfile.write(_metrics(10, 0)["etcd-metrics.txt"].encode() if shown else b"no")

    def log_message(self, *words: object) -> None:
        """Print nothing."""


@pytest.fixture
def member(tmp_path: Path) -> Iterator[str]:
    """The URL of a member that asks for certificates of the cluster's CA."""
    authority = tls.make_ca("lab", epoch=time.time())
    request = tls.make_request("a")
    cert = tls.sign(authority, request.cert, name="a", addresses=["127.0.0.1"], epoch=time.time())
    tls.write_folder(tmp_path / "a", ca=authority.cert, node=tls.KeyPair(cert, request.key))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Member)
    server.socket = tls.server_context(tmp_path / "a").wrap_socket(server.socket, server_side=True)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    serving.join(60)


def test_the_metrics_are_read_with_the_nodes_certificate(tmp_path: Path, member: str) -> None:
    context = tls.client_context(tmp_path / "a")
    outputs = live.Live(tmp_path, live.run, None, {"etcd-metrics": lambda: metrics.read(member, context)})
    reading = Etcd().read(Source(tmp_path, outputs))
    assert reading is not None
    assert (reading.writes, reading.slow) == (10, 0)


def test_a_member_that_does_not_answer_gives_no_reading(tmp_path: Path, member: str) -> None:
    context = tls.client_context(tmp_path / "a")
    assert metrics.read("https://127.0.0.1:1", context) is None
    outputs = live.Live(tmp_path, live.run, None, {"etcd-metrics": lambda: None})
    assert Etcd().read(Source(tmp_path, outputs)) is None
