"""Disks and interfaces that come and go under a running domain, and a disk that grows under it.

The tests of this file share one domain, finch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from node_parts import Node, Terminal, Workshop, aside, until

from veery.lab.services import Lab

NAME = "finch"
MIB = 1 << 20


async def _make(near: Node, workshop: Workshop) -> Path:
    await workshop.clear(NAME)
    await workshop.volume(NAME)
    await near.veery("volume", "create", "seed", "8M")
    path = workshop.file(NAME)
    await near.veery("create", path)
    await near.booted(NAME)
    return path


@pytest.fixture(scope="module")
def finch(near: Node, workshop: Workshop) -> Iterator[Path]:
    yield aside(_make(near, workshop))
    aside(workshop.clear(NAME, "seed", "other"))


async def seen(shell: Terminal, test: str) -> None:
    """Wait until `test` holds in the guest."""
    await shell.run(f"n=0; while ! {test}; do n=$((n+1)); [ $n -lt 100 ] || break; usleep 100000; done; {test}")


async def test_a_second_disk(finch: Path, near: Node, stor: Node) -> None:
    async with near.shell(NAME) as shell:
        await near.veery("block-attach", NAME, "volume=seed,vdev=xvdb,access=rw")
        await seen(shell, "[ -b /dev/vdb ]")
        assert await shell.run("blockdev --getsize64 /dev/vdb") == str(8 * MIB)
        await shell.run("echo planted | dd of=/dev/vdb conv=fsync 2>/dev/null")
        (listed,) = await near.json("block-list", "--json", NAME)
        assert [(disk["spec"]["vdev"], disk["spec"]["volume"]) for disk in listed["disks"]] == [
            ("xvda", NAME),
            ("xvdb", "seed"),
        ]
        assert all("password" not in disk["source"] for disk in listed["disks"])
        rows = (await near.veery("block-list", NAME)).splitlines()
        assert [row.split()[0] for row in rows] == ["Vdev", "51712", "51728"]

        # it is a disk like the others: nobody else may have it, and it grows
        volume = (await near.json("volume", "show", "--json", "seed"))["volume"]
        assert f"used by {NAME} on test1" in await near.refused("volume", "delete", "seed")
        await near.veery("volume", "resize", "seed", "12M")
        await seen(shell, f"[ $(blockdev --getsize64 /dev/vdb) = {12 * MIB} ]")

        await near.veery("block-detach", NAME, "51728")
        await seen(shell, "[ ! -e /dev/vdb ]")
        assert [disk["spec"]["vdev"] for disk in (await near.json("block-list", "--json", NAME))[0]["disks"]] == [
            "xvda"
        ]
    assert Path(volume["path"]).read_bytes().startswith(b"planted\n")

    async def logged_out() -> bool:
        (target,) = [target for target in await stor.targets() if target["iqn"] == volume["iqn"]]
        return not target["sessions"]

    await until(logged_out, "the initiator has left the target")
    assert (await near.json("volume", "show", "--json", "seed"))["used_by"] == []


async def test_disks_that_cannot_be_attached(finch: Path, near: Node, far: Node, workshop: Workshop) -> None:
    before = await near.json("list", "-l", NAME)
    wrong = {
        "volume=seed,vdev=xvda,access=rw": "has a disk xvda",
        "volume=nothing,vdev=xvdb,access=rw": "there is no volume nothing",
        f"volume={NAME},vdev=xvdb,access=rw": f"would have volume {NAME} twice",
        "/nowhere/disk.raw,raw,xvdb,rw": "/nowhere/disk.raw: No such file or directory",
        "volume=seed,vdev=zzz,access=rw": "zzz",
    }
    for spec, message in wrong.items():
        assert message in await near.refused("block-attach", NAME, spec)
    assert "no disk xvdb" in await near.refused("block-detach", NAME, "xvdb")
    # another domain's disk, on another node
    other = workshop.file("other", volume="seed")
    await far.veery("create", "-p", other)
    try:
        assert "volume seed is in use by other on test2" in await near.refused(
            "block-attach", NAME, "volume=seed,vdev=xvdb,access=rw"
        )
        assert f"volume {NAME} is in use by {NAME} on test1" in await far.refused(
            "block-attach", "other", f"volume={NAME},vdev=xvdb,access=rw"
        )
    finally:
        await far.veery("destroy", "other")
    assert await near.json("list", "-l", NAME) == before
    assert (await near.json("volume", "show", "--json", "seed"))["used_by"] == []


async def test_interfaces(finch: Path, near: Node) -> None:
    taps = await near.taps()
    (first,) = (await near.json("network-list", "--json", NAME))[0]["vifs"]
    async with near.shell(NAME) as shell:
        await near.veery("network-attach", NAME, "bridge=xenbr0", "mac=00:16:3e:00:be:ef")
        await seen(shell, "[ -e /sys/class/net/eth1 ]")
        assert await shell.run("cat /sys/class/net/eth1/address") == "00:16:3e:00:be:ef"
        await shell.run("ifconfig eth1 172.16.31.77 netmask 255.255.0.0 up")
        await shell.run("ping -c 1 -W 20 172.16.31.100")
        await near.veery("network-attach", NAME, "bridge=xenbr0")
        await seen(shell, "[ -e /sys/class/net/eth2 ]")
        (_, _, third) = (await near.json("network-list", "--json", NAME))[0]["vifs"]
        assert await shell.run("cat /sys/class/net/eth2/address") == third["spec"]["mac"]
        assert len(await near.taps() - taps) == 2
        assert "MAC 00:16:3e:00:be:ef is in use" in await near.refused("network-attach", NAME, "mac=00:16:3E:00:BE:EF")
        assert "no bridge nothing" in await near.refused("network-attach", NAME, "bridge=nothing")
        await near.veery("network-detach", NAME, "2")
        await near.veery("network-detach", NAME, "00:16:3E:00:be:ef")
        await seen(shell, "[ ! -e /sys/class/net/eth1 ]")
        await seen(shell, "[ ! -e /sys/class/net/eth2 ]")
    assert await near.taps() == taps
    assert (await near.json("network-list", "--json", NAME))[0]["vifs"] == [first]
    assert "no interface 1" in await near.refused("network-detach", NAME, "1")


async def test_the_root_disk_grows_under_load(finch: Path, near: Node) -> None:
    """A resize closes the sessions for a moment; the guest's writes wait and go on."""
    async with near.shell(NAME) as shell:
        await shell.run("(i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); echo $i >>/root/log; sync; done) & true")
        await asyncio.sleep(0.5)
        assert "cannot shrink" in await near.refused("volume", "resize", NAME, "16M")
        await near.veery("volume", "resize", NAME, "40M")
        await seen(shell, f"[ $(blockdev --getsize64 /dev/vda) = {40 * MIB} ]")
        count = int(await shell.run("wc -l </root/log"))
        await seen(shell, f"[ $(wc -l </root/log) -gt {count + 3} ]")
        await shell.run("touch /tmp/stop; sleep 1; sync")
        assert "I/O error" not in await shell.run("dmesg")
        await shell.run("n=$(wc -l </root/log); [ $(tail -n 1 /root/log) = $n ]")
    assert (await near.json("volume", "show", "--json", NAME))["volume"]["size"] == 40 * MIB


