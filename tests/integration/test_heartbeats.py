"""Heartbeats on storage, through the real tgtd of the lab: who has lost what, as the storage node tells it."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest
from node_parts import until
from storage_parts import TEST1, TEST2, Storage, storage

from veery.errors import Failed, Refused
from veery.host.clock import RealClock
from veery.lab import faults
from veery.lab.services import Lab
from veery.model.volume import Backing, IscsiLun
from veery.storage.file import FileStore
from veery.storage.heartbeat import HeartbeatBlock, HeartbeatFile, HeartbeatSession, heartbeat_iqn
from veery.storage.served import Served
from veery.storage.volumes import Volumes


async def _signs(lab: Lab) -> dict[str, Any]:
    told: dict[str, Any] = await asyncio.to_thread(lab.client("stor", deadline=20).get, "/v1/heartbeats")
    return dict(told["signs"])


async def _young(lab: Lab, *names: str) -> bool:
    signs = await _signs(lab)
    return all(name in signs and signs[name]["age"] < 2.5 for name in names)


async def test_who_reaches_its_disks_gives_signs(lab: Lab) -> None:
    await until(lambda: _young(lab, "test1", "test2"), "signs of both nodes")
    await faults.cut(lab, "test1")
    try:

        async def silent() -> bool:
            signs = await _signs(lab)
            return bool(signs["test1"]["age"] > 4 and signs["test2"]["age"] < 2.5)

        await until(silent, "test1 is silent, test2 is not")
    finally:
        await faults.heal(lab, "test1")
    await until(lambda: _young(lab, "test1", "test2"), "signs of both nodes again")
    await faults.kill(lab, "stor", "tgtd")
    dead = time.monotonic()

    async def served_anew() -> bool:
        """What was written before its death looks young for a while: a sign from after it is wanted, of each."""
        signs = await _signs(lab)
        return all(signs[name]["age"] < time.monotonic() - dead - 1 for name in ("test1", "test2"))

    await until(served_anew, "signs of both nodes after tgtd's death")
    await lab.healthy()


async def test_signs_need_no_store(lab: Lab) -> None:
    """Both are asked for, and given, while etcd has lost its quorum."""
    stopped = [*faults.find(lab, "stor", "etcd"), *faults.find(lab, "test2", "etcd")]
    for one in stopped:
        one.process.send(signal.SIGSTOP)
    try:
        before = await _signs(lab)
        await asyncio.sleep(6)
        assert await _young(lab, "test1", "test2"), (before, await _signs(lab))
    finally:
        for one in stopped:
            one.process.send(signal.SIGCONT)
    await lab.healthy()


async def test_the_session_itself_on_a_tgtd_of_its_own() -> None:
    async with storage(TEST1, TEST2) as node:
        await _check_session(node)


async def _check_session(node: Storage) -> None:
    beats = HeartbeatFile(node.pool / "heartbeats")
    volumes = Volumes(
        node="stor",
        server=node.server,
        stores={Backing.FILE: FileStore(node.pool)},
        records=node.records,
        authority="2026-11.lab.veery",
        clock=RealClock(),
        served=Served(node.folder / "other.json"),
        beats=beats,
    )
    await volumes.reconcile()
    assert await volumes.reconcile() == ()
    iqn = heartbeat_iqn("2026-11.lab.veery", "stor")
    lun = IscsiLun(
        portal=node.server.portal, iqn=iqn, lun=1, initiator=TEST1.iqn, user=TEST1.user, password=TEST1.password
    )
    session = await HeartbeatSession.begin(lun, deadline=20)
    try:
        for number in range(3):
            await session.write(77, HeartbeatBlock("test1", number), deadline=20)
            assert beats.read(77) == HeartbeatBlock("test1", number)
        node.records.fenced.add(("", TEST1.iqn))  # as VolumeRecords.denied has it of a fenced node
        assert await volumes.cut_all(TEST1.iqn) == 1
        with pytest.raises(Failed, match="cannot write a heartbeat"):
            await session.write(77, HeartbeatBlock("test1", 9), deadline=20)
    finally:
        session.close()
    assert beats.read(77) == HeartbeatBlock("test1", 2)
    await volumes.reconcile()
    with pytest.raises(Refused, match="does not admit"):
        await HeartbeatSession.begin(lun, deadline=20)
    assert await volumes.way_in(TEST1.iqn) == ""
    assert "admits it" in await volumes.way_in(TEST2.iqn)
