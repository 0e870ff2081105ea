"""A new CA, step by step, with every node's part of it: on the store in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from veery.cluster import authorities, join, keys, renewal, revocation, vault
from veery.cluster.memory import MemoryStore
from veery.cluster.renewal import OVERLAP_S, Step
from veery.cluster.store import Put
from veery.cluster.vault import Vault
from veery.errors import Refused
from veery.host import crl, tls
from veery.host.clock import RealClock
from veery.host.contexts import Contexts
from veery.model import codec
from veery.model.cluster import Cluster, Trusting
from veery.model.node import Node, Role

EPOCH = 1_795_430_400.0  # 2026-11-23
NAMES = ("a", "b", "c")


class Cast:
    """Nodes a (a voter), b and c of one cluster, each with its folder; `now` is everybody's clock."""

    def __init__(self, root: Path) -> None:
        self.store, self.vault, self.now = MemoryStore(RealClock()), Vault(root), EPOCH
        self.ca = tls.make_ca("lab", epoch=EPOCH)
        self.folders = {name: root / name for name in NAMES}
        for name, folder in self.folders.items():
            request = tls.make_request(name)
            cert = tls.sign(self.ca, request.cert, name=name, addresses=["127.0.0.1"], epoch=EPOCH)
            tls.write_folder(folder, ca=self.ca.cert, node=tls.KeyPair(cert, request.key))

    async def begin(self) -> None:
        self.vault.make()
        name = vault.sealed_name(self.ca.cert)
        cluster = Cluster(name="lab", id="1", ca=self.ca.cert, authority="iqn.2026-11.internal.lab")
        records = [Put(name, self.vault.seal(self.ca.key, name)), Put(keys.CLUSTER, codec.encode(cluster))]
        for each in NAMES:
            role = Role.VOTER if each == "a" else Role.HYPERVISOR
            records.append(keys.NODES.put(each, Node(name=each, address="127.0.0.1", roles=(role,))))
        await self.store.commit([], records)
        for each in NAMES:
            await revocation.tell(self.store, each, self.folders[each])
            await self.trust(each)

    async def trust(self, name: str) -> None:
        """The node's part: its daemon trusts what the store names, and says so."""
        trusted = (await authorities.load(self.store)).authorities.trusted
        (self.folders[name] / "ca-cert.pem").write_text("".join(trusted))
        told = Trusting(ids=tuple(tls.authority_id(ca) for ca in trusted))
        await self.store.commit([], [keys.TRUSTS.put(name, told)])

    def held(self, name: str) -> tls.Facts:
        return tls.facts((self.folders[name] / "server-cert.pem").read_text())

    async def look(self, name: str) -> Step:
        """The node's part: one look at its certificate, and what it calls for."""
        held, known = self.held(name), await keys.CERTIFICATES.get(self.store, name)
        signing = (await authorities.load(self.store)).authorities.signing
        step = renewal.decide(held, known, signing=signing, now=self.now, idle=True)
        if step is Step.RENEW:
            shown = tls.Shown(name, held.serial)
            csr = renewal.request(self.folders[name], name)
            cert = await renewal.sign(self.store, self.vault, shown, csr, epoch=self.now)
            renewal.install(self.folders[name], name, cert)
        elif step is Step.RELEASE:
            await renewal.release(self.store, name, held.serial)
        return step

    async def renew(self) -> authorities.CaStatus:
        return await authorities.renew(self.store, self.vault, epoch=self.now)

    async def settle(self, *names: str) -> None:
        """Let these nodes renew, and put their former certificates out."""
        for name in names:
            await self.look(name)
        self.now += OVERLAP_S
        for name in names:
            await self.look(name)

    def meet(self, one: str, other: str) -> bool:
        """Whether the two trust each other's certificates."""
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature

        def trusts(who: str, whom: str) -> bool:
            cas = tls.split((self.folders[who] / "ca-cert.pem").read_text())
            cert = x509.load_pem_x509_certificate((self.folders[whom] / "server-cert.pem").read_bytes())
            for ca in cas:
                try:
                    cert.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.encode()))
                except (ValueError, InvalidSignature):
                    continue
                return True
            return False

        return trusts(one, other) and trusts(other, one)

    def all_meet(self) -> bool:
        return all(self.meet(one, other) for one in NAMES for other in NAMES)


