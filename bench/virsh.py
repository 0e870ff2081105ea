"""The peer: `virsh migrate` between two libvirt daemons in the bench's own lab, set up as fairly as we know how.

One libvirtd and one virtlogd a node, inside the node's network namespace (bench/cell.py). What a domain is comes from
the same domain file as veery's, written as libvirt wants it (formatdomain.html): the same kernel, memory, machine type,
processor, LUN and QEMU. The migration goes in the clear, libvirt's default."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from bench.bare import type_into
from veery.errors import Failed, OutcomeUnknown
from veery.host.process import Process
from veery.host.run import run
from veery.hypervisor.qemu.argv import TB_SIZE
from veery.hypervisor.qemu.build import Build
from veery.hypervisor.qemu.devices import command_line
from veery.lab.plan import BRIDGE
from veery.lab.services import Lab
from veery.model.domain import DomainSpec
from veery.model.volume import IscsiLun

CELL = Path(__file__).with_name("cell.py")
TUNED = ("--parallel", "--parallel-connections", "2", "--bandwidth", "4096")  # MiB/s
SECRET = "5b1d1c0e-0000-4000-8000-000000000001"  # the same on both nodes; what it holds is each node's own
USERS = {"passwd": ("libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin",)}
GROUPS = {"group": ("libvirt-qemu:x:64055:", "kvm:x:64056:")}
_ORDER, _BOOT = 60.0, 90.0  # seconds


@dataclass(frozen=True, slots=True)
class Guest:
    """One domain for libvirt: its definition as each node must have it (the LUN's initiator is the node's own)."""

    name: str
    files: dict[str, Path]


@dataclass(slots=True)
class Peer:
    """Both daemons, running."""

    lab: Lab
    tree: Path
    nodes: tuple[str, ...]
    cells: dict[str, Process] = field(default_factory=dict)

    @classmethod
    async def start(cls, lab: Lab, tree: Path, nodes: tuple[str, ...]) -> Peer:
        """Start them on `nodes`. Raises Failed with the end of the log of one that does not come up."""
        peer = cls(lab, tree, nodes)
        try:
            for node in nodes:
                _furnish(lab, node, nodes, peer.folder(node))
                program: list[str | Path] = [sys.executable, CELL, peer.folder(node), tree, node]
                argv = lab.enter(node, ["unshare", "--mount", "--uts", "--propagation", "private", "--", *program])
                peer.cells[node] = Process.spawn(argv, log_file=peer._log(node))
            for node in nodes:
                await peer._ready(node)
        except BaseException:
            await peer.stop()
            raise
        return peer

    async def stop(self) -> None:
        """End both daemons, and whatever domain of theirs there still is; nothing of them is left."""
        for node, cell in self.cells.items():
            if cell.alive():
                with contextlib.suppress(Failed, OutcomeUnknown):
                    for name in (await self.virsh(node, "list", "--name")).split():
                        await self.virsh(node, "destroy", name)
                await cell.stop(grace=15.0)
            shutil.rmtree(self.folder(node), ignore_errors=True)
        self.cells.clear()

    def folder(self, node: str) -> Path:
        """Where the daemons of `node` keep their files."""
        return self.lab.plan.home(node) / "virsh"

    def command(self, node: str, *words: str) -> list[str | Path]:
        """The command line of `virsh WORDS...` on `node`."""
        inside = ("nsenter", "--target", str(self.cells[node].pid), "--mount", "--uts", "--net", "--")
        return [*inside, "virsh", "-q", "-c", "qemu:///system", *words]

    async def virsh(self, node: str, *words: str, deadline: float = _ORDER) -> str:
        """What virsh prints. Raises Failed with its last line, OutcomeUnknown."""
        return (await run(self.command(node, *words), deadline=deadline)).out

    async def secrets(self, node: str, user: str, password: str) -> None:
        """Tell `node` its password at the targets."""
        path = self.folder(node) / "secret.xml"
        path.write_text(
            f"<secret ephemeral='no' private='no'><uuid>{SECRET}</uuid>"
            f"<usage type='iscsi'><target>{escape(user)}</target></usage></secret>\n"
        )
        await self.virsh(node, "secret-define", str(path))
        path.write_bytes(base64.b64encode(password.encode()))
        await self.virsh(node, "secret-set-value", SECRET, "--file", str(path))
        path.unlink()

    async def create(self, guest: Guest, node: str) -> None:
        """Boot it on `node`."""
        await self.virsh(node, "create", str(guest.files[node]), deadline=_BOOT)

    async def destroy(self, guest: Guest) -> None:
        """End it, wherever it runs; succeeds if it does not."""
        for node in self.nodes:
            with contextlib.suppress(Failed):
                await self.virsh(node, "destroy", guest.name)
            (self.folder(node) / "log" / f"{guest.name}.log").unlink(missing_ok=True)

    async def type(self, guest: Guest, node: str, line: str) -> None:
        """Type `line` into its console as soon as a shell answers there. Raises Failed."""
        folder = self.folder(node)
        await asyncio.to_thread(
            type_into, folder / "run" / f"{guest.name}.port", folder / "log" / f"{guest.name}.log", line
        )

    async def limit(self, guest: Guest, node: str, downtime: int) -> None:
        """Set the pause that its next move may make, ms. libvirt has no flag for it in `migrate`."""
        await self.virsh(node, "migrate-setmaxdowntime", guest.name, str(downtime))

    async def move(self, guest: Guest, source: str, target: str, *options: str, patience: float = _ORDER) -> bool:
        """`virsh migrate --live --p2p`; False when it had not ended after `patience` seconds and was aborted (the
        domain runs on). Raises Failed with virsh's words."""
        address = f"qemu+tcp://{self.lab.plan.node(target).address}/system"
        words = ("migrate", guest.name, address, "--live", "--p2p", "--xml", str(guest.files[target]), *options)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *map(str, self.command(source, *words)), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        said = asyncio.create_task(process.communicate())
        try:
            done, _ = await asyncio.wait({said}, timeout=patience)
            if not done:
                with contextlib.suppress(Failed):  # it ended in this very moment
                    await self.virsh(source, "domjobabort", guest.name)
            async with asyncio.timeout(_ORDER):
                _, error = await said
        except TimeoutError as late:
            raise OutcomeUnknown(f"virsh migrate {guest.name} did not end, not even aborted") from late
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            said.cancel()
        if process.returncode and not done:
            return False
        if process.returncode:
            raise Failed(f"virsh migrate {guest.name}: {error.decode(errors='replace').strip()}")
        return True

    async def _ready(self, node: str) -> None:
        ends = time.monotonic() + _ORDER
        while True:
            if not self.cells[node].alive():
                rows = self._log(node).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise Failed(f"libvirt on {node} ended at once: {rows[-1]}")
            try:
                await self.virsh(node, "list")
                return
            except (Failed, OutcomeUnknown):
                if time.monotonic() > ends:
                    raise
                await asyncio.sleep(0.1)

    def _log(self, node: str) -> Path:
        return self.lab.log(node, "libvirt")


