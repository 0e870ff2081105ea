"""The seed's experiment, end to end, on real parts, printed step by step or as one JSON object.

Every step is a user's `veery` command on a node. Only the client's probe, the login test and the input on the console
are the lab's own."""

from __future__ import annotations

import asyncio
import json
import platform
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

import veery
from veery.client.address import Address, lab_folder
from veery.config.settings import DEFAULT_PATH
from veery.errors import Failed, Refused, VeeryError
from veery.host.run import Result
from veery.lab import guest as kernels
from veery.lab import hosts, packages
from veery.lab.guest import Guest
from veery.lab.narrator import Narrator
from veery.lab.plan import BRIDGE, CLIENT, CLIENT_ADDRESS, DOMAIN_ADDRESS
from veery.lab.probe import Probe
from veery.lab.services import Lab
from veery.lab.shell import Shell
from veery.lab.xen import dom0

NAME = "busybox"
INTERVAL_S = 0.002  # between two probes
INTERVAL_NESTED_S = 0.05  # with a shorter one, probes would be a nested host's main work
_SETTLE_S = 0.4  # the client continues to probe for this time after a move
_COMMAND_TIMEOUT_S = 120.0

_FILE = """\
kernel = "{kernel}"
ramdisk = "{ramdisk}"
name = "busybox"
memory = "{memory}"
vcpus = 1
disk = ['volume=busybox,vdev=xvda,access=w']
root = "/dev/xvda ro"
extra = "selinux=0 init=/bin/sh"
vif = ['bridge={bridge}']
on_crash = "destroy"
on_reboot = "destroy"
on_poweroff = "destroy"
"""


def run(name: str, *, as_json: bool, driver: str = "qemu") -> int:
    """Run the demo in lab `name`, and remove the lab; return 0 if every check held, else 1. With the driver xen the
    hypervisors are nested Xen hosts."""
    story = Narrator(None if as_json else Console(highlight=False))
    demo = Demo(story, driver)
    error: VeeryError | None = None
    try:
        asyncio.run(_until_ended(demo, name))
    except VeeryError as raised:
        if not as_json:
            raise
        error = raised
    good = error is None and all(story.checks.values())
    if as_json:
        print(json.dumps(demo.result(error), indent=2))
    else:
        demo.tables()
        held = sum(story.checks.values())
        story.note(f"{held} of {len(story.checks)} checks held; the lab is removed")
    return 0 if good else 1


async def _until_ended(demo: Demo, name: str) -> None:
    """Run `demo`; SIGTERM ends it like Ctrl-C, and everything is removed."""
    task = asyncio.ensure_future(demo.play(name))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise Failed("the demo was interrupted", hint="its lab is removed; run it again") from None


