"""This node's etcd: its command line, and the check that it is ready. It outlives the daemon (host/process.py).

The flags are those of etcd 3.4 to 3.5 (Debian 12 and 13); the corruption check also has the flag of 3.6.
All ports require a certificate of the cluster's CA. The JSON gateway inside etcd calls etcd's own port with the
*server's* certificate. So that certificate is also valid for clients, and for the address that the call comes from."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import platform
import re
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from veery.cluster import restoring
from veery.cluster.identity import Identity, client_url, peer_url
from veery.cluster.store import StoreUnavailable
from veery.cluster.voters import Voters
from veery.config.settings import Settings
from veery.errors import Failed
from veery.host import crl, ports
from veery.host.process import Service

HEARTBEAT_MS = 200  # a member calls an election after ELECTION_MS without one
ELECTION_MS = 2000  # etcd docs, tuning: ten heartbeats; longer than a busy node's worst fsync
PROGRESS_INTERVAL_S = 2  # of progress notes on a quiet watch; a client's `quiet` must be well above
VERSION_TIMEOUT_S = 5.0  # for `etcd --version`
CHECK_INTERVAL = "10m"  # in etcd's syntax: the leader compares the members' hashes this often
SNAPSHOT_TRANSACTIONS = 5000  # kept in memory for slow members; etcd's default 100000 costs hundreds of MiB


def command(
    settings: Settings, identity: Identity, version: tuple[int, int] | None = None, *, former: Sequence[str] = ()
) -> list[str | Path]:
    """Return etcd's argv on this voter. `version`: etcd's version (None: ask etcd). etcd also listens at the addresses
    `former`. Raises Failed on a node that is no voter."""
    node, start = identity.node, identity.etcd
    if start is None:
        raise Failed(f"node {node.name} is no voter")
    state, folder = Path(settings.state), Path(settings.state) / "tls"
    client, peer = client_url(settings, node), peer_url(settings, node)
    before = [replace(node, address=address) for address in former]
    listen = [client, *(client_url(settings, each) for each in before)]
    if not ipaddress.ip_address(node.address).is_loopback:
        listen.append(f"https://127.0.0.1:{settings.etcd.client_port}")
    words: list[str | Path] = ["etcd", "--name", node.name, "--data-dir", state / "etcd"]
    words += ["--listen-client-urls", ",".join(listen), "--advertise-client-urls", client]
    at = [peer, *(peer_url(settings, each) for each in before)]
    words += ["--listen-peer-urls", ",".join(at), "--initial-advertise-peer-urls", peer]
    words += ["--initial-cluster", start.initial_cluster, "--initial-cluster-state", start.initial_cluster_state]
    words += ["--initial-cluster-token", identity.cluster.id]
    for side in ("", "peer-"):
        words += [f"--{side}client-cert-auth", f"--{side}trusted-ca-file", folder / "ca-cert.pem"]
        words += [f"--{side}cert-file", folder / "server-cert.pem", f"--{side}key-file", folder / "server-key.pem"]
        words += [f"--{side or 'client-'}crl-file", folder / crl.FILE]
    # A node with several addresses calls from any of them; only the CA of its certificate counts.
    words += ["--experimental-peer-skip-client-san-verification"]
    words += ["--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS), "--pre-vote"]
    # etcd's check would make every third voter wait 5 s (HealthInterval). It is not needed: a learner costs no
    # majority, a promotion checks in any case that the learner has caught up, and Voters.remove has its own check.
    words += ["--strict-reconfig-check=false"]
    words += ["--snapshot-count", str(SNAPSHOT_TRANSACTIONS), "--quota-backend-bytes", str(settings.etcd.quota << 20)]
    words += ["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h"]
    words += checks(version or installed())
    words += ["--experimental-watch-progress-notify-interval", f"{PROGRESS_INTERVAL_S}s"]
    # At level warn etcd logs two lines for every call through its gateway, and one for every failed handshake.
    words += ["--logger", "zap", "--log-level", "error", "--log-outputs", "stderr"]
    return words


def checks(version: tuple[int, int]) -> list[str | Path]:
    """Return the flags for the periodic comparison of the members' data in etcd `version`. A difference raises the
    alarm CORRUPT: no member decides anything until the alarm is removed.

    etcd's other check, before a member serves, stays off. It waits up to 9 s for each peer, also for a peer that waits
    in the same check. Three voters that started together had a leader after 19 s instead of 2, and the hypervisors'
    watchdogs do not wait that long for the store."""
    if version < (3, 4):
        return []
    return ["--corrupt-check-time" if version >= (3, 6) else "--experimental-corrupt-check-time", CHECK_INTERVAL]


def installed() -> tuple[int, int]:
    """Return the major and minor version of the installed etcd; (0, 0) if it is unknown."""
    try:
        printed = subprocess.run(
            ["etcd", "--version"],
            capture_output=True,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            check=False,
            env={**os.environ, **environment()},
        )
    except (OSError, subprocess.SubprocessError):
        return 0, 0
    return parse_version(printed.stdout)


def parse_version(text: str) -> tuple[int, int]:
    """Return the major and minor version in the output of `etcd --version`; (0, 0) if it cannot be parsed."""
    match = re.search(r"^etcd Version: (\d+)\.(\d+)", text, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def environment() -> dict[str, str]:
    """Return the environment that etcd 3.4 requires on a processor that its authors do not test."""
    machine = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}.get(platform.machine(), platform.machine())
    return {} if machine == "amd64" else {"ETCD_UNSUPPORTED_ARCH": machine}


def service(settings: Settings, identity: Identity, *, started: Callable[[], Awaitable[None]] | None = None) -> Service:
    """Return the service that keeps this voter's etcd running; `started` as in host/process.py."""
    return later(settings, lambda: identity, started=started)


