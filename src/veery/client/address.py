"""Which daemon a command speaks to: this machine's, a lab node's, or another node by way of this machine's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SOCKET = "api.sock"


@dataclass(frozen=True, slots=True)
class Address:
    """A daemon's unix socket; `node` (where not "") is the node that it shall hand the request on to;
    `start` is the command that would start a daemon there."""

    socket: Path
    node: str = ""
    start: str = "systemctl start veeryd"


def lab_folder(lab: str = "") -> Path:
    """Where lab `lab` keeps a folder for each of its nodes: XDG_CACHE_HOME/veery/lab/NAME; the name is VEERY_LAB,
    or "lab", where none is given."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "veery" / "lab" / (lab or os.environ.get("VEERY_LAB") or "lab")


def find(settings: str = "", node: str = "", lab: str = "") -> Address:
    """The daemon for `--settings`, `--node` and `--lab` (each may be "").

    A node of a lab that is up is spoken to directly, unless a settings file is named; any other node through the
    local daemon. Raises Refused where the settings file is bad or named and missing."""
    if node and not settings:
        folder = lab_folder(lab) / node
        if folder.is_dir():
            return Address(folder / "run" / SOCKET, start="veery lab up")
    return Address(_run_folder(settings) / SOCKET, node)


def _run_folder(settings: str) -> Path:
    named = settings or os.environ.get("VEERY_SETTINGS", "")
    path = Path(named or "/etc/veery/veery.toml")
    if not named and not path.exists():
        return Path("/run/veery")  # the default of settings.Settings.run, without the cost of loading it
    from veery.config.settings import load
    from veery.errors import Refused

    if not path.exists():
        raise Refused(f"{path}: no such settings file", hint="name the file that veeryd was started with")
    return Path(load(path).run)
