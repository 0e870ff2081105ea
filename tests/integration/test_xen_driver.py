"""What only the xen driver has to do, on a scripted xl: others' domains, restarts of ours in the middle of an order,
an xl that fails or hangs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import qemu_parts as parts
from veery.errors import Failed, OutcomeUnknown, Refused
from veery.host.run import run
from veery.hypervisor.xen.statedir import Home, Stage
from veery.hypervisor.xen.xl import Xl
from veery.model.domain import DomainEnd, DomainEvent, DomainSpec, DomainState
from veery.model.volume import AttachedVif, Attachments
from xen_parts import XenRig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[XenRig]:
    made = XenRig(tmp_path)
    await made.near.open()
    await made.far.open()
    try:
        yield made
    finally:
        await made.close()


def program(rig: XenRig) -> Path:
    return rig.folder / "test1" / "bin" / "xl"


def home(rig: XenRig, spec: DomainSpec) -> Home:
    return Home(rig.folder / "test1" / "xen" / spec.uuid)


@contextlib.contextmanager
def broken(rig: XenRig, verb: str, script: str) -> Iterator[None]:
    """While it lasts `xl VERB` is `script`, a line of sh, and then what it always is."""
    path, kept = program(rig), program(rig).with_name("xl.real")
    path.rename(kept)
    path.write_text(f'#!/bin/sh\n[ "$1" = {verb} ] && {{ {script}; }}\nexec {kept} "$@"\n')
    path.chmod(0o755)
    try:
        yield
    finally:
        kept.rename(path)


async def byhand(rig: XenRig, *words: str) -> str:
    return (await run([program(rig), *words], deadline=30)).out


async def test_domains_of_others_are_left_alone(rig: XenRig) -> None:
    other = rig.spec("other")
    config = rig.folder / "other.cfg"
    config.write_text(f'name = "other"\nuuid = "{other.uuid}"\nmemory = 96\nvcpus = 1\n')
    await byhand(rig, "create", str(config))
    assert await rig.near.list() == ()
    with pytest.raises(Refused, match="no domain"):
        await rig.near.spec(other.uuid)
    with pytest.raises(Refused, match="other is here already"):
        await rig.near.start(rig.spec("other"), Attachments())
    await rig.near.destroy(other.uuid)
    await rig.again(rig.near)
    assert "other" in await byhand(rig, "list", "-v")
    await byhand(rig, "destroy", "other")


async def test_a_start_that_fails_leaves_nothing(rig: XenRig) -> None:
    spec = rig.spec()
    script = "echo 'libxl: error: libxl_device.c:1109:f: Domain 1:unable to add device' >&2; exit 3"
    with broken(rig, "create", script), pytest.raises(Failed, match="xl create: unable to add device"):
        await rig.near.start(spec, Attachments())
    assert await rig.near.list() == ()
    assert not home(rig, spec).path.exists()
    await rig.near.start(spec, Attachments())


async def test_a_start_that_did_half(rig: XenRig) -> None:
    """The domain is there, and xl says that it failed: it is ended."""
    spec = rig.spec()
    kept = program(rig).with_name("xl.real")
    with (
        broken(rig, "create", f'{kept} "$@"; echo failed late >&2; exit 1'),
        pytest.raises(Failed, match="failed late"),
    ):
        await rig.near.start(spec, Attachments())
    assert "busybox" not in await byhand(rig, "list", "-v")
    assert not home(rig, spec).path.exists()


async def test_a_start_cut_short_by_our_end_is_undone(rig: XenRig) -> None:
    spec = rig.spec()
    await rig.near.start(spec, Attachments())
    record = home(rig, spec).read()
    assert record is not None
    home(rig, spec).write(replace(record, stage=Stage.STARTING, domid=0))
    driver = await rig.again(rig.near)
    assert await driver.list() == ()
    assert "busybox" not in await byhand(rig, "list", "-v")


async def test_a_reboot_cut_short_by_our_end_is_done(rig: XenRig) -> None:
    spec = rig.spec()
    first = await rig.near.start(spec, Attachments())
    await rig.booted(rig.near, spec.uuid)
    record = home(rig, spec).read()
    assert record is not None
    home(rig, spec).write(replace(record, stage=Stage.REBOOTING))
    driver = await rig.again(rig.near)
    await rig.booted(driver, spec.uuid, times=2)
    (reading,) = await driver.list()
    assert reading.domid > first.domid
    assert len((await byhand(rig, "list", "-v")).splitlines()) == 3


async def test_a_save_cut_short_by_our_end_lets_it_run_on(rig: XenRig) -> None:
    spec = rig.spec()
    reading = await rig.near.start(spec, Attachments())
    await byhand(rig, "pause", str(reading.domid))
    record = home(rig, spec).read()
    assert record is not None
    home(rig, spec).write(replace(record, stage=Stage.SAVING))
    driver = await rig.again(rig.near)
    assert await rig.alive(driver, spec.uuid)
    (after,) = await driver.list()
    assert after.state is DomainState.BLOCKED


async def test_a_reboot_that_fails_is_a_death(rig: XenRig) -> None:
    spec = await rig.up(rig.near)
    with broken(rig, "create", "echo no memory >&2; exit 1"):
        await rig.tell(rig.near, spec.uuid, DomainEnd.REBOOT)
        async with asyncio.timeout(60):
            assert await anext(rig.near.events()) == DomainEvent(spec.uuid, DomainEnd.DIED)
    assert await rig.near.list() == ()
    assert "did not restart" in await rig.near.log()


async def test_an_xl_that_hangs(rig: XenRig) -> None:
    with broken(rig, "list", "exec sleep 30"), pytest.raises(OutcomeUnknown, match="xl list"):
        await Xl(str(program(rig)))._run("list", deadline=1.0)


async def test_a_daemon_without_its_xen_does_not_take_its_domains_for_gone(rig: XenRig) -> None:
    spec = await rig.up(rig.near)
    script = "echo 'xc: error: Could not obtain handle on privileged command interface' >&2; exit 1"
    with broken(rig, "info", script), pytest.raises(Failed, match="privileged command interface"):
        await rig.again(rig.near)
    driver = await rig.again(rig.near)
    assert await rig.alive(driver, spec.uuid)


async def test_interfaces_come_and_go(rig: XenRig) -> None:
    spec = await rig.up(rig.near)
    (reading,) = await rig.near.list()
    vifs = [parts.vif("", f"00:16:3e:00:00:0{number}") for number in range(3)]
    for vif in vifs[:2]:
        await rig.near.attach_vif(spec.uuid, vif)
    await rig.near.detach_vif(spec.uuid, vifs[0].spec.mac)
    await rig.near.attach_vif(spec.uuid, vifs[2])  # into the place that is free
    names = {vif.spec.mac: vif.device for vif in (await rig.near.spec(spec.uuid))[1].vifs}
    assert names == {
        vifs[1].spec.mac: f"vif{reading.domid}.1",
        vifs[2].spec.mac: f"vif{reading.domid}.0",
    }
    with pytest.raises(Refused, match="already"):
        await rig.near.attach_vif(spec.uuid, AttachedVif(spec=vifs[1].spec, device=""))
