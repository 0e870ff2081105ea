"""A certificate's renewal, step by step, and what a crash between two steps leaves: on the store in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.cluster import keys, renewal, revocation
from veery.cluster.memory import MemoryStore
from veery.cluster.renewal import OVERLAP_S, RENEW_FRACTION, Step, decide
from veery.cluster.store import Put
from veery.cluster.vault import Vault, sealed_name
from veery.errors import Failed, Refused
from veery.host import tls
from veery.host.clock import RealClock
from veery.model import codec
from veery.model.cluster import Certificate, Cluster
from veery.model.node import Node, Role

EPOCH = 1_795_430_400.0  # 2026-11-23
HOUR = 3600.0


class Place:
    """A cluster with node `n`, whose certificate is in `folder`."""

    def __init__(self, root: Path) -> None:
        self.ca = tls.make_ca("lab", epoch=EPOCH)
        self.id = tls.authority_id(self.ca.cert)
        self.folder, self.store, self.vault = root / "tls", MemoryStore(RealClock()), Vault(root)
        request = tls.make_request("n")
        cert = tls.sign(self.ca, request.cert, name="n", addresses=["127.0.0.1"], epoch=EPOCH)
        tls.write_folder(self.folder, ca=self.ca.cert, node=tls.KeyPair(cert, request.key))

    async def begin(self) -> None:
        self.vault.make()
        name = sealed_name(self.ca.cert)
        cluster = Cluster(name="lab", id="1", ca=self.ca.cert, authority="iqn.2026-11.internal.lab")
        node = Node(name="n", address="127.0.0.1", roles=(Role.HYPERVISOR,))
        records = [Put(name, self.vault.seal(self.ca.key, name)), Put(keys.CLUSTER, codec.encode(cluster))]
        await self.store.commit([], [*records, keys.NODES.put("n", node)])
        await revocation.tell(self.store, "n", self.folder)

    @property
    def held(self) -> tls.Facts:
        return tls.facts((self.folder / "server-cert.pem").read_text())

    async def known(self) -> Certificate:
        found = await keys.CERTIFICATES.get(self.store, "n")
        assert found is not None
        return found

    async def step(self, now: float, *, idle: bool = True) -> Step:
        return decide(self.held, await self.known(), signing=self.id, now=now, idle=idle)

    async def sign(self, now: float, address: str = "") -> str:
        shown, csr = tls.Shown("n", self.held.serial), renewal.request(self.folder, "n")
        return await renewal.sign(self.store, self.vault, shown, csr, epoch=now, address=address)

    async def revoked(self) -> set[str]:
        return set(await keys.REVOKED.all(self.store))


async def test_it_is_renewed_at_two_thirds_of_its_life_and_the_former_goes_later(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    first = place.held
    due = first.begins + RENEW_FRACTION * (first.ends - first.begins)
    assert await place.step(due - 1) is Step.NOTHING
    assert await place.step(due) is Step.RENEW
    renewal.install(place.folder, "n", await place.sign(due))
    second = place.held
    assert (second.serial != first.serial, second.public, second.ends > first.ends) == (True, first.public, True)
    known = await place.known()
    assert (known.serial, known.former, known.former_ends) == (second.serial, first.serial, first.ends)
    assert await place.revoked() == set()  # both are let in
    assert await place.step(due + OVERLAP_S - 1) is Step.NOTHING
    assert await place.step(due + OVERLAP_S, idle=False) is Step.NOTHING  # a move may have begun under the former
    assert await place.step(due + OVERLAP_S) is Step.RELEASE
    assert await renewal.release(place.store, "n", second.serial)
    assert await place.revoked() == {first.serial}
    assert (await place.known()).former == ""
    assert await place.step(due + OVERLAP_S) is Step.NOTHING
    assert not await renewal.release(place.store, "n", second.serial)


async def test_the_former_is_not_put_out_before_the_new_one_is_installed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    first = place.held
    await place.sign(EPOCH)  # and the daemon dies
    assert not await renewal.release(place.store, "n", first.serial)
    assert await place.step(EPOCH + HOUR) is Step.RENEW


async def test_a_certificate_that_got_lost_is_put_out_by_the_next_one(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    first = place.held
    await place.sign(EPOCH)
    lost = (await place.known()).serial
    await revocation.tell(place.store, "n", place.folder)  # as the next daemon does at its start
    assert (await place.known()).serial == lost, "the node's own certificate must stay the former one"
    renewal.install(place.folder, "n", await place.sign(EPOCH + 60))
    known = await place.known()
    assert (known.serial, known.former) == (place.held.serial, first.serial)
    assert await place.revoked() == {lost}


async def test_a_crash_between_the_two_files_leaves_pairs_and_is_mended(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    cert = await place.sign(EPOCH)
    (place.folder / "server-cert.pem").write_text(cert)
    tls.server_context(place.folder)
    tls.client_context(place.folder)
    renewal.mend(place.folder)
    assert (place.folder / "client-cert.pem").read_text() == cert
    await revocation.tell(place.store, "n", place.folder)
    assert await place.step(EPOCH) is Step.NOTHING


async def test_a_certificate_for_another_key_is_not_installed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    before = place.held
    other = tls.sign(place.ca, tls.make_request("n").cert, name="n", addresses=[], epoch=EPOCH)
    with pytest.raises(Failed, match="another key"):
        renewal.install(place.folder, "n", other)
    assert place.held == before


async def test_only_the_certificate_of_a_node_gets_another(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    csr = renewal.request(place.folder, "n")
    for shown in (tls.Shown("n", "abc"), tls.Shown("m", place.held.serial), tls.Shown("n", "")):
        with pytest.raises(Refused, match="no certificate of a node"):
            await renewal.sign(place.store, place.vault, shown, csr, epoch=EPOCH)


async def test_both_certificates_of_a_node_go_with_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    first = place.held
    renewal.install(place.folder, "n", await place.sign(EPOCH))
    await place.store.commit([], await revocation.revoke(place.store, "n"))
    assert await place.revoked() == {first.serial, place.held.serial}


async def test_a_record_of_an_older_veery_learns_its_issuer(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    old = Certificate(serial=place.held.serial, ends=place.held.ends)
    await place.store.commit([], [keys.CERTIFICATES.put("n", old)])
    await revocation.tell(place.store, "n", place.folder)
    assert (await place.known()).issuer == place.id


async def test_it_is_good_for_an_address_that_the_node_is_about_to_have(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    other = Node(name="o", address="10.0.0.7", roles=(Role.HYPERVISOR,), former=("fd00::7",))
    await place.store.commit([], [keys.NODES.put("o", other)])
    for taken in ("10.0.0.7", "fd00:0::7"):
        with pytest.raises(Refused, match="o's address"):
            await place.sign(EPOCH + HOUR, taken)
    with pytest.raises(Refused, match="not an IP address"):
        await place.sign(EPOCH + HOUR, "nowhere")
    renewal.install(place.folder, "n", await place.sign(EPOCH + HOUR, "fd00::9"))
    assert set(place.held.addresses) == {"127.0.0.1", "fd00::9"}


async def test_it_stays_good_for_a_former_address_while_that_is_served(tmp_path: Path) -> None:
    place = Place(tmp_path)
    await place.begin()
    node = Node(name="n", address="10.0.0.9", roles=(Role.HYPERVISOR,), former=("10.0.0.8",))
    await place.store.commit([], [keys.NODES.put("n", node)])
    renewal.install(place.folder, "n", await place.sign(EPOCH + HOUR))
    assert set(place.held.addresses) == {"10.0.0.9", "10.0.0.8", "127.0.0.1"}
