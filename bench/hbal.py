"""Ganeti's hbal as another planner: writes a described cluster in hbal's text format, runs hbal, reads its answer.

The format, seen by running hbal 3.0.2: groups, nodes, instances, tags and policies, separated by empty lines; columns
separated by `|`. Without secondary nodes hbal only migrates. hbal knows no groups that stay together and no lists of
nodes; a group that stays apart is an exclusion tag."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from veery.balance.model import Cluster
from veery.errors import Failed
from veery.lab.apt import Report
from veery.lab.packages import cache, private_apt
from veery.model.ha import GroupKind

PACKAGE = "ganeti-htools"

DEADLINE_S = 1800
_PROGRAM = "usr/lib/ganeti/*/usr/bin/hbal"
_UUID = "11111111-2222-3333-4444-555555555555"
_POLICY = "|1,1,0,0,0,0|1,1,0,0,0,0;99999999,512,1048576,16,8,12|ext,diskless|999.0|999.0"
_MOVE = re.compile(r"^\s*\d+\. (\S+)\s+(\S+)\s+=> (\S+)\s", re.MULTILINE)
_SCORE = re.compile(
    r"Initial coefficients: overall ([0-9.]+)|Cluster is already well balanced \(initial score ([0-9.]+)"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """hbal's `moves` (domain, target), and the score of the cluster that it was given."""

    moves: tuple[tuple[str, str], ...]
    score: float


def text(cluster: Cluster, where: Mapping[str, str]) -> str:
    """Return `cluster` in hbal's text format, with the domains on the nodes `where`."""
    used = dict.fromkeys(cluster.nodes, 0)
    for name, node in where.items():
        used[node] += cluster.domains[name].memory
    lines = [f"default|{_UUID}|preferred||", ""]
    for number, node in enumerate(cluster.nodes.values()):
        free = node.room - used[node.name]
        role = "M" if number == 0 else "N"
        lines.append(f"{node.name}|{node.memory}|{node.reserved}|{free}|0|0|{node.cores}|{role}|{_UUID}|1||N|0|0|1.0")
    lines.append("")
    for name, node in where.items():
        domain = cluster.domains[name]
        tags = ",".join(f"apart:{group}" for group in domain.groups)
        lines.append(f"{name}|{domain.memory}|0|{domain.vcpus}|running|Y|{node}||ext|{tags}|0")
    lines += ["", "htools:iextags:apart", "", _POLICY, "default" + _POLICY, ""]
    return "\n".join(lines)


def loads(cluster: Cluster) -> str:
    """Return the file for hbal's -U: each domain's share of a node. Only clusters with equal nodes have one."""
    cores = {node.cores for node in cluster.nodes.values()}
    if len(cores) != 1:
        raise ValueError("hbal adds loads of domains and does not know the size of a node")
    size = cores.pop()
    return "".join(f"{domain.name} {domain.load / size:.6f} 0 0 0\n" for domain in cluster.domains.values())


def fetch(report: Report) -> Path:
    """Return the path of hbal: the installed one, or one that is downloaded and unpacked. Raises Refused, Failed."""
    final = cache() / "hbal"
    for tree in (Path("/"), final):
        for path in sorted(tree.glob(_PROGRAM)):
            return path
    apt, _ = private_apt()
    apt.update(report)
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=final.parent) as name:
        scratch, tree = Path(name), Path(name) / "tree"
        report("downloading hbal", 0.3)
        for package in apt.gather((PACKAGE,), scratch):
            _run("dpkg", "-x", str(package), str(tree))
        shutil.rmtree(final, ignore_errors=True)
        tree.rename(final)
    for path in sorted(final.glob(_PROGRAM)):
        return path
    raise Failed(f"{PACKAGE} has no hbal", hint=f"ls -R {final}")


@dataclass(frozen=True, slots=True)
class Hbal:
    """hbal at `program`. Its files are in `folder`."""

    program: Path
    folder: Path

    def plan(self, cluster: Cluster, most: int) -> Answer:
        """Let hbal plan at most `most` moves. Raises Failed."""
        return self._ask(cluster, {name: domain.node for name, domain in cluster.domains.items()}, most)

    def score(self, cluster: Cluster, where: Mapping[str, str]) -> float:
        """Return hbal's score of `cluster` with the domains on the nodes `where`. Raises Failed."""
        return self._ask(cluster, where, 0).score

    def _ask(self, cluster: Cluster, where: Mapping[str, str], most: int) -> Answer:
        if any(group.kind is not GroupKind.APART or group.nodes for group in cluster.groups.values()):
            raise ValueError("hbal knows groups that stay apart, and no others")
        data, loaded = self.folder / "cluster.data", self.folder / "loads"
        data.write_text(text(cluster, where))
        load = ["--ignore-dynu"]
        if any(domain.load for domain in cluster.domains.values()):
            loaded.write_text(loads(cluster))
            load = ["-U", str(loaded)]
        root = str(self.program).partition("/usr/lib/ganeti/")[0]
        here = (
            f"LD_LIBRARY_PATH={root}/usr/lib/{platform.machine()}-linux-gnu:{root}/lib/{platform.machine()}-linux-gnu"
        )
        words = ("-t", str(data), *load, "--no-disk-moves", "-v", "-v", "-l", str(most))
        return read(_run("env", here, str(self.program), *words))


def read(told: str) -> Answer:
    """Return what hbal printed with -v -v. Raises Failed."""
    found = _SCORE.search(told)
    if found is None:
        raise Failed(f"hbal does not print a score: {told.strip()[-300:]}", hint="is it hbal 3.0?")
    return Answer(tuple((name, target) for name, _, target in _MOVE.findall(told)), float(found[1] or found[2]))


def _run(*words: str) -> str:
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=DEADLINE_S)
    if done.returncode:
        raise Failed(f"{words[0]}: {(done.stderr or done.stdout).strip()[-300:]}", hint="is the disk full?")
    return done.stdout