def definition(spec: DomainSpec, build: Build, binary: str, lun: IscsiLun | None) -> str:
    """The domain `spec` as libvirt's XML; `lun` is its disk as one node reaches it, None for a domain without."""
    base, *features = build.cpu.split(",")
    wanted = "".join(f"<feature policy='require' name={quoteattr(each.removeprefix('+'))}/>" for each in features)
    tcg = "" if build.accel == "kvm" else f"<tcg><tb-cache unit='MiB'>{TB_SIZE}</tb-cache></tcg>"
    vifs = "".join(
        f"<interface type='bridge'><mac address={quoteattr(vif.mac)}/><source bridge='{BRIDGE}'/>"
        "<model type='virtio'/><rom enabled='no'/></interface>"
        for vif in spec.vifs
    )
    return (
        f"<domain type='{'kvm' if build.accel == 'kvm' else 'qemu'}'>"
        f"<name>{escape(spec.name)}</name><uuid>{spec.uuid or uuid.uuid4()}</uuid>"
        f"<memory unit='MiB'>{build.memory}</memory><vcpu>{spec.vcpus}</vcpu>"
        f"<os><type arch='x86_64' machine='{build.machine}'>hvm</type><kernel>{escape(spec.kernel)}</kernel>"
        f"<initrd>{escape(spec.ramdisk)}</initrd>"
        f"<cmdline>{escape(command_line(spec.cmdline, spec.disks))}</cmdline></os>"
        f"<features><acpi/>{tcg}</features>"
        f"<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{base}</model>{wanted}</cpu>"
        "<clock offset='utc'/><on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot>"
        f"<on_crash>destroy</on_crash><devices><emulator>{escape(binary)}</emulator>{_disk(lun)}{vifs}"
        f"<serial type='unix'><source mode='bind' path='/run/{spec.name}.port'/>"
        f"<log file='/var/log/libvirt/{spec.name}.log' append='on'/><target port='0'/></serial>"
        "<controller type='usb' model='none'/><memballoon model='virtio'/></devices></domain>\n"
    )