async def test_a_new_ca_from_its_making_to_the_end_of_the_old_one(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    old = tls.authority_id(cast.ca.cert)
    assert not (await authorities.status(cast.store)).changing
    seen = await cast.renew()
    assert (seen.changing, seen.signing, seen.untrusting) == (True, old, NAMES)
    for name in NAMES:
        with pytest.raises(Refused, match="do not trust both CAs yet"):
            await cast.renew()
        await cast.trust(name)
        assert cast.all_meet()
    seen = await cast.renew()
    assert seen.signing == seen.trusted[1] != old
    assert (await cast.renew()) == seen, "ordered again it changes nothing"
    for name in NAMES:
        with pytest.raises(Refused, match=f"certificate of the other CA: .*{name}"):
            await authorities.drop(cast.store)
        await cast.look(name)
        assert cast.held(name).issuer == seen.signing
        assert cast.all_meet()
    with pytest.raises(Refused, match="a, b, c"):  # the former ones are let in still
        await authorities.drop(cast.store)
    await cast.settle(*NAMES)
    done = await authorities.drop(cast.store)
    assert (done.trusted, done.signing) == ((seen.signing,), seen.signing)
    for name in NAMES:
        await cast.trust(name)
        assert cast.all_meet()
    assert tls.authority_id((await keys.cluster(cast.store)).ca) == seen.signing
    assert await cast.store.get(vault.sealed_name(cast.ca.cert)) is None, "its key is gone"
    assert [await cast.look(name) for name in NAMES] == [Step.NOTHING] * 3
    again = await cast.renew()  # and another one
    assert again.changing


async def test_a_change_is_gone_back_on(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    old = tls.authority_id(cast.ca.cert)
    with pytest.raises(Refused, match="no new CA"):
        await authorities.cancel(cast.store)
    await cast.renew()
    for name in NAMES:
        await cast.trust(name)
    await cast.renew()
    await cast.settle("a")  # one has the new CA's certificate, two have the old one's
    seen = await authorities.cancel(cast.store)
    assert (seen.signing, seen.old) == (old, ("a",))
    with pytest.raises(Refused, match="other CA: a"):
        await authorities.drop(cast.store)
    await cast.settle(*NAMES)
    assert cast.all_meet()
    assert (await authorities.drop(cast.store)).trusted == (old,)


async def test_a_node_that_is_away_keeps_the_steps_from_being_taken(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    await cast.renew()
    for name in ("a", "b"):
        await cast.trust(name)
    with pytest.raises(Refused, match="yet: c"):
        await cast.renew()
    await cast.trust("c")
    await cast.renew()
    await cast.settle("a", "b")
    with pytest.raises(Refused, match="other CA: c"):
        await authorities.drop(cast.store)
    # a record that cannot be read is in the way too
    await cast.settle("c")
    await cast.store.commit([], [Put(keys.CERTIFICATES.key("b"), b"of a newer veery")])
    with pytest.raises(Refused, match="other CA: b"):
        await authorities.drop(cast.store)


async def test_a_drop_is_undone_by_a_certificate_that_changed_meanwhile(tmp_path: Path) -> None:
    """The conditions of the transaction are the records that it was judged by."""
    cast = Cast(tmp_path)
    await cast.begin()
    await cast.renew()
    for name in NAMES:
        await cast.trust(name)
    await cast.renew()
    await cast.settle(*NAMES)
    standing, seen, conditions = await authorities._observe(cast.store)
    assert not seen.old
    record = await keys.CERTIFICATES.get(cast.store, "b")
    assert record is not None
    await cast.store.commit([], [keys.CERTIFICATES.put("b", record)])
    assert not (await cast.store.commit(conditions, [Put("never", b"")])).held
    assert standing.revision


async def test_the_list_of_revoked_certificates_is_signed_by_both(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    await revocation.publish(cast.store, ["abc"], cast.vault, epoch=EPOCH)
    await cast.renew()
    await revocation.publish(cast.store, ["abc"], cast.vault, epoch=EPOCH)
    entry = await cast.store.get(keys.CA_LIST)
    assert entry is not None
    text = entry.value.decode()
    assert (text.count(crl.BEGIN), crl.listed(text)) == (2, {"abc"})
    folder = cast.folders["a"]
    await cast.trust("a")
    (folder / crl.CA_FILE).write_text(text)
    Contexts(folder)


async def test_a_ca_whose_key_is_lost_is_replaced(tmp_path: Path) -> None:
    """No voter has the sealing key any more: its last list stands beside the new CA's, and the change goes through."""
    cast = Cast(tmp_path)
    await cast.begin()
    await revocation.publish(cast.store, ["abc"], cast.vault, epoch=EPOCH)
    (tmp_path / vault.FILE).unlink()
    cast.vault.make()
    await revocation.publish(cast.store, ["abc", "def"], cast.vault, epoch=EPOCH)  # nothing else can be done
    await cast.renew()
    await revocation.publish(cast.store, ["abc", "def"], cast.vault, epoch=EPOCH)
    entry = await cast.store.get(keys.CA_LIST)
    assert entry is not None
    text = entry.value.decode()
    assert (text.count(crl.BEGIN), crl.listed(text)) == (2, {"abc", "def"})
    for name in NAMES:
        await cast.trust(name)
    await cast.renew()
    await cast.settle(*NAMES)
    await authorities.drop(cast.store)


async def test_nobody_joins_while_the_ca_changes(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    await join.make_token(cast.store, "a")
    await cast.renew()
    with pytest.raises(Refused, match="while the cluster's CA changes"):
        await join.make_token(cast.store, "a")


async def test_a_node_without_a_vote_makes_no_ca(tmp_path: Path) -> None:
    cast = Cast(tmp_path)
    await cast.begin()
    with pytest.raises(Refused, match="only a voter can make"):
        await authorities.renew(cast.store, Vault(tmp_path / "b"), epoch=EPOCH)
