"""The veeryd that a command talks to: this machine's, that of a lab node, or another node's through this machine's."""

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
    """The unix socket of a veeryd. `node` is the node to which veeryd forwards the request ("": none). `start` is the
    command that starts a veeryd there."""

    socket: Path
    node: str = ""
    start: str = _START


def lab_folder(lab: str = "") -> Path:
    """Return the folder that has a sub-folder for each node of lab `lab`: XDG_CACHE_HOME/veery/lab/NAME. Without `lab`
    the name is VEERY_LAB, or "lab"."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "veery" / "lab" / (lab or os.environ.get("VEERY_LAB") or "lab")


def find(settings: str = "", node: str = "", lab: str = "") -> Address:
    """Return the address for `--settings`, `--node` and `--lab` (each may be "").

    The node of a running lab has a direct address, unless a settings file is named. Any other node is reached through
    the local veeryd. Raises Refused if the settings file is invalid, or if a named one is missing."""
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
    """Return veeryd's run folder. This reads only that key, without config.settings, whose import takes a third of a
    command's time. veeryd checks the rest of the file."""
    named = settings or os.environ.get("VEERY_SETTINGS", "")
    path = Path(named or DEFAULT_SETTINGS)
    try:
        text = path.read_text()
    except FileNotFoundError:
        if not named:
            return Path(DEFAULT_RUN)
        raise Refused(
            f"{path}: no such settings file", hint="give the settings file that veeryd was started with"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: {error}", hint="give the settings file that veeryd was started with") from error
    import tomllib

    try:
        run = tomllib.loads(text).get("run", DEFAULT_RUN)
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: {error}", hint="see docs/settings.md for the keys") from error
    if not isinstance(run, str):
        raise Refused(f"{path}: run is not a string", hint='write run = "/run/veery"')
    return Path(run)
