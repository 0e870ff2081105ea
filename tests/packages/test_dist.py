"""The wheel and the sdist: pip installs each in an empty virtual environment. `make dist-test` makes them first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import veery

DIST = Path(__file__).parents[2] / "dist"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("end", [".whl", ".tar.gz"])
def test_pip_installs_it(tmp_path: Path, end: str) -> None:
    (path,) = DIST.glob(f"veery-{veery.__version__}*{end}")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=300)
    bin = tmp_path / "venv/bin"
    install = [str(bin / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", str(path)]
    subprocess.run(install, check=True, timeout=1500, cwd=tmp_path)
    for name in ("veery", "veeryd"):
        words = [str(bin / name), "--version"]
        told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path).stdout
        assert told.strip() == f"{name} {veery.__version__}"
