"""A domain whose QEMU is a script: what it makes of events that no emulated guest brings about."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from veery.errors import Failed
from veery.host.clock import RealClock
from veery.host.process import Process
from veery.hypervisor.qemu.build import lay_out
from veery.hypervisor.qemu.domain import KILL_DEADLINE_S, Domain
from veery.hypervisor.qemu.migration import cipher, finish, priority
from veery.hypervisor.qemu.process import Home, Record, Stage
from veery.hypervisor.qemu.transfer import Transfer
from veery.model.domain import DiskFormat, DiskSpec, DomainEnd, DomainSpec, DomainState
from veery.model.units import patience
from veery.model.volume import AttachedDisk, Attachments, LocalDisk

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}, "capabilities": []}}


class Script:
    """The other end of a monitor: answers, and tells events. `statuses` are told in turn, the last for ever."""

    def __init__(self, statuses: list[str]) -> None:
        self.statuses, self.heard = statuses, list[str]()
        self.over = asyncio.Event()
        self.version = (10, 0)
        self.blocks = list[dict[str, object]]()
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._send(GREETING)
        text = ""
        while data := await reader.read(4096):  # the client ends no line
            text += data.decode()
            with contextlib.suppress(json.JSONDecodeError):
                while text := text.lstrip():
                    order, end = json.JSONDecoder().raw_decode(text)
                    text = text[end:]
                    self.heard.append(order["execute"])
                    number = {"id": order["id"]} if "id" in order else {}
                    self._send({"return": self._answer(order["execute"])} | number)
        writer.close()
        self.over.set()

    def event(self, name: str, **data: object) -> None:
        if name == "RESUME":
            self.statuses = ["running"]
        self._send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 0}})

    def _send(self, message: dict[str, object]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\n")

    def _answer(self, command: str) -> object:
        match command:
            case "query-status":
                status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
                return {"status": status, "running": status == "running"}
            case "query-cpus-fast":
                return []
            case "query-balloon":
                return {"actual": 128 << 20}
            case "query-version":
                return {"qemu": {"major": self.version[0], "minor": self.version[1], "micro": 0}, "package": ""}
            case "query-migrate":
                return {"status": "completed"}
            case "query-block":
                return self.blocks
            case _:
                return {}


@contextlib.asynccontextmanager
async def scripted(
    statuses: list[str], stage: Stage, blocks: Sequence[dict[str, object]] = ()
) -> AsyncIterator[tuple[Domain, Script, list[DomainEnd]]]:
    spec = DomainSpec(name="web", uuid="7c2f4b1e-0000-4000-8000-000000000001")
    build = lay_out(spec, machine="pc-q35-9.0", accel="kvm", started=1.0)
    record = Record(domid=1, spec=spec, attachments=Attachments(domid=1), build=build, stage=stage)
    script, ends = Script(statuses), list[DomainEnd]()
    script.blocks = list(blocks)
    with TemporaryDirectory(prefix="vq") as folder:
        home = Home(Path(folder) / "1")
        home.make(record)
        process = Process.spawn(["sleep", "600"], log_file=home.qemu_log)
        server = await asyncio.start_unix_server(script.serve, home.monitors[0])
        domain = Domain(home, record, process, RealClock(), lambda _, end: ends.append(end))
        try:
            await domain.connect(deadline=10)
            yield domain, script, ends
        finally:
            await domain.let_go()
            await process.stop(grace=0)
            server.close()
            async with asyncio.timeout(20):
                await script.over.wait()


async def becomes(domain: Domain, state: DomainState) -> None:
    async with asyncio.timeout(20):
        while domain.reading().state is not state:
            await asyncio.sleep(0.01)


async def runs(domain: Domain) -> None:
    async with asyncio.timeout(20):
        while domain.reading().state not in (DomainState.RUNNING, DomainState.BLOCKED):
            await asyncio.sleep(0.01)


async def test_a_stop_that_nobody_ordered_is_a_crash_where_kvm_has_failed() -> None:
    async with scripted(["running", "internal-error"], Stage.RUNNING) as (domain, script, ends):
        script.event("STOP")
        await becomes(domain, DomainState.CRASHED)
        assert ends == [DomainEnd.CRASH]
        script.event("STOP")
        await domain.status()
        assert ends == [DomainEnd.CRASH], "told once"


async def test_a_disk_that_is_full_is_a_state_with_its_reason_and_no_crash() -> None:
    async with scripted(["running", "io-error"], Stage.RUNNING) as (domain, script, ends):
        script.event("BLOCK_IO_ERROR", device="", **{"node-name": "disk-xvda"}, action="stop", reason="No space left")
        script.event("STOP")
        async with asyncio.timeout(20):
            while not domain.reading().reason:
                await asyncio.sleep(0.01)
        assert domain.reading().reason == "disk-xvda: No space left"
        assert domain.reading().state is DomainState.PAUSED
        assert not domain.reading().held, "moved, it goes on there"
        domain.update(held=True)
        assert domain.reading().held, "a user has paused it as well"
        domain.update(held=False)
        assert ends == []
        script.event("RESUME")
        async with asyncio.timeout(20):
            while domain.reading().reason:
                await asyncio.sleep(0.01)


async def test_a_disk_that_fails_while_memory_is_copied_is_known() -> None:
    """A copy stops the domain too, and asks nothing then: the events tell the two apart."""
    async with scripted(["running", "io-error"], Stage.SENDING) as (domain, script, _):
        domain.copying = Transfer(domain, RealClock())
        for reason in ("disk-xvda: No space left", ""):
            if reason:
                script.event("BLOCK_IO_ERROR", **{"node-name": "disk-xvda"}, action="stop", reason="No space left")
            script.event("STOP")
            await becomes(domain, DomainState.PAUSED)
            assert (domain.reading().reason, domain.reading().held) == (reason, not reason)
            async with asyncio.timeout(20):  # at the start, and for the error
                while script.heard.count("query-status") < 2:
                    await asyncio.sleep(0.01)
            script.event("BLOCK_IO_ERROR", **{"node-name": "disk-xvda"}, action="stop", reason="No space left")
            script.event("RESUME")
            await runs(domain)
        assert script.heard.count("query-status") == 2
        domain.copying = None


@pytest.mark.parametrize("path", ["", "/machine/peripheral/disk-xvda/virtio-backend"])
async def test_a_disk_that_is_being_copied_has_its_own_name(path: str) -> None:
    """QEMU puts a node of its own before it, and names that one; a path is told by QEMU 9.2 and newer."""
    blocks = [
        {"qdev": "/machine/peripheral/disk-xvdb/virtio-backend", "io-status": "ok"},
        {
            "qdev": "/machine/peripheral/disk-xvda/virtio-backend",
            "inserted": {"node-name": "#block161"},
            "io-status": "failed",
        },
    ]
    async with scripted(["running", "io-error"], Stage.SENDING, blocks) as (domain, script, _):
        domain.copying = Transfer(domain, RealClock())
        more = {"qom-path": path} if path else {}
        script.event("BLOCK_IO_ERROR", **{"node-name": "#block161"}, action="stop", reason="Remote I/O error", **more)
        script.event("STOP")
        async with asyncio.timeout(20):
            while domain.reading().reason != "disk-xvda: Remote I/O error":
                assert "#block" not in domain.reading().reason
                await asyncio.sleep(0.01)
        domain.copying = None


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ([{"inserted": {"node-name": "disk-xvda"}, "io-status": "nospace"}], "disk-xvda: No space left on device"),
        ([{"qdev": "/machine/peripheral/disk-xvda", "io-status": "failed"}], "disk-xvda: Input/output error"),
        ([{"qdev": "x", "inserted": {"node-name": "disk-xvda"}, "io-status": "ok"}, {"qdev": "y"}], "a disk's error"),
    ],
)
async def test_a_disk_that_failed_while_nobody_listened_is_found(blocks: list[dict[str, object]], reason: str) -> None:
    """veeryd begins again: QEMU does not repeat its event, and such a domain is not paused by a user."""
    async with scripted(["io-error"], Stage.RUNNING, blocks) as (domain, _, ends):
        assert domain.reading().reason.startswith(reason)
        assert not domain.reading().held
        assert ends == []


async def test_a_stop_that_we_ordered_asks_nothing() -> None:
    async with scripted(["running"], Stage.RUNNING) as (domain, script, _):
        asked = script.heard.count("query-status")
        await domain.stop()
        assert script.heard.count("query-status") == asked


async def test_a_target_is_believed_when_it_was_seen_running_twice() -> None:
    async with scripted(["inmigrate", "paused", "running"], Stage.INCOMING) as (domain, script, ends):
        await finish(domain, paused=False)
        let_go = script.heard.index("cont")
        assert script.heard[let_go:].count("query-status") == 2
        assert script.heard[let_go:].index("announce-self") < script.heard[let_go:].index("query-status")
        assert ends == []


async def test_a_target_that_kvm_cannot_run_is_not_believed() -> None:
    async with scripted(["inmigrate", "paused", "running", "internal-error"], Stage.INCOMING) as (domain, _, ends):
        with pytest.raises(Failed, match="cannot run it"):
            await finish(domain, paused=False)
        assert ends == [DomainEnd.CRASH]
        assert domain.record.stage is Stage.RUNNING


@pytest.mark.parametrize(("version", "activates"), [((9, 2), False), ((10, 0), True), ((11, 0), True)])
async def test_a_target_that_stays_paused_opens_its_disks_after_commit(
    version: tuple[int, int], activates: bool
) -> None:
    async with scripted(["inmigrate", "paused"], Stage.INCOMING) as (domain, script, _):
        script.version = version
        await finish(domain, paused=True)
        assert ("blockdev-set-active" in script.heard) is activates
        assert "cont" not in script.heard


def test_a_qemu_that_fails_on_a_rekey_names_the_cipher_that_has_none() -> None:
    for old in ((9, 0), (9, 2), (10, 0)):
        assert priority(old).endswith("-CIPHER-ALL:+CHACHA20-POLY1305")
        assert "AES" not in priority(old)
    for new in ((10, 1), (10, 2), (11, 0)):
        assert "+AES-128-GCM" in priority(new)
        assert "+CHACHA20-POLY1305" in priority(new), "or it would not understand an older one"
    assert all("+VERS-TLS1.3" in priority(version) for version in ((9, 0), (10, 1)))


@pytest.mark.parametrize(
    ("mine", "theirs", "wanted"),
    [
        ((10, 0), "10.1.2", "ChaCha20-Poly1305"),
        ((10, 0), "", "ChaCha20-Poly1305"),
        ((10, 1), "9.2.4 (Debian 1:9.2.4+ds-1)", "ChaCha20-Poly1305"),
        ((10, 1), "10.1.0", "AES-128-GCM"),
        ((11, 0), "10.2", "AES-128-GCM"),
        ((11, 0), "", ""),
    ],
)
def test_the_cipher_follows_from_both_versions(mine: tuple[int, int], theirs: str, wanted: str) -> None:
    assert cipher(mine, theirs) == wanted


def test_a_large_domain_is_given_the_time_that_its_memory_takes() -> None:
    assert patience(KILL_DEADLINE_S, 128) == pytest.approx(10, abs=0.1)
    assert patience(KILL_DEADLINE_S, 256 << 10) == 138


async def test_a_domain_with_many_disks_is_given_the_time_that_these_take() -> None:
    async with scripted(["running"], Stage.RUNNING) as (domain, _, _):
        few = domain.patience(20)
        disks = tuple(
            AttachedDisk(
                spec=DiskSpec(vdev=f"xvd{letter}"), source=LocalDisk(path="/d", format=DiskFormat.RAW, block=False)
            )
            for letter in "abcdefgh"
        )
        domain.update(attachments=Attachments(domid=1, disks=disks))
        assert domain.patience(20) == few + 8
