"""A second disk of the domain: a file that only its node has, on a filesystem with less room than the guest writes."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from proof import ASKED, HYPERVISORS, SETTLE

from veery.host.run import run
from veery.lab import faults
from veery.lab.services import Lab
from veery.lab.shell import Shell

DISK_MIB, WRITTEN_MIB, ROOM_MIB, MORE_ROOM_MIB = 16, 8, 2, 64
DOES = (  # once, however often it is called
    "mkdir /tmp/full || exit",
    f"tr '\\0' x </dev/zero | head -c {WRITTEN_MIB << 20} >/dev/vdb",
    "sync",
    "touch /tmp/full/done",
)
REASON = "disk-xvdb: No space left on device"
WRITES = "sh /tmp/fill >/dev/null 2>&1 &"


@dataclass
class ExtraDisk:
    """The disk of domain `domain`, and its two folders, one a node."""

    lab: Lab
    domain: str
    folder: Path
    mounted: list[Path] = field(default_factory=list)

    def of(self, node: str) -> Path:
        """The folder where `node` has it, or will have it."""
        return self.folder / node

    def goes_to(self, node: str) -> tuple[str, ...]:
        """The options of a move to `node` that takes it along."""
        return "--with-disks", "--disk-dir", str(self.of(node))

    async def attach(self, node: str) -> None:
        """Plug it into the domain, which runs on `node`, and teach the guest to write more than there is room for."""
        for each in HYPERVISORS:
            self.of(each).mkdir(parents=True, exist_ok=True)
            await run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_MIB}m", "disk", self.of(each)], deadline=20)
            self.mounted.append(self.of(each))
        path = self.of(node) / "disk.raw"
        with path.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        await self.lab.veery(node, "block-attach", self.domain, f"{path},raw,xvdb,w")
        async with Shell(self.lab.client(node).address, self.domain) as shell:
            await shell.ready()
            for _ in range(ASKED):
                lines = "; ".join(f'echo "{line}" >>/tmp/fill' for line in DOES)
                await shell.run(f"rm -rf /tmp/fill /tmp/full; {lines}")
                if (await shell.run("cat /tmp/fill")).splitlines() == list(DOES):
                    break
            else:
                raise AssertionError("the guest's line loses what is typed")
            await self._guest(shell, "[ -b /dev/vdb ] && echo there", "there")

    async def make_room(self, node: str) -> None:
        """Let the filesystem of `node` grow."""
        await run(["mount", "-o", f"remount,size={MORE_ROOM_MIB}m", self.of(node)], deadline=20)

    async def whole(self, node: str) -> None:
        """Return when all that the guest wrote is on its disk on `node`."""
        async with Shell(self.lab.client(node).address, self.domain) as shell:
            await shell.ready()
            await self._guest(shell, "[ -e /tmp/full/done ] && echo written", "written")
            count = f"head -c {WRITTEN_MIB << 20} /dev/vdb | tr -cd x | wc -c"
            await self._guest(shell, f"echo 3 >/proc/sys/vm/drop_caches; {count}", str(WRITTEN_MIB << 20))

    async def detach(self, node: str) -> None:
        """Unplug it from the domain, which runs on `node`; nothing is left of it."""
        await self.lab.veery(node, "block-detach", self.domain, "xvdb")
        await self.clear()

    async def clear(self) -> None:
        """Take both folders away, whoever still has a file in them open."""
        while self.mounted:
            await run(["umount", "--lazy", self.mounted.pop()], deadline=20)

    async def _guest(self, shell: Shell, command: str, wanted: str) -> None:
        """Return when the guest answers `wanted`."""
        end, said = time.monotonic() + SETTLE, ""
        while time.monotonic() < end:
            if wanted in (said := await shell.run(command, deadline=SETTLE)).split():
                return
            await asyncio.sleep(0.3)
        raise AssertionError(f"{command}: the guest says {said!r}")


@dataclass
class Standing:
    """The domain on `node`, stopped by its disk."""

    disk: ExtraDisk
    node: str

    async def reason(self) -> str:
        """Why the domain stands on the node; "" where it does not, or is not there."""
        client = self.disk.lab.client(self.node, deadline=30)
        rows = (await asyncio.to_thread(client.get, "/v1/domains"))["domains"]
        found = [row for row in rows if row["name"] == self.disk.domain and row["state"] == "paused"]
        return str(found[0]["reason"]) if found else ""

    async def comes(self) -> None:
        """Return once it stands, and see that the reason is its disk's."""
        end = time.monotonic() + SETTLE
        while (reason := await self.reason()) != REASON:
            assert time.monotonic() < end, f"not within {SETTLE:g} s: its disk stops it on {self.node}: {reason!r}"
            await asyncio.sleep(0.1)

    async def why(self, *words: str) -> str:
        """What `veery why` says, once all of `words` are in it: the brain hears of a state a moment later."""
        end, said = time.monotonic() + SETTLE, ""
        while time.monotonic() < end:
            said = (await self.disk.lab.veery(self.node, "why", self.disk.domain, check=False)).out
            if all(word in said for word in words):
                return said
            await asyncio.sleep(0.3)
        raise AssertionError(f"not in what why says: {words}: {said}")

    async def follows_the_hint(self) -> None:
        """It stands again where nothing has changed, and goes on where there is room. A restart of the node's daemon
        between the two forgets nothing."""
        lab, name = self.disk.lab, self.disk.domain
        said = await self.why(f"stopped by an error of its disk ({REASON})")
        hint = re.search(rf"to try again: veery ((?:--node \S+ )?unpause {name})", said)
        assert hint, said
        log = lab.log(self.node)
        before = self._stops(log)
        told = await lab.veery(self.node, *hint[1].split(), check=False)
        assert told.code == 0 or ("stopped it again" in told.err and REASON in told.err), told  # 0: it stops later
        end = time.monotonic() + SETTLE
        while self._stops(log) == before:
            assert time.monotonic() < end, "let go without room, it did not stop again"
            await asyncio.sleep(0.1)
        await self.comes()
        await faults.kill(lab, self.node, "veeryd")
        await lab.start(self.node)
        await self.comes()
        await self.disk.make_room(self.node)
        await lab.veery(self.node, *hint[1].split())

    def _stops(self, log: Path) -> int:
        return log.read_bytes().count(b"domain=%s is stopped: disk-xvdb" % self.disk.domain.encode())
