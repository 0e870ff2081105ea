"""The addresses of a node's networks in this machine's veery.toml: storage.address and relocation.address. The verbs
init, join and node readdress write them."""

from __future__ import annotations

import os
import stat
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from veery.cli.session import Usage
from veery.cluster.identity import check_address
from veery.config.amend import amended
from veery.config.settings import DEFAULT_PATH, Settings, load
from veery.errors import Failed, Refused
from veery.host.files import write_atomic
from veery.host.ports import require_own
from veery.model.node import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsChange:
    """A change of the file `path` to `text` ("": it stays). `settings`: those that apply after it. `added`: what a user
    would write by hand."""

    path: Path
    text: str
    settings: Settings
    added: tuple[str, ...] = ()


def plan(path: str, roles: Sequence[Role], args: Namespace, verb: str, *, replacing: bool = False) -> SettingsChange:
    """Return the change that the options of `verb` order, for a node with `roles`. `path`: the file ("": the usual
    one). `replacing`: another address there is replaced. Nothing is written. Raises Usage, Refused."""
    file = Path(path or os.environ.get("VEERY_SETTINGS") or DEFAULT_PATH)
    settings = load(file)
    text = before = _read(file)
    added = []
    if args.storage_address:
        if Role.STORAGE not in roles and Role.HYPERVISOR not in roles:
            raise Usage("--storage-address needs the role storage or hypervisor", verb)
        address = _own(args.storage_address)
        text = _amended(file, text, "storage", address, replacing)
        added.append(f'[storage] address = "{address}"')
        settings = replace(settings, storage=replace(settings.storage, address=address))
    if args.migration_address:
        if Role.HYPERVISOR not in roles:
            raise Usage("--migration-address needs the role hypervisor", verb)
        address = _own(args.migration_address)
        text = _amended(file, text, "relocation", address, replacing)
        added.append(f'[relocation] address = "{address}"')
        settings = replace(settings, relocation=replace(settings.relocation, address=address))
    return SettingsChange(path=file, text="" if text == before else text, settings=settings, added=tuple(added))


def write(change: SettingsChange) -> None:
    """Write the change. Raises Failed if the file cannot be written."""
    if not change.text:
        return
    try:
        path = change.path.resolve()
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
        write_atomic(path, change.text, mode=mode, sync=True)
    except OSError as error:
        raise Failed(
            f"{change.path} could not be written: {error.strerror}",
            hint=f"before veeryd starts the next time, write there: {'; '.join(change.added)}",
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", hint="are you root?") from error


def _own(address: str) -> str:
    known = check_address(address)
    require_own(known)
    return known


def _amended(path: Path, text: str, section: str, address: str, replacing: bool) -> str:
    try:
        return amended(text, section, "address", address, replace=replacing)
    except Refused as error:
        raise Refused(f"{path}: {error.message}", hint=error.hint) from error