@dataclass
class Demo:
    """One run of the demo. `moves` and `versions` are parts of the JSON output."""

    story: Narrator
    driver: str = "qemu"
    moves: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    _lab: Lab | None = None
    _before: dict[str, str] = field(default_factory=dict)
    _typed: float = 0.0  # monotonic second at which `_before` was read

    @property
    def lab(self) -> Lab:
        """Return the lab, while it exists."""
        assert self._lab is not None
        return self._lab

    @property
    def _xen(self) -> bool:
        return self.driver == "xen"

    @property
    def _interval(self) -> float:
        return INTERVAL_NESTED_S if self._xen else INTERVAL_S

    async def play(self, name: str) -> None:
        """Run all steps, and remove the lab in any case. Raises the error that stopped it."""
        guest = kernels.find()
        if guest is None:
            raise Refused("there is no guest kernel yet", hint="make setup")
        await hosts.sweep(lab_folder().parent)
        where = "nested Xen hosts" if self._xen else "in network namespaces of this machine"
        with self.story.step(
            f"Two nodes and a storage server, {where}",
            "three machines; ifcfg-xenbr0 and xend-config.sxp (xend-relocation-port 8002) on two of them",
        ):
            with self.story.progress("building the lab") as report:
                self._lab = await Lab.up(name, driver=self.driver, report=report)
            self.story.command("here", f"veery lab up --lab {name}" + (" --driver xen" if self._xen else ""))
            for node in self.lab.plan.nodes:
                roles = ", ".join(role.value for role in node.roles)
                self.story.note(f"{node.name:<6} {node.address:<12} {BRIDGE} {node.mac}  {roles}")
        try:
            await self._storage()
            await self._start(guest)
            await self._move_and_look()
            await self._versions(guest)
        finally:
            await self.lab.down()

    # ---- the seed's part one: shared storage
    async def _storage(self) -> None:
        with self.story.step(
            "A target and its LUN, with an ACL and a CHAP password for each node",
            "vim /etc/tgt/targets.conf; service tgtd start; tgtadm --op show",
        ):
            await self._veery("stor", "volume", "create", NAME, "1G")
            served = (await self.lab.json("stor", "target", "list", "--json"))["stor"]
            (target,) = (one for one in served if ":heartbeat:" not in one["iqn"])
            self.story.command("stor", "veery target list --json")
            lun, names = target["luns"][-1], [name.rpartition(":")[2] for name in target["acl"]]
            self.story.note(f"target {target['iqn']}, LUN {lun['lun']}, {lun['size_mb']} MB, {lun['path']}")
            self.story.note(f"ACL {', '.join(target['acl'])}; CHAP accounts {', '.join(target['accounts'])}")
            closed = sorted(names) == sorted(target["accounts"]) == ["test1", "test2"]
            self.story.check(
                "target_has_acl_and_chap", closed, "only test1 and test2 can log in, each with its password"
            )
        with self.story.step(
            "Both nodes reach it", "iscsiadm -m discovery -t st -p 172.16.31.3; iscsiadm -m node -T ... -l"
        ):
            for node in ("test1", "test2"):
                seen = await self._reach(node)
                good = seen.code == 0 and int(seen.out or 0) == 1 << 30
                self.story.check(f"{node}_reaches_the_lun", good, f"{node} logs in and sees 1 GiB")
            wrong = await self._reach("test1", "a-wrong-password")
            refused = wrong.code != 0 and ("Authentication" in wrong.err or "authorization" in wrong.err)
            self.story.check("wrong_password_refused", refused, "a wrong password is refused")

    @property
    def _memory(self) -> int:
        """Return the domain's memory in MiB: a nested host has less."""
        return 128 if self._xen else 512

    def _file(self, node: str) -> str:
        """Return the path of the domain's file on `node`."""
        return f"/etc/xen/{NAME}" if self._xen else str(self.lab.plan.home(node) / "etc" / NAME)

    async def _reach(self, node: str, *password: str) -> Result:
        settings, python = self.lab.plan.settings(node), Path(sys.executable)
        if self._xen:
            settings, python = DEFAULT_PATH, Path("python3")
        words: list[str | Path] = [python, "-m", "veery.lab.reach", settings, NAME, *password]
        return await self.lab.run(node, words, check=False)

    # ---- parts two and three: the domain
    async def _start(self, guest: Guest) -> None:
        with self.story.step(
            "A busybox root filesystem, built into the volume",
            "dd, mke2fs, make && make install, cp -a _install/* /mnt, cp xen-netfront.ko",
        ):
            await self._veery("stor", "image", "build", NAME, "--volume", NAME, slow=True)
        with self.story.step("The domain's file", "vim /etc/xen/busybox; scp it to test2"):
            kernel, ramdisk = (
                (dom0.GUEST + "/vmlinuz", dom0.GUEST + "/initramfs") if self._xen else (guest.kernel, guest.ramdisk)
            )
            text = _FILE.format(kernel=kernel, ramdisk=ramdisk, memory=self._memory, bridge=BRIDGE)
            for node in ("test1", "test2"):
                await self.lab.run(node, ["tee", self._file(node)], stdin=text.encode())
            self.story.command("test1", f"cat {NAME}", text)
        with self.story.step("The domain starts on test1", "xm create -c busybox"):
            await self._veery("test1", "create", self._file("test1"), shown=f"create {NAME}")
            with self.story.waiting("booting"):
                async with self._shell("test1") as shell:
                    await shell.ready()
            listed = await self._veery("test1", "list")
            self.story.check("runs_on_test1", _row(listed) is not None, "it runs on test1")
        with self.story.step("An address is typed into its console", f"ifconfig eth0 {DOMAIN_ADDRESS} up"):
            async with self._shell("test1") as shell:
                await self._type(shell, "mount -o remount,rw /")
                await self._type(shell, f"ifconfig eth0 {DOMAIN_ADDRESS} up")
                await self._type(shell, "echo written on test1 > /note; sync")
                self._before = await self._look(shell, show=True)
            self._typed = time.monotonic()
            self.story.check("address_set", self._before["address"] == DOMAIN_ADDRESS, f"eth0 has {DOMAIN_ADDRESS}")

    # ---- part four: moving
    async def _move_and_look(self) -> None:
        probe = await Probe.start(partial(self.lab.enter, CLIENT), [DOMAIN_ADDRESS], interval=self._interval)
        try:
            with self.story.step(
                f"A client outside sends it a request every {self._interval * 1000:g} ms", "(the seed had no client)"
            ):
                await probe.answered(deadline=60)
                self.story.check("client_is_answered", True, f"{CLIENT_ADDRESS} gets answers from {DOMAIN_ADDRESS}")
            with self.story.step("It moves, live, to test2", "xm migrate -l busybox 172.16.31.2"):
                await self._migrate(probe, "test1", "test2")
            with self.story.step("It is on test2 now, and nowhere else", "xm list on both nodes"):
                here, there = [_row(await self._veery(node, "list")) for node in ("test1", "test2")]
                self.story.check("gone_from_test1", here is None, "test1 no longer has it")
                self.story.check("runs_on_test2", there is not None, "test2 runs it")
            with self.story.step("Its console on test2 shows the same machine", "xm console busybox; ifconfig"):
                await self._compare("test2")
            with self.story.step(
                "A second start of it, on test1, is refused", "xm create -c busybox on test1 and on test2, on one disk"
            ):
                await self._create_again()
            with self.story.step("And back again", "(the seed stopped here)"):
                await self._migrate(probe, "test2", "test1")
                back = _row(await self._veery("test1", "list"))
                self.story.check("back_on_test1", back is not None, "it runs on test1 again")
                async with self._shell("test1") as shell:
                    note = await shell.run("cat /note")
                self.story.check("file_came_back", "on test2" in note, "and has the file as written on test2")
            reading = (await probe.read())[DOMAIN_ADDRESS]
            answering = reading.age_ms is not None and reading.age_ms < 1000
            self.story.check("client_still_answered", answering, "the client is still answered")
        finally:
            await probe.stop()

    async def _migrate(self, probe: Probe, source: str, target: str) -> None:
        await probe.mark()
        out = await self._veery(source, "migrate", "--live", NAME, target, "--json", slow=True)
        await asyncio.sleep(_SETTLE_S)
        reading = (await probe.read())[DOMAIN_ADDRESS]
        report = json.loads(out)
        self.moves.append(
            {
                "from": source,
                "to": target,
                "total_ms": report["total_ms"],
                "downtime_ms": report["downtime_ms"],
                "gap_ms": reading.gap_ms,
                "bytes": report["bytes"],
                "rounds": report["rounds"],
                "phases": report["phases"],
            }
        )
        answered = reading.gap_ms is not None and reading.age_ms is not None and reading.age_ms < 1000
        self.story.check(
            f"moved_to_{target}",
            report["state"] == "done" and answered,
            f"in {report['total_ms']:.0f} ms; the longest gap for the client was {reading.gap_ms} ms",
        )

    async def _compare(self, node: str) -> None:
        async with self._shell(node) as shell:
            await shell.run("echo 3 > /proc/sys/vm/drop_caches")  # so that the file is read from the disk
            after = await self._look(shell, show=True)
            await self._type(shell, "echo and on test2 >> /note && sync && cat /note")
            note = await shell.run("cat /note")
        before, passed = self._before, time.monotonic() - self._typed
        went_on = float(before["uptime"]) < float(after["uptime"]) < float(before["uptime"]) + passed + 5
        check = self.story.check
        check("same_address", after["address"] == before["address"] != "", f"the same address, {after['address']}")
        check("same_mac", after["mac"] == before["mac"] != "", f"the same MAC, {after['mac']} (the seed's had changed)")
        check("uptime_went_on", went_on, f"its uptime continued, from {before['uptime']} to {after['uptime']} s")
        check("same_boot", after["boot"] == before["boot"] != "", "and its boot id is the same")
        check("file_readable", "written on test1" in after["note"], "the file written on test1 exists")
        check("file_writable", "and on test2" in note, "and is writable")

    async def _create_again(self) -> None:
        result = await self.lab.veery("test1", "create", self._file("test1"), check=False)
        self.story.command("test1", f"veery create {NAME}", result.err)
        refused = result.code == 1 and "test2" in result.err
        self.story.check("second_create_refused", refused, "refused: test2 owns it")

    # ---- the end
    async def _versions(self, guest: Guest) -> None:
        software = (await asyncio.to_thread(self.lab.client("test1").get, "/v1/host"))["host"]
        found = packages.installed(("tgt", "etcd-server", "busybox-static"))
        self.versions = {
            "veery": veery.__version__,
            "python": platform.python_version(),
            "accelerator": software["accelerator"],
            **software["software"],
            **({"xen_version": software["software"]["xen"]} if self._xen else {}),
            "guest kernel": guest.version,
            **{name.partition("-")[0]: version for name, version in found.items()},
        }

    def result(self, error: VeeryError | None) -> dict[str, Any]:
        """Return the JSON object; `error` is the error that stopped the demo."""
        result: dict[str, Any] = {"moves": self.moves, "checks": self.story.checks, "versions": self.versions}
        if error is not None:
            result["error"] = {"kind": error.kind, "message": error.message, "hint": error.hint}
        return result

    def tables(self) -> None:
        """Print the figures of the moves, and the versions."""
        if not self.moves:
            return
        figures: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
            ("total", lambda move: f"{move['total_ms']:.0f} ms"),
            ("downtime reported by the hypervisor", lambda move: f"{move['downtime_ms']:.0f} ms"),
            ("longest gap the client saw", lambda move: f"{move['gap_ms']} ms"),
            ("copied", lambda move: f"{move['bytes'] / (1 << 20):.0f} MiB"),
            ("rounds", lambda move: str(move["rounds"])),
        ]
        if self._xen:  # xl reports neither the downtime nor the rounds
            figures = [figure for figure in figures if figure[0] in ("total", "longest gap the client saw", "copied")]
        rows = [[name, *(tell(move) for move in self.moves)] for name, tell in figures]
        for phase in self.moves[0]["phases"]:
            rows.append([f"  phase {phase}", *(f"{move['phases'].get(phase, 0):.0f} ms" for move in self.moves)])
        ways = [f"{move['from']} → {move['to']}" for move in self.moves]
        self.story.table(f"{NAME}, {self._memory} MiB, moved while it ran", ("", *ways), rows)
        self.story.note(", ".join(f"{name} {version}" for name, version in self.versions.items()))

    # ---- small things
    async def _veery(self, node: str, *words: str, shown: str = "", slow: bool = False) -> str:
        """Run veery on a node; print the command and its output, or for a `slow` one show a progress bar. Raises
        Failed."""
        typed = f"veery {shown or ' '.join(words)}"
        if slow:
            with self.story.progress(typed) as report:
                out = await self.lab.watch(node, *words, report=report, deadline=_COMMAND_TIMEOUT_S)
            self.story.command(node, typed)
        else:
            out = (await self.lab.veery(node, *words, deadline=_COMMAND_TIMEOUT_S)).out
            self.story.command(node, typed, out)
        return out

    def _shell(self, node: str) -> Shell:
        return Shell(Address(self.lab.plan.home(node) / "run" / "api.sock"), NAME)

    async def _type(self, shell: Shell, line: str) -> None:
        self.story.command("busybox", line, await shell.run(line))

    async def _look(self, shell: Shell, *, show: bool) -> dict[str, str]:
        """Read what identifies the domain: its address and MAC, uptime, boot id, and the file."""
        card = await shell.run("ifconfig eth0")
        if show:
            self.story.command("busybox", "ifconfig eth0", "\n".join(card.splitlines()[:2]))
        address, mac = re.search(r"inet addr:(\S+)", card), re.search(r"HWaddr (\S+)", card)
        return {
            "address": address[1] if address else "",
            "mac": mac[1] if mac else "",
            "uptime": (await shell.run("cat /proc/uptime")).split()[0],
            "boot": (await shell.run("cat /proc/sys/kernel/random/boot_id")).strip(),
            "note": await shell.run("cat /note"),
        }


def _row(listed: str) -> str | None:
    """Return the domain's row in the output of `veery list`, or None."""
    return next((row for row in listed.splitlines() if row.split()[:1] == [NAME]), None)
