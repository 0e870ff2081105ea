"""xl's dry runs and lists, byte for byte as the real xl 4.17 was recorded (tests/data/xl/4.17)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veery.config import xljson
from veery.config.domain import parse_domain

RECORDED = Path(__file__).parents[2] / "data/xl/4.17"


@pytest.mark.parametrize(
    ("name", "dry_run", "rows"),
    [
        ("block-attach", xljson.dry_run_disk, 100),
        ("block-attach-random", xljson.dry_run_disk, 400),
        ("network-attach", xljson.dry_run_vif, 90),
        ("network-attach-random", xljson.dry_run_vif, 250),
    ],
)
def test_dry_runs_as_recorded(name: str, dry_run: Callable[[list[str]], xljson.Outcome], rows: int) -> None:
    recorded = json.loads((RECORDED / f"{name}.json").read_text())
    assert len(recorded) >= rows
    for row in recorded:
        assert dry_run(row["arguments"]) == (row["exit"], row["stdout"], row["stderr"]), row["arguments"]


def test_create_dry_runs_as_recorded() -> None:
    recorded = json.loads((RECORDED / "create-dry-run.json").read_text())
    assert len(recorded) > 10
    for row in recorded:
        loaded = parse_domain(row["file"], "domain.cfg")
        assert xljson.print_config(loaded.spec, loaded.given) == (row["stdout"], ())


def test_keys_for_xen_alone_are_shown_as_xl_does() -> None:
    recorded = json.loads((RECORDED / "create-keys.json").read_text())
    assert len(recorded) > 12
    for row in recorded:
        loaded = parse_domain(row["file"], "domain.cfg")
        assert xljson.print_config(loaded.spec, loaded.given) == (row["stdout"], ()), row["file"]


def test_our_own_key_and_the_manual_s_flag() -> None:
    """`volume` is ours; `trusted` is in the manual page, and in xl from 4.19 on."""
    code, out, err = xljson.dry_run_disk(["volume=busybox,xvda,r,trusted"])
    assert (code, err) == (0, "")
    assert out == (
        'disk: {\n    "volume": "busybox",\n    "vdev": "xvda",\n    "format": "raw",\n    "trusted": "True"\n}\n\n'
    )


def test_arguments_need_not_be_utf8() -> None:
    code, out, _ = xljson.dry_run_disk(["/\udcff,raw,xvda"])
    assert code == 0
    assert '"pdev_path": "/\udcff"' in out


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], min_codepoint=1)), max_size=3))
def test_any_arguments_give_an_exit_code(arguments: list[str]) -> None:
    for dry_run, name in ((xljson.dry_run_disk, "disk: "), (xljson.dry_run_vif, "vif: ")):
        code, out, err = dry_run(arguments)
        assert code in (0, 1, 2)
        if code == 0:
            assert isinstance(json.loads(out.removeprefix(name)), dict)
        else:
            assert err


def test_a_running_domain_as_in_list_l() -> None:
    text = (
        'name="bb"\nuuid="6a0f4c1e-5f0e-4a58-9a44-3d1d2c3b4a59"\nmemory=128\nvcpus=1\nkernel="/k"\nvif=["bridge=b"]\n'
    )
    spec = parse_domain(text, "f").spec
    printed = xljson.print_list([xljson.domain_json(spec, 3)])
    assert printed.startswith('[\n    {\n        "domid": 3,\n        "config": {\n            "c_info": {\n')
    assert printed.endswith("\n    }\n]\n\n")
    (found,) = json.loads(printed)
    config: dict[str, Any] = found["config"]
    assert list(found) == ["domid", "config"]
    assert list(config) == ["c_info", "b_info", "nics", "on_reboot", "on_soft_reset"]
    assert config["c_info"]["name"] == "bb"
    assert config["b_info"]["target_memkb"] == config["b_info"]["max_memkb"] == 131072
    assert config["nics"] == [{"devid": 0, "bridge": "b", "nictype": "vif"}]
    assert xljson.print_list([]) == "[\n\n]\n\n"


values = st.recursive(
    st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_pretty_is_json(value: Any) -> None:
    assert json.loads(xljson.pretty(value)) == value
