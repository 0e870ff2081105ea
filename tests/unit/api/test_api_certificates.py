"""Renewal and revocation in running daemons: new connections follow the files, those that stand stay or are cut."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from test_api_server import ADDRESS, Served, sign

from veery.cluster import renewal, vault
from veery.cluster.admission import Admission
from veery.cluster.keys import CERTIFICATES, CLUSTER
from veery.cluster.memory import MemoryStore
from veery.cluster.store import Delete, Put
from veery.cluster.vault import Vault
from veery.errors import Refused
from veery.host import crl, tls
from veery.host.clock import RealClock
from veery.host.contexts import Contexts
from veery.host.tasks import stop
from veery.model import codec
from veery.model.cluster import Certificate, Cluster
from veery.node.peers import Peers

WITHIN_S = 30.0


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    (tmp_path / "run").mkdir()
    serving = Served(tmp_path / "tls", tmp_path / "run")
    await serving.open()
    yield serving
    await serving.close()


@pytest.fixture
async def calling(served: Served) -> AsyncIterator[tuple[Peers, Contexts]]:
    """Node c, as a daemon that has run for a while calls others."""
    contexts = Contexts(served.folders["c"])
    peers = Peers(contexts.client, served._node)
    yield peers, contexts
    await peers.close()


async def test_a_call_knows_a_certificate_that_was_revoked_a_moment_ago(
    served: Served, calling: tuple[Peers, Contexts]
) -> None:
    peers, _ = calling
    assert await peers.call("a", "GET", "/v1/who") == {"caller": "c"}
    gone, _ = crl.serial((served.folders["a"] / "server-cert.pem").read_text())
    signed = crl.sign(served.authority.cert, served.authority.key, [gone], number=1, epoch=time.time())
    (served.folders["c"] / crl.CA_FILE).write_text(signed)
    with pytest.raises(Refused, match="certificate"):
        await peers.call("a", "GET", "/v1/who")
    assert await peers.call("b", "GET", "/v1/who") == {"caller": "c"}
    signed = crl.sign(served.authority.cert, served.authority.key, [], number=2, epoch=time.time())
    (served.folders["c"] / crl.CA_FILE).write_text(signed)
    assert await peers.call("a", "GET", "/v1/who") == {"caller": "c"}


async def test_unfit_files_leave_the_context_that_was(calling: tuple[Peers, Contexts], served: Served) -> None:
    peers, contexts = calling
    before = contexts.client()
    (served.folders["c"] / crl.CA_FILE).write_text("cut short")
    assert contexts.client() is before
    assert await peers.call("a", "GET", "/v1/who") == {"caller": "c"}


async def test_a_renewal_leaves_standing_connections_and_is_shown_by_new_ones(
    served: Served, calling: tuple[Peers, Contexts], tmp_path: Path
) -> None:
    peers, contexts = calling
    own, name = Vault(tmp_path / "voter"), vault.sealed_name(served.authority.cert)
    own.make()
    cluster = Cluster(name="lab", id="1", ca=served.authority.cert, authority="iqn.2026-11.internal.lab")
    node = await served._node("a")
    await served.store.commit(
        [],
        [
            Put(name, own.seal(served.authority.key, name)),
            Put(CLUSTER, codec.encode(cluster)),
            Put("node/c", codec.encode(node).replace(b'"name":"a"', b'"name":"c"')),
        ],
    )
    folder, first = served.folders["c"], contexts.serial
    async with aiohttp.ClientSession() as standing:
        old = contexts.client()
        where = f"https://{ADDRESS}:{served.ports['a']}/v1/events/follow"
        async with standing.post(where, ssl=old) as answer:
            assert b"begun" in await answer.content.readline()
            shown = tls.Shown("c", first)
            cert = await renewal.sign(served.store, own, shown, renewal.request(folder, "c"), epoch=time.time())
            renewal.install(folder, "c", cert)
            assert contexts.serial != first
            assert await peers.call("a", "GET", "/v1/who") == {"caller": "c"}
            async with asyncio.timeout(WITHIN_S):  # it stands: the server says so now and then
                assert await answer.content.readline()
            assert await renewal.release(served.store, "c", contexts.serial)
            async with asyncio.timeout(WITHIN_S):  # the former is out: what stands by it is cut
                with contextlib.suppress(aiohttp.ClientError):
                    while await answer.content.readline():
                        pass
    assert await peers.call("a", "GET", "/v1/who") == {"caller": "c"}


async def test_put_out_means_out_a_standing_stream_ends(served: Served) -> None:
    context = tls.client_context(served.folders["c"])
    where = f"https://{ADDRESS}:{served.ports['a']}/v1/events/follow"
    async with aiohttp.ClientSession() as session, session.post(where, ssl=context) as answer:
        assert b"begun" in await answer.content.readline()
        await served.store.commit([], [Delete(CERTIFICATES.key("c"))])
        with contextlib.suppress(aiohttp.ClientError):
            async with asyncio.timeout(WITHIN_S):
                while await answer.content.readline():
                    pass


async def test_the_watch_cuts_and_no_look_at_the_store_is_waited_for(tmp_path: Path) -> None:
    store, cut = MemoryStore(RealClock()), asyncio.Event()
    await store.commit([], [CERTIFICATES.put("c", Certificate(serial="1", ends=0.0))])
    admission = Admission(store, tls.Shown("a", "0"), tmp_path / "file", rescan=3600)
    running = asyncio.create_task(admission.run())
    try:
        assert await admission.lets_in(tls.Shown("c", "1"))
        while not (tmp_path / "file").exists():
            await asyncio.sleep(0.01)
        with admission.standing(tls.Shown("c", "1"), cut.set):
            # renewed, with the one before let in still: it stands
            renewed = Certificate(serial="2", ends=0.0, former="1")
            await store.commit([], [CERTIFICATES.put("c", renewed)])
            while not admission.admits(tls.Shown("c", "2")):
                await asyncio.sleep(0.01)
            assert (admission.admits(tls.Shown("c", "1")), cut.is_set()) == (True, False)
            await store.commit([], [Delete(CERTIFICATES.key("c"))])
            async with asyncio.timeout(WITHIN_S):
                await cut.wait()
        assert not admission.admits(tls.Shown("c", "1"))
        assert not admission.admits(tls.Shown("c", "2"))
    finally:
        await stop(running)


def test_both_certificates_of_a_node_outlive_a_restart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text('{"c":["2","1"],"d":"3"}')  # d as an older veery wrote it
    admission = Admission(MemoryStore(RealClock()), tls.Shown("a", "0"), tmp_path / "file")
    shown = [tls.Shown("c", "1"), tls.Shown("c", "2"), tls.Shown("d", "3"), tls.Shown("d", "1")]
    assert [admission.admits(each) for each in shown] == [True, True, True, False]


async def test_what_a_node_asks_for_itself_is_not_sent_on(served: Served) -> None:
    """Another node's certificate would get what the caller's own does not: b sees a, and not c."""
    headers = {"X-Veery-Node": "b"}
    async with aiohttp.ClientSession() as session:
        for path, expected in (("/v1/who", 200), ("/v1/direct", 409), ("/v1/%64irect", 409)):
            where = f"https://{ADDRESS}:{served.ports['a']}{path}"
            async with session.get(where, headers=headers, ssl=served.context("c")) as answer:
                assert answer.status == expected, path
        where = f"https://{ADDRESS}:{served.ports['b']}/v1/direct"
        async with session.get(where, ssl=served.context("c")) as answer:
            assert await answer.json() == {"caller": "c"}


def test_both_contexts_are_of_the_folder(tmp_path: Path) -> None:
    authority = tls.make_ca("lab", epoch=time.time())
    folder = sign(tmp_path / "n", authority, "n")
    contexts = Contexts(folder)
    assert (contexts.server() is contexts.server(), contexts.client() is contexts.client()) == (True, True)
    before = contexts.serial
    sign(folder, authority, "n")
    assert contexts.serial != before
