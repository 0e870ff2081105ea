"""Many moves there and back of a domain that writes memory and disk, and what must not grow by them.

python tests/faults/soak.py SOAK.json docs/faults.md     writes the figures of a run into the page"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from proof import HYPERVISORS, Proof, keys_of

from veery.lab import faults
from veery.lab.members import Member
from veery.lab.plan import DOMAIN_ADDRESS
from veery.lab.shell import Shell

BEGIN, END = "<!-- made by make soak: begin -->", "<!-- made by make soak: end -->"
WARM = 10  # moves before the first reading: pools, caches and code are loaded by then
ROUND = 10  # moves between two looks at everything
REPORTS = 100  # reports of ended moves that a node keeps
WRITE_MEMORY = (
    "mkdir -p /mem; mount -t tmpfs -o size=24m mem /mem; dd if=/dev/urandom of=/mem/fixed bs=64k count=64 2>/dev/null; "
    "(while :; do dd if=/dev/urandom of=/mem/moving bs=64k count=16 conv=notrunc 2>/dev/null; sleep 0.1; done) "
    "</dev/null >/dev/null 2>&1 & echo $! >/mem/pid"
)
SUM = "md5sum </mem/fixed"
STOP_WRITING = "kill $(cat /mem/pid); sleep 0.5; umount /mem"

BOUNDS = {  # name, as of a reading: how much more there may be than after the warm-up
    "open files": 4,
    "threads": 2,
    "memory, MiB": 12.0,
    "taps": 0,
    "QEMU processes": 0,
    "connections at tgtd": 0,
    "open files of tgtd": 1,
    "keys in etcd": 0,
    "files in run": 0,
    "files in state": 0,
}


@dataclass
class Soak:
    """What a run came to: readings by name and place (first, last), the gaps in ms, seconds in all."""

    moves: int
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def beyond(self) -> list[str]:
        """What grew beyond its bound."""
        return [
            f"{name}: {self.first[name]:g}, then {self.last[name]:g}, bound +{bound:g}"
            for name, bound in ((name, BOUNDS[name.partition(" of veeryd")[0]]) for name in self.first)
            if self.last[name] > self.first[name] + bound
        ]


async def soak(proof: Proof, node: str, moves: int, *, first: dict[str, float] | None = None) -> Soak:
    """Move the domain, which runs on `node` and writes, `moves` times, an even number. `first`: the reading to compare
    with; without it the one after WARM moves."""
    lab, run = proof.lab, Soak(moves, first=first or {})
    async with Shell(lab.client(node).address, proof.domain) as shell:
        await shell.ready()
        await shell.run(WRITE_MEMORY)
        fixed = (await shell.run(SUM)).split()[-2]
    before, begun = await proof.alive(node), time.monotonic()
    for number in range(1, moves + 1):
        await proof.probe.mark()
        there = next(each for each in HYPERVISORS if each != node)
        await lab.veery(node, "migrate", "--live", proof.domain, there, deadline=120)
        node = there
        await proof.probe.answered(deadline=60)
        run.gaps.append((await proof.probe.read())[DOMAIN_ADDRESS].gap_ms or 0.0)
        if number % ROUND == 0:
            assert await proof.settled() == node
            run.last = await _reading(proof)
            run.first = run.first or run.last if number >= WARM else {}
    run.seconds = time.monotonic() - begun
    life = await proof.alive(node, before.count + moves)
    assert life.boot == before.boot, "it was booted anew"
    async with Shell(lab.client(node).address, proof.domain) as shell:
        await shell.ready()
        assert (await shell.run(SUM)).split()[-2] == fixed, "its memory has changed"
        await shell.run(STOP_WRITING)
    return run


async def _reading(proof: Proof) -> dict[str, float]:
    """Everything that might grow."""
    lab = proof.lab
    found: dict[str, float] = {}
    for node in (*HYPERVISORS, "stor"):
        (daemon,) = faults.find(lab, node, "veeryd")
        found[f"open files of veeryd on {node}"] = _handles(daemon)
        found[f"threads of veeryd on {node}"] = _status(daemon, "Threads")
        found[f"memory, MiB of veeryd on {node}"] = round(_status(daemon, "VmRSS") / 1024, 1)
    taps, qemus = 0, 0
    for node in HYPERVISORS:
        taps += len((await lab.run(node, ["ip", "-o", "link", "show", "type", "tun"])).out.splitlines())
        qemus += sum(member.program.startswith("qemu-system") for member in lab.members(node))
    found |= {"taps": taps, "QEMU processes": qemus}
    (tgtd,) = faults.find(lab, "stor", "tgtd")
    found["connections at tgtd"] = len((await lab.run("stor", ["ss", "-Htn", "sport = :3260"])).out.splitlines())
    found["open files of tgtd"] = _handles(tgtd)
    found["keys in etcd"] = len(await keys_of(proof.lab, ""))
    for folder in ("run", "lib"):
        files = [name for node in HYPERVISORS for name in proof.files(node) if name.startswith(folder)]
        found["files in run" if folder == "run" else "files in state"] = len(files)
    for node in HYPERVISORS:
        reports = len(list((lab.plan.home(node) / "lib" / "moves").iterdir()))
        assert reports <= REPORTS, f"{reports} reports on {node}"
    await asyncio.sleep(0)
    return found


def _handles(member: Member) -> int:
    return len(list(Path(f"/proc/{member.process.pid}/fd").iterdir()))


def _status(member: Member, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{member.process.pid}/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1])


def table(run: Soak) -> str:
    """The generated part of docs/faults.md."""
    gaps = sorted(run.gaps)
    rows = [
        f"{run.moves} moves in {run.seconds:.0f} s, {time.strftime('%F')}; silence heard outside: median "
        f"{gaps[len(gaps) // 2]:.0f} ms, 95 % {gaps[len(gaps) * 95 // 100]:.0f}, worst {gaps[-1]:.0f}.",
        "",
        f"| | after {WARM} moves | after {run.moves} | bound |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {run.first[name]:g} | {run.last[name]:g} | +{BOUNDS[name.partition(' of veeryd')[0]]:g} |"
        for name in run.first
    ]
    return "\n".join(rows)


def keep(run: Soak, path: Path) -> None:
    """Write a run's figures into a file."""
    path.write_text(json.dumps(asdict(run), indent=1))


def main(words: Iterable[str]) -> int:
    """Write the table into the page."""
    source, page = (Path(word) for word in words)
    before, _, rest = page.read_text().partition(BEGIN)
    made = table(Soak(**json.loads(source.read_text())))
    page.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
