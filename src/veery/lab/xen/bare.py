"""A domain of plain xl on a LUN, moved by `xl migrate`, without veery's driver, owner key or daemon.

It proves that the nested lab is a real Xen lab, and the driver's moves are compared with its moves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from veery.errors import Failed
from veery.host.run import Result
from veery.hypervisor.xen.scripts import BLOCK, VIF
from veery.lab.plan import BRIDGE
from veery.lab.services import Lab
from veery.lab.xen import dom0
from veery.lab.xen.login import login, logout

PORT = 8009
MAC = "00:16:3e:31:00:04"
_MEMORY_MIB = 128  # Debian's cloud kernel does not boot with 64
_COMMAND_TIMEOUT_S, _MOVE_TIMEOUT_S = 30.0, 60.0  # the lab multiplies them by four for a nested node

_FILE = f"""\
name = "{{name}}"
kernel = "{dom0.GUEST}/vmlinuz"
ramdisk = "{dom0.GUEST}/initramfs"
memory = {_MEMORY_MIB}
vcpus = 1
type = "{{kind}}"
disk = ["{{disk}}"]
vif = ["mac={{mac}},bridge={BRIDGE}{{vif}}"]
root = "/dev/xvda rw"
extra = "console=hvc0 init=/sbin/init quiet"
on_poweroff = "destroy"
on_reboot = "restart"
on_crash = "destroy"
"""

_KEY = "mkdir -p /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519 </dev/null"
_SSHD = """\
set -e
mkdir -p /run/sshd
cd /root/.ssh
ssh-keygen -y -f id_ed25519 >authorized_keys
printf 'StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n' >config
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key </dev/null
/usr/sbin/sshd -f /dev/null -o HostKey=/etc/ssh/ssh_host_ed25519_key -o PermitRootLogin=yes -o StrictModes=no
"""


@dataclass
class Bare:
    """One domain `name` on the existing volume of that name, which contains an image."""

    lab: Lab
    name: str
    mac: str = MAC
    fast: bool = False  # use veery's hotplug scripts, which veeryd has installed, instead of Xen's own

    async def create(self, node: str, *, kind: str = "pv") -> None:
        """Log every hypervisor in to the LUN, and start the domain on `node`. Raises Failed."""
        nodes = [each.name for each in self.lab.plan.nodes if self.lab.plan.nested(each.name)]
        devices = await asyncio.gather(*(login(self.lab, each, self.name) for each in nodes))
        disk, vif = f"phy:{devices[0]},xvda,w", ""
        if self.fast:
            disk, vif = f"vdev=xvda,access=w,script={BLOCK},target={devices[0]}", f",script={VIF}"
        text = _FILE.format(name=self.name, kind=kind, disk=disk, mac=self.mac, vif=vif).encode()
        path = f"{dom0.STATE}/{self.name}.cfg"
        await self.lab.run(node, ["tee", path], stdin=text)
        await self._xl(node, "create", path)

    async def destroy(self) -> None:
        """End the domain on every node, and every session. Raises Failed."""
        for each in self.lab.plan.nodes:
            if self.lab.plan.nested(each.name):
                if await self.row(each.name):
                    await self._xl(each.name, "destroy", self.name)
                await logout(self.lab, each.name, self.name)

    async def row(self, node: str) -> dict[str, Any]:
        """Return the domain's row in `xl list -l` of `node`; {} if it has none. Raises Failed."""
        rows: list[dict[str, Any]] = json.loads(await self._xl(node, "list", "-l"))
        return next((row for row in rows if row.get("config", {}).get("c_info", {}).get("name") == self.name), {})

    async def move(self, source: str, target: str) -> float:
        """Run `xl migrate` over one TCP connection; return its seconds. Raises Failed with the end of xl's output."""
        python = ["python3", "-m", "veery.lab.xen.relay"]
        receiving = asyncio.ensure_future(self._run(target, [*python, "receive", str(PORT)], _MOVE_TIMEOUT_S))
        try:
            await self._listens(target, receiving)
            begun = time.monotonic()
            relay = f"{' '.join(python)} send {self.lab.plan.node(target).address} {PORT}"
            await self._xl(source, "migrate", "-s", "", self.name, relay, deadline=_MOVE_TIMEOUT_S)
            passed = time.monotonic() - begun
            received = await receiving
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
        if received.code:
            raise Failed(f"xl migrate-receive on {target} failed with {received.code}: {received.err.strip()[-300:]}")
        return passed

    async def move_by_ssh(self, source: str, target: str) -> float:
        """Run `xl migrate` over ssh (call `allow_ssh` first); return its duration in seconds. Raises Failed."""
        begun = time.monotonic()
        await self._xl(source, "migrate", self.name, self.lab.plan.node(target).address, deadline=_MOVE_TIMEOUT_S)
        return time.monotonic() - begun

    async def _listens(self, node: str, receiving: asyncio.Future[Result]) -> None:
        ends = time.monotonic() + _COMMAND_TIMEOUT_S
        while f":{PORT} " not in (await self._run(node, ["ss", "-Hltn"], _COMMAND_TIMEOUT_S)).out:
            if receiving.done() or time.monotonic() > ends:
                raise Failed(f"nothing listens on {node}")
            await asyncio.sleep(0.2)

    async def _xl(self, node: str, *words: str, deadline: float = _COMMAND_TIMEOUT_S) -> str:
        result = await self._run(node, ["xl", *words], deadline)
        if result.code:
            raise Failed(f"xl {words[0]} on {node} failed with {result.code}: {result.err.strip()[-300:]}")
        return result.out

    async def _run(self, node: str, argv: list[str], deadline: float) -> Result:
        return await self.lab.run(node, list(argv), deadline=deadline, check=False)


async def allow_ssh(lab: Lab, nodes: Sequence[str]) -> None:
    """Let root of each of these nested nodes log in to the others by a key, for `xl migrate`. Raises Failed."""
    first = nodes[0]
    await lab.run(first, ["sh", "-c", _KEY])
    key = (await lab.run(first, ["cat", "/root/.ssh/id_ed25519"])).out.encode()
    for node in nodes:
        await lab.run(node, ["sh", "-c", "mkdir -p /root/.ssh && umask 077 && cat >/root/.ssh/id_ed25519"], stdin=key)
        await lab.run(node, ["sh", "-c", _SSHD])
    for node in nodes:
        for other in nodes:
            if other != node:
                await lab.run(node, ["ssh", lab.plan.node(other).address, "true"])
