"""What a storage node remembers of what its tgtd serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.errors import Failed
from veery.model.volume import Initiator
from veery.storage.plan import Wanted
from veery.storage.served import Served, Serving

ONE = Initiator(node="test1", iqn="iqn.x:node:test1", user="test1", password="secret-1")
TWO = Initiator(node="test2", iqn="iqn.x:node:test2", user="test2", password="secret-2")


def target(tid: int) -> Wanted:
    return Wanted(tid=tid, iqn=f"iqn.x:v{tid}", path=f"/v{tid}", size=1 << 20, sync=True, admitted=(ONE, TWO))


SERVING = Serving(targets=(target(1), target(2)), initiators=(ONE, TWO))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "served.json"


def test_it_is_found_again_and_only_its_owner_reads_it(file: Path) -> None:
    assert Served(file).known is None
    Served(file).keep(SERVING)
    assert Served(file).known == SERVING
    assert file.stat().st_mode & 0o777 == 0o600


def test_whom_a_fence_denies_is_not_found_again(file: Path) -> None:
    served = Served(file)
    served.keep(SERVING)
    served.shut(ONE.iqn, "iqn.x:v1")
    for each in (served, Served(file)):
        assert [each.admits(f"iqn.x:v{tid}", ONE.iqn) for tid in (1, 2)] == [False, True]
        assert each.admits("iqn.x:v1", TWO.iqn)
    served.shut(ONE.iqn)
    assert not Served(file).admits("iqn.x:v2", ONE.iqn)


def test_a_target_that_is_gone_is_not_found_again(file: Path) -> None:
    served = Served(file)
    served.keep(SERVING)
    served.drop("iqn.x:v1")
    known = Served(file).known
    assert known is not None and [one.iqn for one in known.targets] == ["iqn.x:v2"]


@pytest.mark.parametrize("data", [b"", b'{"targets":', b"[]", b'{"targets":[{"tid":1}],"initiators":[]}'])
def test_a_file_that_is_not_whole_is_none(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert Served(file).known is None


def test_what_cannot_be_written_is_removed_and_what_cannot_be_removed_is_no_proof(file: Path) -> None:
    served = Served(file)
    served.keep(SERVING)
    file.unlink()
    (file / "in the way").mkdir(parents=True)
    with pytest.raises(Failed, match="nor removed"):
        served.shut(ONE.iqn)
    assert not served.admits("iqn.x:v1", ONE.iqn), "it holds at least for as long as we live"
    (file / "in the way").rmdir()
    file.rmdir()
    served.shut(ONE.iqn)
    assert Served(file).known == served.known


def test_a_full_disk_is_tried_again_when_nothing_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "state" / "served.json"
    (tmp_path / "state").write_text("a file where the folder is to be")
    served = Served(file)
    served.keep(SERVING)
    assert served.known == SERVING and Served(file).known is None
    (tmp_path / "state").unlink()
    served.keep(SERVING)
    assert Served(file).known == SERVING
