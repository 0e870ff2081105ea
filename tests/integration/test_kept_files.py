"""veeryd starts whatever its own files look like: each is cut, emptied or zeroed, and a domain runs through it."""

from __future__ import annotations

from pathlib import Path

from node_parts import Node, Workshop, until

from veery.lab import faults
from veery.lab.services import Lab


def _folders(lab: Lab, node: str) -> tuple[Path, Path]:
    return lab.plan.home(node) / "lib", lab.plan.home(node) / "run"


async def test_a_daemon_starts_with_files_that_cannot_be_read(lab: Lab, near: Node, workshop: Workshop) -> None:
    state, run = _folders(lab, "test1")
    await workshop.volume("kept")
    await near.veery("create", workshop.file("kept", volume="kept"))
    before = near.qemus()
    await faults.kill(lab, "test1", "veeryd")
    bad = {
        state / "journal" / "m1.source.json": bytes(300),
        state / "journal" / "m2.target.json": b'\n{"side":"witness"}\n',
        state / "volume-moves" / "m3.source.json": b"",
        state / "volume-moves" / "m4.domain.json": b'{"id":',
        state / "moves" / "m5.json": bytes(10),
        state / "nodes.json": b"",
        run / "held.json": b"\xff",
        run / "domains" / "next": b"\0\0",
        run / "domains" / "boot": bytes(36),
    }
    for path, data in bad.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    aside = [path.with_name(f"{path.name}.unreadable") for path in bad if path.name != "boot"]
    try:
        await lab.start("test1")
        await lab.healthy()
        assert near.qemus() == before
        assert (await near.domain("kept"))["name"] == "kept"
        rows = await near.json("moves", "--json")
        assert isinstance(rows, list)

        told = (await near.result("doctor", "--json")).out
        names = ("m1.source.json", "m2.target.json", "m3.source.json", "m4.domain.json", "m5.json", "nodes.json")
        assert [name for name in names if f"{name}.unreadable" not in told] == []
        assert "m1.source.json cannot be read" in lab.log("test1").read_text(errors="replace")
        await near.veery("migrate", "--live", "kept", "test2")
        await near.beyond("test2", "migrate", "--live", "kept", "test1")
    finally:
        for path in aside:
            path.unlink(missing_ok=True)
        await workshop.clear("kept")
    assert list((state / "journal").iterdir()) == []


async def test_a_domain_whose_record_cannot_be_read_is_not_given_back(lab: Lab, near: Node, workshop: Workshop) -> None:
    """Its QEMU runs on and writes, so its name must stay taken."""
    _, run = _folders(lab, "test1")
    await workshop.volume("kept")
    await near.veery("create", workshop.file("kept", volume="kept"))
    record = max((run / "domains").glob("*/record.json"), key=lambda path: path.stat().st_mtime)
    whole = record.read_bytes()
    await faults.kill(lab, "test1", "veeryd")
    record.write_bytes(bytes(100))
    try:
        await lab.start("test1")
        await lab.healthy()

        async def told() -> bool:
            return "no name is released" in lab.log("test1").read_text(errors="replace")

        await until(told, "the caretaker has looked")
        assert (await near.store())[0]["kept"] == "test1"
        rows = (await near.result("doctor", "--json")).out
        assert str(record.parent) in rows
    finally:
        await faults.kill(lab, "test1", "veeryd")
        record.write_bytes(whole)
        await lab.start("test1")
        await lab.healthy()
    await workshop.clear("kept")
