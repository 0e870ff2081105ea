"""Which daemon a command speaks to: this machine's, a lab node's, or another node by way of this machine's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from veery.errors import Refused

SOCKET = "api.sock"
DEFAULT_SETTINGS = "/etc/veery/veery.toml"
DEFAULT_RUN = "/run/veery"
_START = "systemctl start veeryd"


@dataclass(frozen=True, slots=True)
class Address:
    """A daemon's unix socket; `node` (where not "") is the node that it shall hand the request on to;
    `start` is the command that would start a daemon there."""

    socket: Path
    node: str = ""
    start: str = _START


def lab_folder(lab: str = "") -> Path:
    """Where lab `lab` keeps a folder for each of its nodes: XDG_CACHE_HOME/veery/lab/NAME; the name is VEERY_LAB,
    or "lab", where none is given."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "veery" / "lab" / (lab or os.environ.get("VEERY_LAB") or "lab")


def find(settings: str = "", node: str = "", lab: str = "") -> Address:
    """The daemon for `--settings`, `--node` and `--lab` (each may be "").

    A node of a lab that is up is spoken to directly, unless a settings file is named; any other node through the
    local daemon. Raises Refused where the settings file is bad or named and missing."""
    start = _START
    if node and not settings:
        folder = lab_folder(lab)
        if (folder / node).is_dir():
            return Address(folder / node / "run" / SOCKET, start="veery lab up")
        if folder.is_dir():
            nodes = sorted(path.name for path in folder.iterdir() if path.is_dir())
            start += f"; the nodes of lab {folder.name} are {', '.join(nodes)}"
    return Address(_run_folder(settings) / SOCKET, node, start)


def _run_folder(settings: str) -> Path:
    """The daemon's run folder. Only that key is read, without config.settings, whose loading costs a third of a
    command's time; what else is in the file is judged by the daemon."""
    named = settings or os.environ.get("VEERY_SETTINGS", "")
    path = Path(named or DEFAULT_SETTINGS)
    try:
        text = path.read_text()
    except FileNotFoundError:
        if not named:
            return Path(DEFAULT_RUN)
        raise Refused(f"{path}: no such settings file", hint="name the file that veeryd was started with") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: {error}", hint="name the file that veeryd was started with") from error
    import tomllib

    try:
        run = tomllib.loads(text).get("run", DEFAULT_RUN)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: {error}", hint="see docs/settings.md for the keys") from error
    if not isinstance(run, str):
        raise Refused(f"{path}: run is no text", hint='write run = "/run/veery"')
    return Path(run)
