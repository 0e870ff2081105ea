"""What veery asks of etcd at rest: `python -m bench.load`. A lab of two hypervisors and a storage node, all voters.

etcd's own counters are read before and after a while in which nobody orders anything: first with an empty cluster, then
with the records of 2,000 domains that do not run. Nothing but etcd counts here, so other work on the machine does not
change the figures."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
from collections import Counter
from pathlib import Path

from veery.cluster.keys import DOMAINS, POLICIES
from veery.errors import VeeryError
from veery.lab.services import Lab
from veery.model.cluster import DomainRecord
from veery.model.domain import DiskSpec, DomainSpec
from veery.model.ha import HaRecord, Policy

SECONDS = 30
SETTLE = 15.0  # seconds before a count begins
BATCH = 50  # records in one transaction
COUNTED = ("Range", "Txn", "LeaseKeepAlive", "Watch", "Put", "DeleteRange", "LeaseGrant", "Status", "MemberList")

CALL = """
import http.client, pathlib, ssl, sys
folder, address, method, path = sys.argv[1:5]
context = ssl.create_default_context(cafile=f"{folder}/ca-cert.pem")
context.load_cert_chain(f"{folder}/client-cert.pem", f"{folder}/client-key.pem")
connection = http.client.HTTPSConnection(address, 2379, context=context, timeout=20)
for body in (sys.stdin.read().splitlines() if method == "POST" else [None]):
    connection.request(method, path, body)
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 200, text
print(text)
"""


async def call(lab: Lab, node: str, method: str, path: str, lines: str = "") -> str:
    """One request to etcd on `node`, or one for each line of `lines`; the last answer."""
    folder, address = lab.plan.home(node) / "lib/tls", lab.plan.node(node).address
    words: list[str | Path] = [sys.executable, "-c", CALL, folder, address, method, path]
    return (await lab.run(node, words, stdin=lines.encode())).out


async def counters(lab: Lab, node: str) -> Counter[str]:
    """How many requests of each kind etcd on `node` has answered, and the bytes that it sent to clients ("bytes")."""
    found: Counter[str] = Counter()
    for line in (await call(lab, node, "GET", "/metrics")).splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("grpc_server_handled_total{"):
            found[name.partition('grpc_method="')[2].partition('"')[0]] += int(float(value))
        elif name == "etcd_network_client_grpc_sent_bytes_total":
            found["bytes"] += int(float(value))
        elif name == "process_cpu_seconds_total":
            found["cpu"] += round(float(value) * 1000)
    return found


async def rates(lab: Lab, seconds: int) -> dict[str, Counter[str]]:
    """By node: what etcd did in `seconds`."""
    names = [node.name for node in lab.plan.nodes]
    before = {name: await counters(lab, name) for name in names}
    await asyncio.sleep(seconds)
    after = {name: await counters(lab, name) for name in names}
    return {name: after[name] - before[name] for name in names}


async def fill(lab: Lab, domains: int) -> None:
    """Records of `domains` domains that are not wanted to run."""
    lines, batch = [], []
    for number in range(domains):
        name = f"filler{number:04}"
        disk = DiskSpec(vdev="xvda", volume=name)
        spec = DomainSpec(name=name, memory=256, disks=(disk,))
        puts = (
            DOMAINS.put(name, DomainRecord(spec=spec)),
            POLICIES.put(name, HaRecord(policy=Policy.RESTART, wanted=False)),
        )
        for put in puts:
            key, value = (base64.b64encode(each).decode() for each in (b"/veery/" + put.key.encode(), put.value))
            batch.append({"request_put": {"key": key, "value": value}})
        if len(batch) >= 2 * BATCH or number == domains - 1:
            lines.append(json.dumps({"success": batch}))
            batch = []
    await call(lab, lab.plan.nodes[-1].name, "POST", "/v3/kv/txn", "\n".join(lines))


async def _main(seconds: int, domains: int) -> None:
    lab = await Lab.up("benchload")
    try:
        for title, count in (("no domains", 0), (f"the records of {domains:,} domains", domains)):
            await fill(lab, count) if count else None
            await asyncio.sleep(SETTLE)
            print(f"{title}: etcd at rest, a second, over {seconds} s")
            for node, found in (await rates(lab, seconds)).items():
                requests = sum(found[each] for each in found if each not in ("bytes", "cpu"))
                kinds = "  ".join(f"{each} {found[each] / seconds:.1f}" for each in COUNTED if found[each])
                sent, cpu = found["bytes"] / seconds / 1024, found["cpu"] / seconds / 10
                print(f"  {node:<6} {requests / seconds:5.1f} requests  {sent:7.1f} KiB  {cpu:4.1f} % cpu   ({kinds})")
    finally:
        await lab.down()


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS, metavar="N", help=f"how long ({SECONDS})")
    parser.add_argument("--domains", type=int, default=2000, metavar="N", help="how many records (2000)")
    arguments = parser.parse_args()
    try:
        asyncio.run(_main(arguments.seconds, arguments.domains))
    except VeeryError as error:
        print(f"bench.load: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
