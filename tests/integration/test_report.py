"""`veery report` on the lab: what is in it, and that no secret of the cluster is."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from node_parts import Node, Workshop

from veery.lab import faults
from veery.lab.services import Lab

PASSWORD = "screen-pw-5T"


def _read(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            each.name.partition("/")[2]: archive.extractfile(each).read().decode()  # type: ignore[union-attr]
            for each in archive
        }


def _secrets(lab: Lab) -> set[str]:
    """Every secret of the cluster, read where it is kept."""
    found = {PASSWORD}
    for node in ("stor", "test1", "test2"):
        found.add(json.loads((lab.plan.home(node) / "lib/initiator.json").read_text())["password"])
        for file in (lab.plan.home(node) / "lib/tls").glob("*.pem"):
            if "PRIVATE KEY" in (text := file.read_text()):
                found |= {line for line in text.splitlines() if len(line) >= 40}
    return found


async def test_a_report_has_what_helps_and_no_secret(lab: Lab, near: Node, workshop: Workshop, tmp_path: Path) -> None:
    keys = {"disk": None, "root": None, "vif": None, "vfb": [f"type=vnc,vncpasswd={PASSWORD}"]}
    await near.veery("create", "-p", workshop.file("shown", **keys))
    try:
        token = (await near.veery("node", "token")).split()[-1]
        await near.veery("report", str(tmp_path / "a.tar.gz"))
        files = _read(tmp_path / "a.tar.gz")
    finally:
        await near.veery("destroy", "shown")
        await near.veery("delete", "shown")
    assert (tmp_path / "a.tar.gz").stat().st_mode & 0o777 == 0o600
    names = {row["name"] for row in json.loads(files["store.json"])}
    assert {"chap/test1", "initiator/test1", "node/test1", "domain/shown", "token"} <= names
    assert [name for name in names if name.startswith("ca/sealed/")]
    assert "shown" in files["api/domains.json"]
    assert json.loads(files["api/doctor.json"])
    secrets = _secrets(lab) | {token}
    assert len(secrets) > 5
    assert not [(name, each) for name, text in files.items() for each in secrets if each in text]
    assert "File exists" in await near.refused("report", str(tmp_path / "a.tar.gz"))


async def test_a_report_of_a_node_whose_daemon_is_away(lab: Lab, near: Node, tmp_path: Path) -> None:
    await faults.kill(lab, "test1", "veeryd")
    try:
        await near.veery("report", str(tmp_path / "b.tar.gz"))
    finally:
        await lab.start("test1")
    files = _read(tmp_path / "b.tar.gz")
    assert "api/domains.json" in json.loads(files["missing.json"])
    assert json.loads(files["store.json"])
    assert "settings.json" in files
