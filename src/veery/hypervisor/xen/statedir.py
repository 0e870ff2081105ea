"""The record of each domain here: RUN/xen/UUID/ has record.json (with secrets: mode 0600), the domain file for xl, and
console.log, what the guest printed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from veery.errors import Failed
from veery.host.files import write_atomic
from veery.hypervisor.diskrecord import WrittenDisk, disks_read, disks_written
from veery.model import codec
from veery.model.domain import DomainEnd, DomainSpec, DomainType
from veery.model.volume import AttachedVif, Attachments


class Stage(StrEnum):
    """What a domain is for, now."""

    STARTING = "starting"  # its start was not reported yet: a restart of veeryd ends it
    RUNNING = "running"  # the domain itself
    REBOOTING = "rebooting"  # its old instance ended and a new one starts: a restart of veeryd starts it again
    INCOMING = "incoming"  # a half domain: only `finish` lets it run
    SENDING = "sending"  # being copied away, or copied: only `resume` lets it run
    SAVING = "saving"  # being written to a file: a restart of veeryd lets it run on


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The luggage: what a move's target must know besides the spec. `xen` is the hypervisor's version and `processor`
    the feature words (hw_caps) of the node where the domain was started or came from last. `dirty_log`: whether that
    hypervisor can track the writes of a PV domain. `memory` in MiB, the most it can have. `started` is when the guest
    booted, in seconds since the epoch."""

    xen: str
    type: DomainType
    memory: int
    started: float
    processor: tuple[int, ...] = ()
    dirty_log: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One domain as written to disk. `domid` 0: Xen has not numbered it yet. `held`: paused by a user. `ended`: why it
    stopped by itself. `arrived`: it moved in, and xl does not have its settings yet."""

    domid: int
    spec: DomainSpec
    attachments: Attachments
    build: Build
    stage: Stage
    held: bool = False
    ended: DomainEnd | None = None
    arrived: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    domid: int
    spec: DomainSpec
    disks: tuple[WrittenDisk, ...]
    vifs: tuple[AttachedVif, ...]
    build: Build
    stage: Stage
    held: bool
    ended: DomainEnd | None
    arrived: bool = False


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one domain."""

    path: Path

    @property
    def console_log(self) -> Path:
        """What the guest printed, as far back as is kept."""
        return self.path / "console.log"

    @property
    def config(self) -> Path:
        """The domain file for xl."""
        return self.path / "domain.cfg"

    def make(self, record: Record, config: str, backlog: bytes = b"") -> None:
        """Make the folder, replacing an old one; `backlog` is the console's earlier output."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700, parents=True)
        self.console_log.write_bytes(backlog)
        self.config.write_text(config)
        self.write(record)

    def write(self, record: Record) -> None:
        """Replace the record; nothing happens once the folder is gone."""
        if not self.path.is_dir():
            return
        written = _Written(
            domid=record.domid,
            spec=record.spec,
            disks=disks_written(record.attachments.disks),
            vifs=record.attachments.vifs,
            build=record.build,
            stage=record.stage,
            held=record.held,
            ended=record.ended,
            arrived=record.arrived,
        )
        write_atomic(self.path / "record.json", codec.encode(written))

    def read(self) -> Record | None:
        """Return the record, None if there is none. Raises Failed where it cannot be decoded."""
        try:
            written = codec.decode((self.path / "record.json").read_bytes(), _Written)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failed(f"{self.path}: {error.strerror}") from error
        return Record(
            domid=written.domid,
            spec=written.spec,
            attachments=Attachments(domid=written.domid, disks=disks_read(written.disks), vifs=written.vifs),
            build=written.build,
            stage=written.stage,
            held=written.held,
            ended=written.ended,
            arrived=written.arrived,
        )

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
