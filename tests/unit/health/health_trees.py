"""Recorded trees, written as files under a folder, and their verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from veery.health.looking import Verdict, case

Files = Mapping[str, str]


def judge(
    folder: Path,
    *moments: Files,
    at: Sequence[float] = (),
    **given: Sequence[str],
) -> Verdict:
    """Write one tree, or several as the readings 0, 1, ... at the times `at`, and judge them."""
    about: dict[str, object] = dict(given)
    if at:
        about["sequence"] = [{"dir": str(index), "at": when} for index, when in enumerate(at)]
    for index, files in enumerate(moments):
        root = folder / str(index) if len(moments) > 1 else folder
        root.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    (folder / "given.json").write_text(json.dumps(about))
    return case(folder)


def log(*rows: str, start: float = 5000.0, step: float = 0.001) -> Files:
    """A kernel log of these lines, one after the other."""
    text = "".join(f"4,{100 + i},{round((start + i * step) * 1e6)},-;{row}\n" for i, row in enumerate(rows))
    return {"kmsg.txt": text}
