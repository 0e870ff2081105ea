"""Prepares a machine to be a node (docs/hosts.md): observes what it lacks, decides the steps, and takes the safe ones.

Only steps that add something are taken: packages, and masks that keep the etcd and tgtd of Debian from starting with
their packages. A change of bridges, of the firewall, or of a running daemon is only shown. The administrator makes it,
because it may cut off this machine or others."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

from veery.config.settings import Settings
from veery.errors import Refused, VeeryError
from veery.host import owner
from veery.host.run import run
from veery.model.node import Role
from veery.network.bridge import Bridge, bridges
from veery.node import needs
from veery.storage.room import shares

ASK_S, INSTALL_S = 60.0, 3600.0
TABLE = "veery_ports"
USER = "QEMU's user"
PORTS = "2379, 2380, 3260, 8001, 8002"
UNITS = Path("etc/systemd/system")
_OWN_UNIT = ("etc/systemd/system/veeryd.service", "usr/lib/systemd/system/veeryd.service")


class State(StrEnum):
    """The state of a step."""

    READY = "ready"  # nothing to do
    MISSING = "missing"  # a node of these roles does not work without it
    ADVICE = "advice"  # the node works without it, but is safer with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `commands` do it and `undo` reverts it, one command a line. `safe`: `carry_out` may do it."""

    what: str
    state: State
    told: str
    commands: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    safe: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found on this machine. `packages`: versions by name. `enabled`, `running`, `masked`: units of Debian.
    `ruled`: the table of the ports is loaded. `pool_shared`: guests can fill the disk of the state. `account`: the user
    that QEMU runs as exists, or the settings name another."""

    roles: tuple[Role, ...]
    driver: str
    member: bool
    codename: str
    packages: Mapping[str, str]
    enabled: frozenset[str]
    running: frozenset[str]
    masked: frozenset[str]
    bridges: tuple[Bridge, ...]
    ruled: bool
    unit: bool
    pool: str
    pool_shared: bool
    account: bool = True


# ---- observe
async def observe(
    settings: Settings, roles: Collection[Role], *, driver: str, member: bool, root: Path = Path("/")
) -> Facts:
    """Observe this machine; change nothing. Raises Refused if it is not a Debian system."""
    form = "${Package}\t${db:Status-Status}\t${Version}\n"
    shown = await run(["dpkg-query", "-W", "-f", form, *needs.packages(tuple(Role))], deadline=ASK_S, check=False)
    rows = [row.split("\t") for row in shown.out.splitlines()]
    try:
        ruled = (await run(["nft", "list", "table", "inet", TABLE], deadline=ASK_S, check=False)).code == 0
    except Refused:  # not installed
        ruled = False
    units, folder = frozenset(needs.UNITS.values()), root / UNITS
    slices = [root / "sys/fs/cgroup" / each / "system.slice" for each in ("", "systemd", "unified")]
    pool = Path(settings.storage.pool or f"{settings.state}/volumes")
    state = next(each for each in (Path(settings.state), *Path(settings.state).parents) if each.exists())
    return Facts(
        roles=tuple(role for role in Role if role in roles),
        driver=driver,
        member=member,
        codename=_codename(root / "etc/os-release"),
        packages={name: version for name, status, version in rows if status == "installed"},
        enabled=units & {path.name for path in folder.glob("*.wants/*.service")},
        running=frozenset(unit for unit in units if any((each / unit).exists() for each in slices)),
        masked=frozenset(unit for unit in units if _leads_nowhere(folder / unit)),
        bridges=await bridges(),
        ruled=ruled,
        unit=any((root / name).exists() for name in _OWN_UNIT),
        pool=str(pool),
        pool_shared=shares(pool, state),
        account=settings.qemu.user != owner.AUTO or owner.has_account(),
    )


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and str(path.readlink()) == "/dev/null"


def _codename(path: Path) -> str:
    found = re.search(r"^VERSION_CODENAME=\"?(\w+)", path.read_text() if path.exists() else "", re.MULTILINE)
    return found[1] if found else ""


# ---- decide
def decide(facts: Facts) -> tuple[Step, ...]:
    """Return every step of docs/hosts.md, in order. Pure."""
    steps = [*_daemons(facts), _packages(facts), _unit(facts)]
    if Role.STORAGE in facts.roles:
        steps.append(_pool(facts))
    if Role.HYPERVISOR in facts.roles:
        steps += [*_user(facts), _bridge(facts)]
    return (*steps, _firewall(facts), _member(facts))


def lacking(facts: Facts) -> tuple[str, ...]:
    """Return the packages that are not installed, or too old."""
    wanted = needs.packages(facts.roles, facts.driver)
    return tuple(name for name in wanted if _too_old(facts.packages.get(name, ""), needs.LEAST.get(name, "")))


def _too_old(version: str, least: str) -> bool:
    return not version or _leading(version) < _leading(least)


def _leading(version: str) -> tuple[int, int]:
    """Return epoch and first number: (1, 10) of "1:10.0.2+ds-2~bpo12+1"."""
    match = re.match(r"(?:(\d+):)?(\d+)", version)
    return (int(match[1] or 0), int(match[2])) if match else (0, 0)


def _daemons(facts: Facts) -> list[Step]:
    found = []
    for package, unit in needs.UNITS.items():
        if package not in needs.packages(facts.roles, facts.driver):
            continue
        what = f"Debian's {unit}"
        if unit in facts.running or unit in facts.enabled:
            told = f"it {'runs' if unit in facts.running else 'starts at boot'}, on the port of veery's own"
            off, on = f"systemctl disable --now {unit}", f"systemctl enable --now {unit}"
            found.append(Step(what=what, state=State.MISSING, told=told, commands=(off,), undo=(on,)))
        elif package in facts.packages or unit in facts.masked:
            found.append(Step(what=what, state=State.READY, told="does not start"))
        else:
            told = "it would start when its package is installed"
            mask, unmask = f"systemctl mask {unit}", f"systemctl unmask {unit}"
            found.append(Step(what=what, state=State.MISSING, told=told, commands=(mask,), undo=(unmask,), safe=True))
    return found


def _packages(facts: Facts) -> Step:
    names = lacking(facts)
    if not names:
        return Step(what="packages", state=State.READY, told="all packages for its roles are installed")
    commands = tuple(" ".join(words) for words in _installs(facts, names))
    added = [name for name in names if name not in facts.packages]
    undo = (f"apt-get purge {' '.join(added)}",) if added else ()
    told = f"missing or too old: {' '.join(names)}"
    return Step(what="packages", state=State.MISSING, told=told, commands=commands, undo=undo, safe=True)


def _installs(facts: Facts, names: Sequence[str]) -> list[list[str]]:
    """Return the calls of apt-get. On Debian 12 QEMU comes from the backports."""
    install = ["apt-get", "install", "-y", "--no-install-recommends", "--no-remove"]
    late = [name for name in names if name in needs.LEAST and facts.codename == "bookworm"]
    rest = [name for name in names if name not in late]
    calls = [[*install, *rest]] if rest else []
    return [*calls, [*install, "-t", "bookworm-backports", *late]] if late else calls


def _unit(facts: Facts) -> Step:
    if facts.unit:
        return Step(what="veeryd.service", state=State.READY, told="systemd knows it")
    told = "systemd does not know it: install the package veery, or copy packaging/veeryd.service"
    return Step(what="veeryd.service", state=State.MISSING, told=told)


def _pool(facts: Facts) -> Step:
    if not facts.pool_shared:
        return Step(what="pool", state=State.READY, told=f"{facts.pool} is on a filesystem of its own")
    told = f"{facts.pool} shares a disk with veery's own state, and guests can fill it: use a filesystem of its own"
    return Step(what="pool", state=State.ADVICE, told=told)


def _user(facts: Facts) -> list[Step]:
    if facts.driver == "xen":
        return []
    if facts.account:
        return [Step(what=USER, state=State.READY, told="domains run as root only if the settings say so")]
    told = f"QEMU runs as root, because there is no user {owner.ACCOUNT}"
    command, undo = " ".join(("useradd", *owner.ADD_OPTIONS, owner.ACCOUNT)), f"userdel {owner.ACCOUNT}"
    return [Step(what=USER, state=State.ADVICE, told=told, commands=(command,), undo=(undo,), safe=True)]


def _bridge(facts: Facts) -> Step:
    up = [bridge.name for bridge in facts.bridges if bridge.up]
    if up:
        return Step(what="bridge", state=State.READY, told=f"up: {', '.join(up)}")
    told = "no bridge is up for guests. setup creates none, as a wrong one cuts this machine off: docs/hosts.md"
    return Step(what="bridge", state=State.MISSING, told=told)


def _firewall(facts: Facts) -> Step:
    if facts.ruled:
        return Step(what="firewall", state=State.READY, told=f"table inet {TABLE} is loaded")
    return Step(
        what="firewall",
        state=State.ADVICE,
        told="the ports of veery are open to every machine",
        commands=(
            "veery setup --rules ADDRESS,... >>/etc/nftables.conf",
            "nft --check --file /etc/nftables.conf",
            "systemctl enable --now nftables",
        ),
        undo=(f"nft delete table inet {TABLE}", f"remove the table {TABLE} from /etc/nftables.conf"),
    )


def _member(facts: Facts) -> Step:
    if facts.member:
        return Step(what="cluster", state=State.READY, told="this machine is a node")
    return Step(what="cluster", state=State.ADVICE, told="this machine is not a node yet: docs/hosts.md, The cluster")


def rules(addresses: Sequence[str], bridges: Sequence[Bridge]) -> str:
    """Return the rule set of docs/hosts.md for nodes with `addresses`. Traffic from a bridge to the node itself is
    dropped, if the bridge has no address of the node; otherwise that would cut the node off. Raises Refused."""
    found: dict[int, list[str]] = {4: [], 6: []}
    for address in addresses:
        try:
            found[ip_address(address).version].append(address)
        except ValueError as error:
            raise Refused(
                f"{address!r} is not an IP address", hint="veery node list shows the addresses of the nodes"
            ) from error
    sets, accepts = [], []
    for version, name, family in ((4, "nodes", "ip"), (6, "nodes6", "ip6")):
        if found[version]:
            elements = ", ".join(found[version])
            sets.append(
                f"    set {name} {{\n        type ipv{version}_addr\n        elements = {{ {elements} }}\n    }}"
            )
            accepts.append(f"        {family} saddr @{name} tcp dport {{ {PORTS} }} accept")
    free = [each.name for each in bridges if not any(not at.startswith("fe80:") for at in each.addresses)]
    lines = [
        *(f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{", *sets),
        "    chain input {",
        "        type filter hook input priority -10; policy accept;",
        '        iifname "lo" accept',
        *(f'        iifname "{name}" drop' for name in free),
        *(*accepts, f"        tcp dport {{ {PORTS} }} drop", "    }", "}"),
    ]
    return "\n".join(lines)


# ---- act
async def carry_out(facts: Facts, *, root: Path = Path("/")) -> None:
    """Take the safe steps that are missing: mask the daemons of packages that are not installed yet, install the
    packages, create the user for QEMU.

    Raises Failed with the step that failed. Earlier steps stay done, and another call continues."""
    for package, unit in needs.UNITS.items():
        wanted = package in needs.packages(facts.roles, facts.driver)
        path = root / UNITS / unit
        if wanted and package not in facts.packages and unit not in facts.masked and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to("/dev/null")  # same as `systemctl mask`; systemd reads it when the package is installed
    for words in _installs(facts, lacking(facts)):
        try:
            await run(words, deadline=INSTALL_S, env={"DEBIAN_FRONTEND": "noninteractive"})
        except VeeryError as error:
            suite = words[words.index("-t") + 1] if "-t" in words else ""
            source = f"add {suite} to /etc/apt/sources.list, then: " if suite else ""
            error.hint = error.hint or f"{source}apt-get update; then: veery setup"
            raise
    if any(step.safe for step in decide(facts) if step.what == USER):
        await run(["useradd", *owner.ADD_OPTIONS, owner.ACCOUNT], deadline=ASK_S)
