"""The balancer's bench: hbal's format and its answer, and clusters that both planners can read."""

from __future__ import annotations

import pytest
from bench import balance, hbal

from veery.balance import planner
from veery.balance.file import parse
from veery.balance.model import Limits
from veery.errors import Failed

TOLD = """Loaded 3 nodes, 5 instances
Initial coefficients: overall 2.81003773
   Field                         Value Weight
   free_mem_cv              0.21245915  x0.50
Trying to minimize the CV...
    1. b n1    => n3      0.34371461 a=fa:n3
    2. d n1    => n3      0.22586348 a=fa:n3
Final coefficients:   overall 0.22586348
Solution length=2
"""  # printed by hbal 3.0.2


def test_an_answer_of_hbal() -> None:
    assert hbal.read(TOLD) == hbal.Answer((("b", "n3"), ("d", "n3")), 2.81003773)
    with pytest.raises(Failed):
        hbal.read("Error: no such file")


def test_hbals_format() -> None:
    cluster = parse(
        {
            "nodes": [{"name": name, "memory": 8192, "reserved": 1024, "cores": 8} for name in ("n1", "n2")],
            "groups": [{"name": "g"}],
            "domains": [{"name": "a", "node": "n1", "memory": 1024, "vcpus": 2, "load": 2, "groups": ["g"]}],
        }
    )
    lines = hbal.text(cluster, {"a": "n2"}).splitlines()
    assert lines[2].startswith("n1|8192|1024|7168|0|0|8|M|")
    assert lines[3].startswith("n2|8192|1024|6144|0|0|8|N|")
    assert lines[5] == "a|1024|0|2|running|Y|n2||ext|apart:g|0"
    assert lines[7] == "htools:iextags:apart"
    assert hbal.loads(cluster) == "a 0.250000 0 0 0\n"


@pytest.mark.parametrize("seed", range(8))
def test_a_generated_cluster_fits_and_is_the_same_again(seed: int) -> None:
    cluster = balance.generate(seed)
    assert cluster == balance.generate(seed)
    assert 4 <= len(cluster.nodes) <= 100
    assert hbal.text(cluster, {name: each.node for name, each in cluster.domains.items()})
    assert planner.plan(cluster, Limits(moves=1)).before.total > 0
