"""QEMU under AppArmor's profile, by a stand-in for the kernel's files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from veery.hypervisor.qemu.confine import PROFILE, confined

WORDS = ["printf", "<%s>", "a b", 'c"d$e', ""]
SHIPPED = Path(__file__).parents[3] / "packaging" / "apparmor" / PROFILE


@pytest.mark.parametrize("text", ["", "snap.lxd (enforce)\n", "veery-qemu-other (enforce)\n", None])
def test_without_the_profile_nothing_changes(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "profiles").write_text(text)
    assert confined(WORDS, loaded=tmp_path / "profiles") == WORDS


@pytest.mark.parametrize("mode", ["enforce", "complain"])
def test_it_is_entered_by_the_process_that_becomes_qemu(tmp_path: Path, mode: str) -> None:
    profiles, attribute = tmp_path / "profiles", tmp_path / "exec"
    profiles.write_text(f"snap.lxd (enforce)\n{PROFILE} ({mode})\n")
    words = confined(WORDS, loaded=profiles, attribute=attribute)
    told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout == '<a b><c"d$e><>'
    assert attribute.read_text() == f"exec {PROFILE}\n"


def test_where_it_cannot_be_entered_nothing_starts(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text(f"{PROFILE} (enforce)\n")
    words = confined(WORDS, loaded=tmp_path / "profiles", attribute=tmp_path / "none" / "exec")
    told = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    assert told.returncode != 0
    assert told.stdout == ""


def test_the_profile_that_is_shipped_has_this_name_and_starts_no_program() -> None:
    lines = [line.strip() for line in SHIPPED.read_text().splitlines() if not line.strip().startswith("#")]
    assert any(line.startswith(f"profile {PROFILE} ") for line in lines)
    allowed = [line.split()[-1].rstrip(",") for line in lines if line.startswith(("/", "owner /"))]
    assert allowed
    assert not [modes for modes in allowed if "x" in modes]
