"""A lab with its services: a veeryd on each node, joined to one cluster with a user's commands."""

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
from veery.lab.xen.node import SLOW_SETTINGS, Nested
from veery.model.node import Role

Report = Callable[[str, float], None]  # the present step, and the fraction done: 0 to 1

_COMMAND_TIMEOUT_S = 60.0
_READY_TIMEOUT_S = 60.0  # for a daemon to answer, or for the cluster to be complete
_NESTED_FACTOR = 4  # for timeouts in a nested node, where an import takes as long as a whole command outside


def silent(_text: str, _fraction: float) -> None:
    """Ignore the progress: a Report without output."""


@dataclass
class Lab:
    """A lab that this process holds; `down` removes it, `leave` keeps it. `programs` maps a node to the folder of its
    `veery` and `veeryd`, if these are of another version."""

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
        """Build lab `name`; first remove the remains of an earlier lab of that name. On failure everything is removed.
        With `stays` the lab outlives this process. With the driver xen the hypervisors are nested. With `programs`
        every node runs the programs in that folder.

        Raises Refused if the name is in use or invalid, Failed with the service that did not start."""
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
                _furnish(drawn, node, accelerator, older=programs is not None)
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
        """Lock the existing lab `name` (`veery lab up`) and return it. Raises Refused if there is none, or another
        process holds it."""
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
        """Release the lab; it stays if it was made to stay."""
        self._claim.release()

    # ---- its nodes
    async def run(
        self,
        node: str,
        argv: Sequence[str | Path],
        *,
        deadline: float = _COMMAND_TIMEOUT_S,
        check: bool = True,
        stdin: bytes | None = None,
    ) -> Result:
        """Run a command on `node` (or "client", "switch") as host.run.run does. For a nested node the deadline is four
        times as long."""
        longest, argv = deadline * self._deadline_factor(node), self.enter(node, argv)
        return await run(argv, deadline=longest, check=check, stdin=stdin, env=self.environ(node))

    async def veery(
        self,
        node: str,
        *words: str,
        deadline: float = _COMMAND_TIMEOUT_S,
        check: bool = True,
        stdin: bytes | None = None,
    ) -> Result:
        """Run `veery WORDS...` on `node`, with that node's daemon. Raises Failed with its message."""
        argv: list[str | Path] = [self._program(node, "veery"), *words]
        result = await self.run(node, argv, deadline=deadline, check=False, stdin=stdin)
        if check and result.code:
            rows = (result.err.strip() or result.out.strip() or "no message").splitlines()
            first = next((place for place, row in enumerate(rows) if row.startswith("veery: ")), 0)  # after progress
            rows = rows[first:]
            raise Failed(f"veery {' '.join(words)} on {node}: {rows[0]}", hint="; ".join(rows[1:3]))
        return result

    async def watch(self, node: str, *words: str, report: Report, deadline: float = _COMMAND_TIMEOUT_S) -> str:
        """Run a long command as `veery` does, and pass each line of progress to `report`. Returns its output."""
        argv = [str(word) for word in self.enter(node, [self._program(node, "veery"), *words])]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env={**os.environ, **self.environ(node)}
        )
        assert process.stdout is not None and process.stderr is not None
        last = ""
        try:
            async with asyncio.timeout(deadline * self._deadline_factor(node)):
                while line := (await process.stderr.readline()).decode(errors="replace").strip():
                    percent = re.search(r"(\d+) %", line)
                    report(" ".join(line.split()), int(percent[1]) / 100 if percent else 0.0)
                    last = line
                out = (await process.stdout.read()).decode(errors="replace")
                await process.wait()
        except TimeoutError as error:
            raise OutcomeUnknown(f"veery {' '.join(words)} on {node} did not end within {deadline:g} s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise Failed(f"veery {' '.join(words)} on {node}: {last or out.strip()}")
        return out

    async def json(self, node: str, *words: str, deadline: float = _COMMAND_TIMEOUT_S) -> Any:
        """Return the JSON output of `veery WORDS...` on `node`. Raises Failed."""
        return json.loads((await self.veery(node, *words, deadline=deadline)).out)

    def client(self, node: str, *, deadline: float = _COMMAND_TIMEOUT_S) -> Client:
        """Return a client for the HTTP API of `node`'s daemon."""
        return Client(Address(self.plan.home(node) / "run" / "api.sock"), deadline=deadline)

    def enter(self, node: str, argv: Sequence[str | Path]) -> list[str | Path]:
        """Return the command line that runs `argv` inside `node`; for a nested node in its dom0."""
        if self.plan.nested(node):
            return self.nested(node).enter(argv)
        return hosts.enter(self.plan.namespace(node), argv)

    def nested(self, node: str) -> Nested:
        """Return the nested node `node`."""
        return Nested(self.plan, self.plan.node(node))

    def environ(self, node: str) -> dict[str, str]:
        """Return the environment that `veery lab exec` adds: the node's settings, and veery's programs in PATH."""
        return hosts.environ(self.plan, node)

    def members(self, node: str) -> tuple[Member, ...]:
        """Return the processes on `node`; for a nested node its outer QEMU and the processes that serve it outside."""
        return hosts.members_of(self.plan, node)

    def log(self, node: str, name: str = "veeryd") -> Path:
        """Return the log file of a service that the lab itself starts on `node`."""
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
        client = self.client(node, deadline=5.0 * self._deadline_factor(node))

        async def answers() -> str:
            if process is not None and not process.alive():
                raise Failed(
                    f"veeryd on {node} ended at once: {self._last_log_line(node)}", hint=f"see {self.log(node)}"
                )
            try:
                await asyncio.to_thread(client.get, "/v1/nodes")
            except VeeryError as error:
                return error.message
            return ""

        within = _READY_TIMEOUT_S * self._deadline_factor(node)
        await _until(answers, f"veeryd on {node} does not answer", hint=f"see {self.log(node)}", within=within)

    async def healthy(self) -> None:
        """Return once every node sees every other as alive, and every voter has its vote. Raises Failed."""
        within = _READY_TIMEOUT_S * max(self._deadline_factor(node.name) for node in self.plan.nodes)
        message = f"the cluster of lab {self.plan.lab} is incomplete"
        await _until(self._fault, message, hint=f"see {self.plan.folder}", within=within)

    async def _fault(self) -> str:
        """Return what the cluster lacks, "" if nothing."""
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
        """Make and start the nested nodes, if there are any."""
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
        report("waiting for the cluster to be complete", 0.9)
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

    def _deadline_factor(self, node: str) -> int:
        return _NESTED_FACTOR if self.plan.nested(node) else 1

    def _program(self, node: str, name: str) -> Path:
        """Return the path of one of veery's programs: beside this process's Python, or in dom0."""
        if self.plan.nested(node):
            return Path("/usr/local/bin", name)
        return self.programs.get(node, Path(sys.executable).parent) / name

    def _keep_logs(self) -> Path | None:
        """Save the nodes' logs of a lab that did not start; return their folder, None if there are none."""
        kept = self.plan.folder.parent.parent / "failed" / self.plan.lab
        shutil.rmtree(kept, ignore_errors=True)
        for node in self.plan.nodes:
            for path in self.plan.home(node.name).glob("*/*.log"):
                (kept / node.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / node.name)
        return kept if kept.exists() else None

    def _last_log_line(self, node: str) -> str:
        with suppress(OSError):
            rows = self.log(node).read_text(errors="replace").strip().splitlines()
            return rows[-1] if rows else "its log is empty"
        return "its log is empty"


async def _accelerator() -> str:
    """Return QEMU's accelerator on this machine. It is determined once a boot, for all nodes of all labs."""
    return (await machine.find(Qemu(), lab_folder().parent.parent / "qemu.json")).accel


def _furnish(drawn: Plan, node: Machine, accelerator: str, *, older: bool) -> None:
    """Make a node's folders and its settings file."""
    home = drawn.home(node.name)
    for name in ("etc", "lib", "run", "log", "sensors"):
        (home / name).mkdir(parents=True)
    rows = [
        f"# node {node.name} of lab {drawn.lab}, written by veery lab up",
        f"state = {_quoted(home / 'lib')}",
        f"run = {_quoted(home / 'run')}",
        *(SLOW_SETTINGS if drawn.driver == "xen" else ()),
        "",
        "[qemu]",
        f'accel = "{accelerator}"',
        'user = ""',  # as root on every machine, even if veery's package is installed there
    ]
    if not older:  # versions before the sensors refuse this table
        rows += ["", "[health]", f"root = {_quoted(drawn.sensors(node.name))}", "pace = 0.1"]
    if Role.HYPERVISOR in node.roles:  # as the seed's xend-config.sxp
        rows += ["", "[relocation]", f'address = "{node.address}"', "port = 8002", 'hosts_allow = ""']
    if Role.STORAGE in node.roles:
        rows += ["", "[storage]", f"pool = {_quoted(home / 'lib' / 'volumes')}"]
        if kernel := guest.find():
            rows += ["", "[image]", f"kernel = {_quoted(kernel.kernel)}", f"modules = {_quoted(kernel.modules)}"]
    write_atomic(drawn.settings(node.name), "\n".join(rows) + "\n", mode=0o644)


def _quoted(path: Path) -> str:
    return json.dumps(str(path))  # TOML's basic strings and JSON strings are equal for paths


async def _all(works: Sequence[Awaitable[None]]) -> None:
    """Await `works` together; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(_one(work))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _one(work: Awaitable[None]) -> None:
    await work


async def _until(check: Callable[[], Awaitable[str]], message: str, *, hint: str, within: float) -> None:
    """Call `check` until it returns "". Raises Failed with `message` and its last answer after `within` seconds."""
    ends = time.monotonic() + within
    while why := await check():
        if time.monotonic() > ends:
            raise Failed(f"{message}: {why}", hint=hint)
        await asyncio.sleep(0.05)
