"""report: collect what a node knows of itself and its cluster in one file without secrets, for support."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import tomllib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veery.cli.catalogue import Verb
from veery.cli.parser import Parser
from veery.cli.session import Session
from veery.errors import Refused, VeeryError
from veery.model.units import format_size

if TYPE_CHECKING:
    from veery.config.settings import Settings
    from veery.node.bundle import Bundle

PROGRAM_DEADLINE_S = 20.0  # for one program
OUTPUT_MAX = 2 << 20  # characters of a program's output
ROUTES = {
    "log.json": "/v1/log",
    "host.json": "/v1/host",
    "health.json": "/v1/health",
    "doctor.json": "/v1/doctor",
    "alarms.json": "/v1/alarms",
    "guard.json": "/v1/guard",
    "domains.json": "/v1/domains?cluster=1",
    "moves.json": "/v1/moves",
    "cluster.json": "/v1/cluster",
    "nodes.json": "/v1/nodes",
    "fences.json": "/v1/fences",
    "heartbeats.json": "/v1/heartbeats",
    "cpu.json": "/v1/cpu",
    "volumes.json": "/v1/volumes",
    "targets.json": "/v1/targets",
    "networks.json": "/v1/networks",
    "ha.json": "/v1/ha",
    "groups.json": "/v1/groups",
    "events.json": "/v1/events?count=2000",
}
PROGRAMS: Mapping[str, Sequence[str]] = {
    "links.txt": ("ip", "-details", "address"),
    "routes.txt": ("ip", "route"),
    "nft.txt": ("nft", "list", "ruleset"),
    "mounts.txt": ("findmnt", "--real"),
    "disks.txt": ("df", "-h"),
    "unit.txt": ("systemctl", "status", "--no-pager", "veeryd"),
    "journal.txt": ("journalctl", "--no-pager", "--lines", "5000", "--unit", "veeryd"),
    "kernel.txt": ("dmesg", "--time-format", "iso"),
}
HIDDEN = ("ca/key", "ca/sealed/", "initiator/", "chap/", "token/")  # prefixes of the store's keys with secret values
OWN_FILES = ("identity.json", "nodes.json", "certificates.json", "store.json", "served.json")
OWN_FOLDERS = ("journal", "moves", "volume-moves")


def _report(session: Session, args: Namespace) -> int:
    import asyncio

    from veery.node.bundle import Bundle

    now = time.time()
    name = args.file or f"veery-report-{platform.node()}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}.tar.gz"
    path, settings = Path(name), _settings(session)
    bundle = Bundle()
    bundle.add_json("versions.json", _versions())
    _own_files(bundle, settings, _settings_path(session))
    for file, route in ROUTES.items():
        _ask(session, bundle, file, route)
    asyncio.run(_programs(bundle))
    asyncio.run(_store(bundle, settings))
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", hint="name a new file: veery report FILE") from error
    with os.fdopen(handle, "wb") as stream:
        blots = bundle.write(stream, "veery-report", now)
    blotted = f", {blots} of them blacked out in texts" if blots else ""
    figures = f"{format_size(path.stat().st_size)}, {len(bundle.files)} files; {len(bundle.missing)} not available"
    session.note(f"{path}: {figures}. Keys, tokens and passwords are left out{blotted}.")
    session.note("It names machines, domains and addresses: review it before you share it.")
    return 0


def _settings_path(session: Session) -> Path:
    from veery.config.settings import DEFAULT_PATH

    return Path(session.settings or os.environ.get("VEERY_SETTINGS") or DEFAULT_PATH)


def _settings(session: Session) -> Settings:
    from veery.config.settings import load

    return load(_settings_path(session))


def _versions() -> dict[str, Any]:
    import veery

    release = Path("/etc/os-release")
    return {
        "veery": veery.__version__,
        "python": sys.version,
        "kernel": platform.uname()._asdict(),
        "system": release.read_text(errors="replace") if release.exists() else "",
        "processors": os.cpu_count(),
        "memory": Path("/proc/meminfo").read_text(errors="replace").splitlines()[:5],
    }


def _own_files(bundle: Bundle, settings: Settings, path: Path) -> None:
    """Add the settings and veeryd's state folder. Read the keys, so that the bundle can find them in texts."""
    from veery.cluster import initiators
    from veery.node.bundle import FILE_MAX, FILES_MAX, secrets_of_keys

    try:
        bundle.add_json("settings.json", tomllib.loads(path.read_text()))
    except (OSError, ValueError) as error:
        bundle.missing["settings.json"] = str(error)
    state, run = Path(settings.state), Path(settings.run)
    for key in state.glob("tls/*.pem"):
        bundle.secrets |= secrets_of_keys(key.read_text(errors="replace"))
    try:
        bundle.secrets |= {json.loads((state / initiators.FILE).read_bytes())["password"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # an older veery has no such file; doctor reports an unreadable one
    files = [each.password_file for each in settings.power.values()] + [settings.alarms.webhook_token_file]
    for file in filter(None, files):
        if (words := Path(file)).is_file():
            bundle.secrets |= frozenset({words.read_text(errors="replace").strip()} - {""})
    found = [state / name for name in OWN_FILES]
    found += [each for folder in OWN_FOLDERS for each in sorted((state / folder).glob("*.json"))[-FILES_MAX // 10 :]]
    for each in filter(Path.exists, found):
        name = f"state/{each.relative_to(state)}"
        try:
            bundle.add_json(name, json.loads(each.read_bytes()[:FILE_MAX]))
        except (OSError, ValueError) as error:
            bundle.missing[name] = str(error)
    listed = [
        f"{each.stat().st_size:>12} {each.relative_to(state)}" for each in sorted(state.glob("*/*")) if each.exists()
    ]
    bundle.add_text("state/files.txt", "\n".join(listed) + "\n")
    for log in sorted(run.glob("*.log")) + sorted(run.glob("domains/*/qemu.log")):
        bundle.add_end(f"run/{log.relative_to(run)}", log)


def _ask(session: Session, bundle: Bundle, file: str, route: str) -> None:
    path, _, query = route.partition("?")
    pairs = dict(each.split("=", 1) for each in query.split("&")) if query else {}
    try:
        bundle.add_json(f"api/{file}", session.client.get(path, **pairs))
    except VeeryError as error:
        bundle.missing[f"api/{file}"] = error.message


async def _programs(bundle: Bundle) -> None:
    from veery.host.run import run

    for file, words in PROGRAMS.items():
        try:
            result = await run(words, deadline=PROGRAM_DEADLINE_S, check=False)
            bundle.add_text(f"host/{file}", (result.out + result.err)[-OUTPUT_MAX:])
        except VeeryError as error:
            bundle.missing[f"host/{file}"] = error.message


async def _store(bundle: Bundle, settings: Settings) -> None:
    """Add every record of the store. Of secrets, add the names only."""
    from veery.cluster import identity, members

    try:
        store = members.open_store(settings, identity.load(Path(settings.state)))
    except VeeryError as error:
        bundle.missing["store.json"] = error.message
        return
    try:
        rows = []
        for entry in (await store.raw.scan("")).entries:
            hidden = entry.key.startswith(HIDDEN)
            try:
                value = json.loads(entry.value)
            except ValueError:
                value = entry.value.decode(errors="replace")
            if hidden:
                bundle.secrets |= _hidden(value)
                rows.append({"name": entry.key.partition("/")[0] if entry.key.startswith("token/") else entry.key})
            else:
                rows.append({"name": entry.key, "value": value})
        bundle.add_json("store.json", rows)
    except VeeryError as error:
        bundle.missing["store.json"] = error.message
    finally:
        await store.close()


def _hidden(value: Any) -> frozenset[str]:
    from veery.node.bundle import secrets_in, secrets_of_keys

    return secrets_of_keys(value) if isinstance(value, str) else secrets_in([value])


def _declare(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="the file to create (veery-report-HOST-TIME.tar.gz)")


VERBS: dict[str, Verb] = {
    "report": Verb(
        run=_report,
        declare=_declare,
        about="""
Collects the data that support needs in a new file that only root can read: settings, logs, the records of the cluster,
veeryd's answers, and the state of the network and the disks. Run it as root on each node that the problem affects.
missing.json lists the data that veeryd or the store did not return. The file contains no keys, tokens or passwords, and
no console output of guests.""",
        examples="veery report\nveery report /tmp/test1.tar.gz",
    ),
}