def later(
    settings: Settings, identity: Callable[[], Identity], *, started: Callable[[], Awaitable[None]] | None = None
) -> Service:
    """Return the same as `service`, for an identity that is read at each start and may have another vote."""

    def argv() -> list[str | Path]:
        return launch(settings, identity())

    return Service("etcd", argv, run=Path(settings.run), env=environment(), started=started)


def launch(settings: Settings, identity: Identity) -> list[str | Path]:
    """Return the argv of etcd's next start, and prepare its data folder. Raises Failed if the store's data is missing:
    etcd would begin an empty store, or vote again on entries that are decided already."""
    state, start = Path(settings.state), identity.etcd
    if start is not None and start.prepared and not start.store:
        restoring.take(state)  # only now: during the preparation the identity still names the old store
    if start is not None and (start.store or start.prepared) and not restoring.has_data(state):
        raise Failed(
            f"the store's data is missing in {restoring.data(state)}: etcd is not started without it",
            hint="with a quorum: veery node vote off, then veery node vote on; without: docs/recovery.md",
        )
    restoring.data(state).mkdir(mode=0o700, parents=True, exist_ok=True)
    crl.ensure(state / "tls", epoch=time.time())
    former = [each for each in identity.node.former if ports.is_own(each)]
    return command(settings, identity, former=former)


async def ready(voters: Voters, endpoint: str, *, deadline: float) -> None:
    """Return once the member at `endpoint` knows a leader. Raises StoreUnavailable after `deadline` seconds."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + deadline
    while True:
        why = "it knows no leader: the other voters have no majority"
        try:
            if (await voters.status(endpoint, within=min(2.0, deadline))).leader:
                return
        except StoreUnavailable as error:
            why = str(error)
        if loop.time() > ends:
            raise StoreUnavailable(
                f"etcd is not ready after {deadline:g} s: {why}", hint="see etcd.log in the run folder"
            )
        await asyncio.sleep(0.1)
