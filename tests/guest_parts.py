"""A busybox domain for the tests of whole nodes: volume, image, domain file, and a counter that runs in it."""

from __future__ import annotations

from pathlib import Path

from veery.lab.guest import Guest
from veery.lab.services import Lab
from veery.lab.shell import Shell

COUNTER = (
    "(i=0; while :; do i=$((i+1)); echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count; "
    "[ $((i%10)) = 0 ] && { echo $i >>/root/count.log; sync; }; sleep 0.1; done) & echo $! >/tmp/counter.pid"
)


async def boot_domain(
    lab: Lab, guest: Guest, name: str, folder: Path, *, memory: int = 128, node: str = "test1"
) -> Path:
    """A domain with a volume and an interface, up with a shell on its console; its file."""
    await lab.veery(node, "volume", "create", name, "64M")
    await lab.veery(node, "image", "build", "busybox", "--volume", name, deadline=120)
    file = folder / name
    file.write_text(
        f'kernel = "{guest.kernel}"\n'
        f'ramdisk = "{guest.ramdisk}"\n'
        f'name = "{name}"\n'
        f"memory = {memory}\n"
        f"disk = ['volume={name},xvda,w']\n"
        'root = "/dev/xvda rw"\n'
        'extra = "quiet"\n'
        "vif = ['bridge=xenbr0']\n"
    )
    await lab.veery(node, "create", str(file), deadline=120)
    async with Shell(lab.client(node).address, name) as shell:
        await shell.ready()
    return file


async def start_counting(lab: Lab, node: str, name: str) -> None:
    """A counter in /tmp/count, ten a second, of which each tenth is synced to the disk."""
    async with Shell(lab.client(node).address, name) as shell:
        await shell.ready()
        await shell.run(COUNTER)
        await shell.run("sleep 0.5; cat /tmp/count")