async def limits(lab: Lab, node: Node, name: str, number: int) -> str:
    """What tc has on the tap of a domain's interface."""
    tap = (await node.json("network-list", "--json", name))[0]["vifs"][number]["device"]
    shape = (await lab.run(node.name, ["tc", "qdisc", "show", "dev", tap])).out
    return shape + (await lab.run(node.name, ["tc", "filter", "show", "dev", tap, "ingress"], check=False)).out


async def test_a_domain_that_moves_keeps_what_was_attached(finch: Path, near: Node, far: Node, lab: Lab) -> None:
    await near.veery("block-attach", NAME, "volume=seed,vdev=xvdc,access=r")
    limited = await near.result("network-attach", NAME, "bridge=xenbr0", "rate=8Mb/s", "gatewaydev=eth0")
    assert limited.code == 0
    (line,) = limited.err.splitlines()
    assert line.startswith("veery: the qemu driver does not carry out: gatewaydev=eth0")
    before = await limits(lab, near, NAME, 1)
    assert "tbf" in before
    assert "rate 8Mbit" in before
    assert ("police" in before) != ("traffic from the guest is not limited" in line)
    assert "tbf" not in await limits(lab, near, NAME, 0)
    await near.veery("migrate", "--live", NAME, "test2")
    assert "rate 8Mbit" in await limits(lab, far, NAME, 1)
    await far.veery("network-detach", NAME, "1")
    async with far.shell(NAME) as shell:
        assert await shell.run("dd if=/dev/vdb bs=8 count=1 2>/dev/null") == "planted"
        assert f"used by {NAME} on test2" in await far.refused("volume", "delete", "seed")
        await far.veery("block-detach", NAME, "xvdc")
        await seen(shell, "[ ! -e /dev/vdb ]")
    assert await near.taps() == set()
    await far.veery("destroy", NAME)
    assert await far.taps() == set()


async def test_a_cd_keeps_a_domain_until_it_is_ejected(
    finch: Path, near: Node, far: Node, workshop: Workshop, tmp_path: Path
) -> None:
    image = tmp_path / "a.iso"
    image.write_bytes(bytes(2 * MIB))
    await near.veery("create", workshop.file("other", disk=[",hdc:cdrom"], root=None, memory=64))
    await near.veery("cd-insert", "other", "hdc", image)
    await near.veery("volume", "create", "disc", "8M")
    await near.veery("cd-insert", "other", "hdc", "volume=disc")
    assert "used by other on test1" in await near.refused("volume", "delete", "disc")
    await near.veery("cd-insert", "other", "hdc", image)
    await near.veery("volume", "delete", "disc")
    assert "no CD-ROM drive hdd" in await near.refused("cd-eject", "other", "hdd")
    stays = await near.result("migrate", "--live", "other", "test2")
    assert stays.code == 1
    assert "veery cd-eject other hdc" in stays.err
    assert "--with-disks" not in stays.err
    await near.veery("cd-eject", "other", "hdc")
    await near.veery("migrate", "--live", "other", "test2")
    await far.veery("destroy", "other")
