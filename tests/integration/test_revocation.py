"""A node that was put out: its certificate opens nothing at etcd any more. On real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cluster_parts import Member, another, eventually, first, rig

from veery.cluster import keys, members, revocation
from veery.cluster.admission import Admission
from veery.cluster.etcd import EtcdStore
from veery.cluster.store import Put, StoreUnavailable
from veery.errors import Refused
from veery.host import crl, tls
from veery.host.tasks import stop
from veery.model.node import Role
from veery.node.etcdcut import EtcdCut

WITHIN = 20.0  # seconds


def folder(member: Member) -> Path:
    return Path(member.settings.state) / "tls"


@asynccontextmanager
async def calling(by: Member, at: Member) -> AsyncIterator[EtcdStore]:
    """A new connection to etcd of `at` with the certificate of `by`."""
    store = EtcdStore([at.url], tls=tls.client_context(folder(by)), deadline=4)
    try:
        yield store
    finally:
        await store.close()


async def lets_in(by: Member, at: Member) -> bool:
    async with calling(by, at) as store:
        try:
            await store.revision()
        except StoreUnavailable:
            return False
        return True


async def settled(by: Member, at: Member, *, inside: bool) -> None:
    """Return once etcd of `at` does, or does not, let the certificate of `by` in."""
    ends = time.monotonic() + WITHIN
    while await lets_in(by, at) is not inside:
        assert time.monotonic() < ends, f"{by.name} at {at.name}"
        await asyncio.sleep(0.1)


async def test_a_node_that_was_put_out_is_not_let_in_by_any_voter(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, two, gone, kept = make("test1"), make("test2"), make("gone"), make("kept")
        await first(one)
        await another(two, one, Role.VOTER)
        await another(gone, one, Role.HYPERVISOR)
        await another(kept, one, Role.HYPERVISOR)
        assert set(await keys.CERTIFICATES.all(one.store)) == {"test2", "gone", "kept"}, "as they joined"
        await revocation.tell(one.store, "test1", folder(one))  # as each daemon does at its start
        following = [
            asyncio.create_task(revocation.follow(each.store, folder(each), each.vault)) for each in (one, two)
        ]
        try:
            for voter in (one, two):
                assert await lets_in(gone, voter)
            await members.forget(one.store, one.store.voters, one.settings, "gone")
            for voter in (one, two):
                await settled(gone, voter, inside=False)
                assert await lets_in(kept, voter)
                assert await lets_in(two, voter)
            assert set(await keys.CERTIFICATES.all(one.store)) == {"test1", "test2", "kept"}
            serial, _ = crl.serial((folder(gone) / "server-cert.pem").read_text())
            keeping = asyncio.create_task(revocation.keep(kept.store, folder(kept)))
            await eventually((folder(kept) / crl.CA_FILE).exists)
            assert crl.listed((folder(kept) / crl.CA_FILE).read_text()) == {serial}
            await stop(keeping)
            with pytest.raises(Refused, match="was revoked"):  # not even where its old connection still stands
                await revocation.tell(one.store, "gone", folder(gone))
            # a record that cannot be read counts too: its key says which certificate
            serial, _ = crl.serial((folder(kept) / "server-cert.pem").read_text())
            unread = [Put(keys.REVOKED.key(name), b"of a newer veery") for name in (serial, "no-number", "f" * 41)]
            await one.store.commit([], unread)
            await settled(kept, two, inside=False)
            # it holds over a restart of etcd, which has not asked anybody then
            await stop(*following)
            await two.stop_etcd()
            await two.start_etcd()
            await eventually(lambda: two.service is not None and two.service.process is not None)
            await settled(one, two, inside=True)
            assert not await lets_in(gone, two)
        finally:
            await stop(*following)


async def request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> bool:
    """Whether etcd answers on a connection that stands."""
    try:
        writer.write(f"GET /version HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        async with asyncio.timeout(WITHIN):
            return bool(await reader.readuntil(b"}"))
    except (ConnectionError, asyncio.IncompleteReadError):
        return False


async def test_a_standing_connection_to_etcd_is_cut(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, gone, kept = make("test1"), make("gone"), make("kept")
        await first(one)
        await another(gone, one, Role.HYPERVISOR)
        await another(kept, one, Role.HYPERVISOR)
        port = one.settings.etcd.client_port
        cut = EtcdCut(one.store, (port, one.settings.etcd.peer_port), lambda: one.process.pid)
        following = asyncio.create_task(revocation.follow(one.store, folder(one), one.vault, cut=cut))
        try:
            opened = {}
            for each in (gone, kept):
                context = tls.client_context(folder(each))
                where = {"ssl": context, "server_hostname": one.address, "local_addr": (each.address, 0)}
                opened[each.name] = await asyncio.open_connection(one.address, port, **where)
                assert await request(*opened[each.name], one.address)
            await members.forget(one.store, one.store.voters, one.settings, "gone")
            async with asyncio.timeout(WITHIN):
                with contextlib.suppress(ConnectionError):
                    assert await opened["gone"][0].read() == b"", "etcd's end was shut down"
            assert not await request(*opened["gone"], one.address)
            assert await request(*opened["kept"], one.address)
            await settled(gone, one, inside=False)
            for _, writer in opened.values():
                writer.close()
        finally:
            await stop(following)


async def test_a_standing_connection_is_cut_by_etcds_watch(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, gone = make("test1"), make("gone")
        await first(one)
        await another(gone, one, Role.HYPERVISOR)
        shown = tls.Shown("gone", crl.serial((folder(gone) / "server-cert.pem").read_text())[0])
        admission = Admission(one.store, tls.Shown("test1", "0"), tmp_path / "certificates.json", rescan=3600)
        running, cut = asyncio.create_task(admission.run()), asyncio.Event()
        try:
            await eventually((tmp_path / "certificates.json").exists)
            assert admission.admits(shown)
            with admission.standing(shown, cut.set):
                begun = time.monotonic()
                await members.forget(one.store, one.store.voters, one.settings, "gone")
                async with asyncio.timeout(WITHIN):
                    await cut.wait()
            print(f"cut {(time.monotonic() - begun) * 1000:.0f} ms after the order was given")
        finally:
            await stop(running)


async def test_a_state_folder_of_an_older_veery_gets_its_list(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one = make("test1")
        await first(one)
        await one.stop_etcd()
        (folder(one) / crl.FILE).unlink()
        await one.start_etcd()
        await settled(one, one, inside=True)
        assert (folder(one) / crl.FILE).exists()


async def test_one_that_joins_again_under_its_name_is_let_in(tmp_path: Path) -> None:
    async with rig(tmp_path) as make:
        one, old, new = make("test1"), make("node"), make("node2")
        await first(one)
        await another(old, one, Role.HYPERVISOR)
        await members.leave(one.store, one.store.voters, one.settings, "node")
        new.name = "node"
        await another(new, one, Role.HYPERVISOR)
        await revocation.write(one.store, folder(one))
        assert not await lets_in(old, one)
        assert await lets_in(new, one)


def test_no_list_is_written_without_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="server-cert"):
        crl.ensure(tmp_path, epoch=time.time())
