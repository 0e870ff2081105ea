"""An older version of veery out of this repository's history, as programs that a lab can run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMIT = "5d5c3b5d3ae287d4f978420eb7ce1169609ad3f2"  # the last version without levels
ROOT = Path(__file__).parents[2]

_SCRIPT = """\
#!{python}
import os
import sys

sys.path.insert(0, "{source}")
os.environ["PYTHONPATH"] = "{source}"
from veery.{module} import {main}

sys.exit({main}())
"""


def missing() -> str:
    """Why the older version cannot be had here; "" where it can."""
    try:
        found = subprocess.run(
            ["git", "-C", ROOT, "cat-file", "-e", f"{COMMIT}:src/veery"], capture_output=True, timeout=60, check=False
        )
    except OSError as error:
        return f"git: {error.strerror}"
    return "" if found.returncode == 0 else f"this clone has no history: commit {COMMIT[:8]} is not in it"


def programs(folder: Path) -> Path:
    """A folder with the `veery` and `veeryd` of the older version, made below `folder`. They use the packages of the
    Python that runs this."""
    source, bin_folder = folder / "older", folder / "older-bin"
    source.mkdir()
    bin_folder.mkdir()
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", "--format=tar", COMMIT, "src"], capture_output=True, timeout=120, check=True
    )
    subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, timeout=120, check=True)
    for name, module, main in (("veery", "__main__", "run"), ("veeryd", "daemon", "main")):
        path = bin_folder / name
        path.write_text(_SCRIPT.format(python=sys.executable, source=source / "src", module=module, main=main))
        path.chmod(0o755)
    return bin_folder
