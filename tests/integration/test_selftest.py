"""The rehearsal of `veery selftest kvm`: the same steps under TCG."""

from __future__ import annotations

import json
import platform
import re
import tempfile
from pathlib import Path

from veery.config.settings import Qemu
from veery.lab.guest import Guest
from veery.node.kvmcompare import differences
from veery.node.selftest import Wishes, run

STEPS = ["build the guest", "boot", "plug a disk in", "unplug it", "pause", "save", "restore", "move", "move back"]


async def test_a_guest_goes_through_all_steps(guest: Guest) -> None:
    said: list[str] = []
    before = set(Path(tempfile.gettempdir()).glob("veery-selftest-*"))
    answer = await run(Qemu(accel="tcg"), Wishes(kernel=guest.kernel, modules=guest.modules, memory=128), said.append)
    text = json.dumps(answer)
    assert answer["good"], text
    assert [row["step"] for row in answer["steps"]] == [*STEPS, "destroy"] == said[1:]
    assert answer["rehearsal"], "TCG is no proof of KVM, and the answer says so"
    boot, moved = answer["steps"][1], answer["steps"][7]
    assert boot["guest"]["vendor_id"] == "AuthenticAMD", "what qemu64 is under TCG"
    assert moved["bytes"] > 1 << 20
    assert moved["rounds"] >= 1
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text), "it can be given away"
    assert f"{tempfile.gettempdir()}/veery" not in text
    assert differences(answer, answer) == ()
    assert set(Path(tempfile.gettempdir()).glob("veery-selftest-*")) <= before


async def test_a_kernel_that_is_not_there_is_told(tmp_path: Path) -> None:
    wishes = Wishes(kernel=tmp_path / "vmlinuz", modules=tmp_path / "modules")
    answer = await run(Qemu(accel="tcg"), wishes, lambda _: None)
    assert not answer["good"]
    assert [(row["step"], row["good"]) for row in answer["steps"]] == [("build the guest", False)]
    assert answer["steps"][0]["error"]
