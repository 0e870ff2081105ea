"""What a daemon does by itself about certificates, and whom it gives the sealing key: on the store in memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from veery.cluster import keys, vault
from veery.cluster.admission import Admission
from veery.cluster.memory import MemoryStore
from veery.cluster.revocation import tell
from veery.cluster.store import Put
from veery.cluster.vault import Vault
from veery.errors import Refused
from veery.host import tls
from veery.host.clock import RealClock
from veery.host.contexts import Contexts
from veery.model import codec
from veery.model.cluster import Cluster
from veery.model.node import Node, Role
from veery.node.certificates import Certificates
from veery.node.peers import Peers


class Ahead(RealClock):
    """A clock that can be put forward."""

    ahead = 0.0

    def epoch(self) -> float:
        return time.time() + self.ahead


class Daemon:
    """Voter a; h has no vote."""

    def __init__(self, root: Path) -> None:
        self.folder, self.store, self.clock = root / "tls", MemoryStore(RealClock()), Ahead()
        self.ca, self.settled = tls.make_ca("lab", epoch=time.time()), ""
        request = tls.make_request("a")
        cert = tls.sign(self.ca, request.cert, name="a", addresses=["127.0.0.1"], epoch=time.time())
        tls.write_folder(self.folder, ca=self.ca.cert, node=tls.KeyPair(cert, request.key))
        self.contexts, self.vault = Contexts(self.folder), Vault(root)
        self.node = Node(name="a", address="127.0.0.1", roles=(Role.VOTER,))
        self.admission = Admission(self.store, tls.Shown("a", self.contexts.serial), root / "certificates.json")
        self.certificates = Certificates(
            self.node,
            self.store,
            self.vault,
            contexts=self.contexts,
            admission=self.admission,
            peers=Peers(self.contexts.client, self._find),
            clock=self.clock,
            folder=self.folder,
            idle=lambda: True,
            settled=self._settle,
        )

    async def _find(self, name: str) -> Node:
        raise Refused(f"no node {name}")

    def _settle(self, ca: str) -> None:
        self.settled = ca

    async def begin(self) -> None:
        self.vault.make()
        name = vault.sealed_name(self.ca.cert)
        cluster = Cluster(name="lab", id="1", ca=self.ca.cert, authority="iqn.2026-11.internal.lab")
        records = [Put(name, self.vault.seal(self.ca.key, name)), Put(keys.CLUSTER, codec.encode(cluster))]
        other = Node(name="h", address="127.0.0.1", roles=(Role.HYPERVISOR, Role.STORAGE))
        records += [keys.NODES.put("a", self.node), keys.NODES.put("h", other)]
        await self.store.commit([], records)
        await tell(self.store, "a", self.folder)
        for _ in range(3):
            await self.certificates.look()


async def test_only_a_voter_gets_the_sealing_key(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    await daemon.begin()
    for caller in ("h", "stranger"):
        with pytest.raises(Refused, match="has no vote"):
            await daemon.certificates.sealing(caller)
    assert await daemon.certificates.sealing("a") == daemon.vault.export()


async def test_a_daemon_renews_by_itself_in_time(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    await daemon.begin()
    first = daemon.contexts.serial
    await daemon.certificates.look()
    assert daemon.contexts.serial == first
    daemon.clock.ahead = tls.NODE_DAYS * 86400 * 0.7
    await daemon.certificates.look()
    second = daemon.contexts.serial
    assert (second != first, daemon.admission.own.serial) == (True, second)
    with pytest.raises(Refused, match="renewed recently"):
        await daemon.certificates.renew("a")
    daemon.clock.ahead += 3600
    await daemon.certificates.look()
    assert set(await keys.REVOKED.all(daemon.store)) == {first}
    assert (await daemon.certificates.renew("a"))["serial"] == daemon.contexts.serial != second


async def test_a_daemon_follows_a_new_ca_to_its_end(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    await daemon.begin()
    await daemon.store.commit([], [])
    await daemon.certificates.new_ca()
    assert (await daemon.certificates.status()).untrusting == ("a", "h")
    await daemon.certificates.look()
    assert (await daemon.certificates.status()).untrusting == ("h",)
    assert len(tls.split((daemon.folder / "ca-cert.pem").read_text())) == 2
    assert daemon.settled == daemon.ca.cert
    await daemon.certificates.cancel()
    with pytest.raises(Refused, match="yet: h"):
        await daemon.certificates.drop()


async def test_the_ca_of_the_own_certificate_stays_trusted(tmp_path: Path) -> None:
    """A store that was restored from before the change of CA does not make the nodes strangers to each other."""
    daemon = Daemon(tmp_path)
    await daemon.begin()
    older = tls.make_ca("lab", epoch=time.time(), mark="older")
    name = vault.sealed_name(older.cert)
    cluster = Cluster(name="lab", id="1", ca=older.cert, authority="iqn.2026-11.internal.lab")
    restored = [Put(keys.CLUSTER, codec.encode(cluster)), Put(name, daemon.vault.seal(older.key, name))]
    await daemon.store.commit([], restored)
    await daemon.certificates.look()  # trusts both, and renews under the one that the store knows
    assert tls.split((daemon.folder / "ca-cert.pem").read_text()) == [older.cert, daemon.ca.cert]
    assert tls.facts((daemon.folder / "server-cert.pem").read_text()).issuer == tls.authority_id(older.cert)
    await daemon.certificates.look()
    assert tls.split((daemon.folder / "ca-cert.pem").read_text()) == [older.cert]