def _disk(lun: IscsiLun | None) -> str:
    if lun is None:
        return ""
    host, _, port = lun.portal.rpartition(":")
    return (
        "<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/>"
        f"<auth username={quoteattr(lun.user)}><secret type='iscsi' uuid='{SECRET}'/></auth>"
        f"<source protocol='iscsi' name={quoteattr(f'{lun.iqn}/{lun.lun}')}><host name='{host}' port='{port}'/>"
        f"<initiator><iqn name={quoteattr(lun.initiator)}/></initiator></source>"
        "<target dev='vda' bus='virtio'/></disk>"
    )


def _furnish(lab: Lab, node: str, nodes: Sequence[str], folder: Path) -> None:
    """The folders and settings of one node's daemons."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("config", "lib", "log", "cache", "run", "etc/libvirt", "var/lib/libvirt", "var/log/libvirt"):
        (folder / name).mkdir(parents=True)
    (folder / "var/cache/libvirt").mkdir(parents=True)
    address = lab.plan.node(node).address
    # Two hosts of one identity are one to libvirt; this machine's own is the same on both nodes.
    (folder / "config/libvirtd.conf").write_text(
        f'listen_tls = 0\nlisten_tcp = 1\nlisten_addr = "{address}"\nauth_tcp = "none"\nauth_unix_rw = "none"\n'
        f'auth_unix_ro = "none"\nunix_sock_group = "root"\nhost_uuid = "{uuid.uuid4()}"\n'
    )
    (folder / "config/qemu.conf").write_text(
        'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ndynamic_ownership = 0\nremember_owner = 0\n'
        f'cgroup_controllers = [ ]\nnamespaces = [ ]\nmigration_address = "{address}"\nmigration_host = "{address}"\n'
    )
    (folder / "config/virtlogd.conf").write_text("")
    rows = ["127.0.0.1 localhost", *(f"{lab.plan.node(name).address} {name}" for name in nodes)]
    (folder / "etc/hosts").write_text("\n".join(rows) + "\n")
    # libvirt's QEMU driver does not start without its compiled-in user, even where qemu.conf names another.
    for name, lines in {**USERS, **GROUPS}.items():
        here = Path("/etc", name).read_text()
        known = {row.partition(":")[0] for row in here.splitlines()}
        more = [line for line in lines if line.partition(":")[0] not in known]
        (folder / "etc" / name).write_text(here.rstrip("\n") + "\n" + "".join(f"{line}\n" for line in more))
