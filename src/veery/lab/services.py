"""A lab with its services: one veeryd a node, joined into one cluster, as a user would do it by hand."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veery.client.address import Address, lab_folder
from veery.client.http import Client
from veery.config.settings import Qemu
from veery.errors import Failed, OutcomeUnknown, Refused, VeeryError
from veery.host.files import write_atomic
from veery.host.process import Process
from veery.host.run import Result, run
from veery.hypervisor.qemu import machine
from veery.lab import guest, hosts
from veery.lab.lock import LabLock, Record, read
from veery.lab.members import Member
from veery.lab.plan import Machine, Plan, plan
from veery.lab.xen import snapshot
from veery.lab.xen.node import PATIENCE, Nested
from veery.model.node import Role

Report = Callable[[str, float], None]  # what is done now, and how much of it all: 0 to 1

_ORDER = 60.0  # seconds for one command
_READY = 60.0  # seconds for a daemon to answer, or for the cluster to be whole
_NESTED = 4  # times as long for what runs in a nested node: an import costs there what a whole command does here


def silent(_text: str, _fraction: float) -> None:
    """A Report that says nothing."""


@dataclass
class Lab:
    """A lab that this process holds; `down` removes it, `leave` lets it stand. `programs` maps a node to the folder of
    the `veery` and `veeryd` that run on it, where these are of another version."""

    plan: Plan
    _claim: LabLock
    programs: dict[str, Path] = field(default_factory=dict)

    # ---- up and down
    @classmethod
    async def up(
        cls,
        name: str,
        *,
        hypervisors: int = 2,
        storages: int = 1,
        driver: str = "qemu",
        stays: bool = False,
        report: Report = silent,
        programs: Path | None = None,
    ) -> Lab:
        """Build lab `name`, and clear away first what a dead run left of it. On failure nothing of it is left but
        the message. With `stays` it outlives this process. With the driver xen the hypervisors are nested.
        With `programs` every node runs what is in that folder.

        Raises Refused when the name is taken or does not fit, Failed with what did not start."""
        drawn = plan(name, hypervisors, storages, driver)
        if os.geteuid():
            raise Refused("the lab makes network namespaces", hint="run as root")
        lab = cls(drawn, LabLock(name), {node.name: programs for node in drawn.nodes} if programs else {})
        try:
            record = read(name)
            await hosts.remove(name, Path(record.folder) if record else drawn.folder)
            lab._claim.write(Record(str(drawn.folder), hypervisors, os.getpid(), stays, storages, driver))
            report("trying the hypervisor", 0.0)
            accelerator = await _accelerator()
            report("namespaces and bridges", 0.05)
            for node in drawn.nodes:
                _furnish(drawn, node, accelerator)
            await hosts.build(drawn)
            await lab._power_on(report)
            await lab._boot(report)
        except BaseException as error:
            logs = lab._keep_logs()
            await lab.down()
            if isinstance(error, VeeryError) and logs:
                error.hint = f"the nodes' logs are in {logs}"
            raise
        return lab

    @classmethod
    def attach(cls, name: str) -> Lab:
        """The lab `name` that stands (`veery lab up`), taken by this process. Raises Refused where there is none,
        or another process has it."""
        claim = LabLock(name)
        record = read(name)
        if record is None or not hosts.stands(name):
            claim.release() if record else claim.forget()
            raise Refused(f"lab {name} is not up", hint="veery lab up")
        return cls(plan(name, record.hypervisors, record.storages, record.driver), claim)

    async def down(self) -> None:
        """Remove the lab: processes, namespaces, folder."""
        await hosts.remove(self.plan.lab, self.plan.folder)
        self._claim.forget()

    def leave(self) -> None:
        """Let go; the lab stands on if it was made to stay."""
        self._claim.release()

    # ---- its nodes
    async def run(
        self,
        node: str,
        argv: Sequence[str | Path],
        *,
        deadline: float = _ORDER,
        check: bool = True,
        stdin: bytes | None = None,
    ) -> Result:
        """Run a command on `node` (or "client", "switch"), as host.run.run does. A nested node may take four times
        as long."""
        longest, argv = deadline * self._patience(node), self.enter(node, argv)
        return await run(argv, deadline=longest, check=check, stdin=stdin, env=self.environ(node))

    async def veery(
        self,
        node: str,
        *words: str,
        deadline: float = _ORDER,
        check: bool = True,
        stdin: bytes | None = None,
    ) -> Result:
        """Run `veery WORDS...` on `node`, speaking to that node's daemon. Raises Failed with its message."""
        argv: list[str | Path] = [self._program(node, "veery"), *words]
        result = await self.run(node, argv, deadline=deadline, check=False, stdin=stdin)
        if check and result.code:
            rows = (result.err.strip() or result.out.strip() or "no message").splitlines()
            told = next((place for place, row in enumerate(rows) if row.startswith("veery: ")), 0)  # behind progress
            rows = rows[told:]
            raise Failed(f"veery {' '.join(words)} on {node}: {rows[0]}", hint="; ".join(rows[1:3]))
        return result

    async def watch(self, node: str, *words: str, report: Report, deadline: float = _ORDER) -> str:
        """As `veery`, for what takes long: each line of progress goes to `report` as it comes. Returns its output."""
        argv = [str(word) for word in self.enter(node, [self._program(node, "veery"), *words])]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env={**os.environ, **self.environ(node)}
        )
        assert process.stdout is not None and process.stderr is not None
        said = ""
        try:
            async with asyncio.timeout(deadline * self._patience(node)):
                while line := (await process.stderr.readline()).decode(errors="replace").strip():
                    percent = re.search(r"(\d+) %", line)
                    report(" ".join(line.split()), int(percent[1]) / 100 if percent else 0.0)
                    said = line
                out = (await process.stdout.read()).decode(errors="replace")
                await process.wait()
        except TimeoutError as error:
            raise OutcomeUnknown(f"veery {' '.join(words)} on {node} did not end within {deadline:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise Failed(f"veery {' '.join(words)} on {node}: {said or out.strip()}")
        return out

    async def json(self, node: str, *words: str, deadline: float = _ORDER) -> Any:
        """What `veery WORDS...` prints on `node`, as JSON. Raises Failed."""
        return json.loads((await self.veery(node, *words, deadline=deadline)).out)

    def client(self, node: str, *, deadline: float = _ORDER) -> Client:
        """The HTTP API of `node`'s daemon."""
        return Client(Address(self.plan.home(node) / "run" / "api.sock"), deadline=deadline)

    def enter(self, node: str, argv: Sequence[str | Path]) -> list[str | Path]:
        """The command line that runs `argv` inside `node`; in dom0 where it is nested."""
        if self.plan.nested(node):
            return self.nested(node).enter(argv)
        return hosts.enter(self.plan.namespace(node), argv)

    def nested(self, node: str) -> Nested:
        """The nested node `node`."""
        return Nested(self.plan, self.plan.node(node))

    def environ(self, node: str) -> dict[str, str]:
        """What `veery lab exec` adds to the environment there: the node's settings, and our programs in PATH."""
        return hosts.environ(self.plan, node)

    def members(self, node: str) -> tuple[Member, ...]:
        """The processes that run on `node`; of a nested one, its outer QEMU and what serves it on this machine."""
        return hosts.members_of(self.plan, node)

    def log(self, node: str, name: str = "veeryd") -> Path:
        """The log file of a service that the lab itself starts on `node`."""
        return self.plan.home(node) / "log" / f"{name}.log"

    # ---- its daemons
    async def start(self, node: str) -> Process:
        """Start veeryd on `node`, and wait until it answers. Raises Failed with the end of its log."""
        options: list[str | Path] = [] if self.plan.nested(node) else ["--settings", self.plan.settings(node)]
        argv = self.enter(node, [self._program(node, "veeryd"), *options])
        process = Process.spawn(argv, log_file=self.log(node), env=self.environ(node))
        await self.ready(node, process)
        return process

    async def ready(self, node: str, process: Process | None = None) -> None:
        """Return once `node`'s daemon answers (and knows its cluster). Raises Failed."""
        client = self.client(node, deadline=5.0 * self._patience(node))

        async def answers() -> str:
            if process is not None and not process.alive():
                raise Failed(f"veeryd on {node} ended at once: {self._last_words(node)}", hint=f"see {self.log(node)}")
            try:
                await asyncio.to_thread(client.get, "/v1/nodes")
            except VeeryError as error:
                return error.message
            return ""

        within = _READY * self._patience(node)
        await _until(answers, f"veeryd on {node} does not answer", hint=f"see {self.log(node)}", within=within)

    async def healthy(self) -> None:
        """Return once every node is alive in the eyes of every other, and every voter has its vote. Raises Failed."""
        within = _READY * max(self._patience(node.name) for node in self.plan.nodes)
        message = f"the cluster of lab {self.plan.lab} is not whole"
        await _until(self._ailing, message, hint=f"see {self.plan.folder}", within=within)

    async def _ailing(self) -> str:
        """What the cluster lacks, "" if nothing."""
        wanted = {node.name for node in self.plan.nodes}
        for name in wanted:
            try:
                rows = await asyncio.to_thread(self.client(name).get, "/v1/nodes")
            except VeeryError as error:
                return f"{name}: {error.message}"
            if missing := wanted - {row["node"]["name"] for row in rows if row["alive"]}:
                return f"{name} misses {', '.join(sorted(missing))}"
        voters = sum(Role.VOTER in node.roles for node in self.plan.nodes)
        first = self.plan.nodes[0].name
        shown = await self.run(first, [sys.executable, "-m", "veery.lab.voters", self.plan.settings(first)])
        return "" if int(shown.out) == voters else f"{shown.out.strip()} of {voters} voters have their vote"

    async def _power_on(self, report: Report) -> None:
        """Make the nested nodes, if there are any, and let them run."""
        names = [node.name for node in self.plan.nodes if self.plan.nested(node.name)]
        if names:
            golden = await snapshot.ready(report)
            report(f"{', '.join(names)}: powered on", 0.05)
            await _all([self.nested(name).make(golden) for name in names])
            await _all([self.nested(name).power_on() for name in names])

    async def _boot(self, report: Report) -> None:
        first, *others = self.plan.nodes
        report(f"veery init on {first.name}", 0.1)
        await self._init(first)
        await self.start(first.name)
        done = 0

        async def join(node: Machine) -> None:
            nonlocal done
            await self._join(node, first)
            await self.start(node.name)
            done += 1
            report(f"{node.name} has joined", 0.4 + 0.5 * done / len(others))

        report(f"{', '.join(node.name for node in others)} join", 0.4)
        await _all([join(node) for node in others])
        report("waiting for the cluster to be whole", 0.9)
        await self.healthy()

    async def _init(self, node: Machine) -> None:
        await self.veery(node.name, "init", *self._described(node), "--cluster", "lab")

    async def _join(self, node: Machine, first: Machine) -> None:
        token = (await self.veery(first.name, "node", "token")).out.split()[-1]
        await self.veery(node.name, "join", token, *self._described(node))

    def _described(self, node: Machine) -> list[str]:
        roles = ",".join(role.value for role in node.roles)
        driver = ["--driver", self.plan.driver] if self.plan.nested(node.name) else []
        return ["--name", node.name, "--address", node.address, "--roles", roles, *driver]

    def _patience(self, node: str) -> int:
        return _NESTED if self.plan.nested(node) else 1

    def _program(self, node: str, name: str) -> Path:
        """One of our own programs: beside the Python that runs us, or where dom0 has it."""
        if self.plan.nested(node):
            return Path("/usr/local/bin", name)
        return self.programs.get(node, Path(sys.executable).parent) / name

    def _keep_logs(self) -> Path | None:
        """Save the nodes' logs from a lab that did not come up; their folder, None if there are none."""
        kept = self.plan.folder.parent.parent / "failed" / self.plan.lab
        shutil.rmtree(kept, ignore_errors=True)
        for node in self.plan.nodes:
            for path in self.plan.home(node.name).glob("*/*.log"):
                (kept / node.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / node.name)
        return kept if kept.exists() else None

    def _last_words(self, node: str) -> str:
        with suppress(OSError):
            rows = self.log(node).read_text(errors="replace").strip().splitlines()
            return rows[-1] if rows else "it said nothing"
        return "it said nothing"


async def _accelerator() -> str:
    """What QEMU runs with here, found out once a boot for all nodes of all labs: they share the machine."""
    return (await machine.find(Qemu(), lab_folder().parent.parent / "qemu.json")).accel


def _furnish(drawn: Plan, node: Machine, accelerator: str) -> None:
    """Make a node's folders and its settings file."""
    home = drawn.home(node.name)
    for name in ("etc", "lib", "run", "log", "sensors"):
        (home / name).mkdir(parents=True)
    rows = [
        f"# node {node.name} of lab {drawn.lab}, written by veery lab up",
        f"state = {_quoted(home / 'lib')}",
        f"run = {_quoted(home / 'run')}",
        *(PATIENCE if drawn.driver == "xen" else ()),
        "",
        "[qemu]",
        f'accel = "{accelerator}"',
        'user = ""',  # as root on every machine, whether or not the package is installed there too
        "",
        "[health]",
        f"root = {_quoted(drawn.sensors(node.name))}",
        "pace = 0.1",
    ]
    if Role.HYPERVISOR in node.roles:  # as the seed's xend-config.sxp
        rows += ["", "[relocation]", f'address = "{node.address}"', "port = 8002", 'hosts_allow = ""']
    if Role.STORAGE in node.roles:
        rows += ["", "[storage]", f"pool = {_quoted(home / 'lib' / 'volumes')}"]
        if kernel := guest.find():
            rows += ["", "[image]", f"kernel = {_quoted(kernel.kernel)}", f"modules = {_quoted(kernel.modules)}"]
    write_atomic(drawn.settings(node.name), "\n".join(rows) + "\n", mode=0o644)


def _quoted(path: Path) -> str:
    return json.dumps(str(path))  # TOML's basic strings and JSON's agree on what a path can hold


async def _all(works: Sequence[Awaitable[None]]) -> None:
    """Await `works` together; the first failure ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(_one(work))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _one(work: Awaitable[None]) -> None:
    await work


async def _until(check: Callable[[], Awaitable[str]], message: str, *, hint: str, within: float) -> None:
    """Ask `check` until it returns ""; Failed with `message` and its last answer after `within` seconds."""
    ends = time.monotonic() + within
    while why := await check():
        if time.monotonic() > ends:
            raise Failed(f"{message}: {why}", hint=hint)
        await asyncio.sleep(0.05)
