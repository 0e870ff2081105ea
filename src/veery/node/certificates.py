"""Keeps this node's certificate, the CAs that it trusts, and a voter's sealing key as the cluster requires."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veery.cluster import authorities, keys, renewal, revocation, vault
from veery.cluster.admission import Admission
from veery.cluster.authorities import CaStatus
from veery.cluster.renewal import RenewReply, RenewRequest, Step
from veery.cluster.store import Put, Store, Unchanged
from veery.cluster.vault import Vault
from veery.errors import Failed, Refused, VeeryError
from veery.host import crl, tls
from veery.host.clock import Clock
from veery.host.contexts import Contexts
from veery.host.files import write_atomic
from veery.host.tasks import look_for_ever
from veery.model.cluster import Trusting
from veery.model.codec import convert, plain
from veery.model.node import Node, Role
from veery.node.peers import Peers

log = logging.getLogger(__name__)

LOOK_S = 5.0
ASK_S = 20.0  # for the answer of a voter
STEP_TTL_S = 180  # longer than a restart of etcd may take
CA_FILE, CERT_FILE = "ca-cert.pem", "server-cert.pem"
MAJORITY = 3  # with fewer voters the store has no quorum while one of them restarts


@dataclass(frozen=True, slots=True)
class Etcd:
    """The etcd of a voter. `restart` restarts it; with force also if the store has no quorum meanwhile. `pid` is a file
    that is written when it starts."""

    restart: Callable[[bool], Awaitable[None]]
    pid: Path


class Certificates:
    """Keeps the certificates of a node. The daemon owns the task of `run`."""

    def __init__(
        self,
        node: Node,
        store: Store,
        vault: Vault,
        *,
        contexts: Contexts,
        admission: Admission,
        peers: Peers,
        clock: Clock,
        folder: Path,
        idle: Callable[[], bool],
        settled: Callable[[str], None],
        etcd: Etcd | None = None,
    ) -> None:
        """`folder` holds the certificates. `idle` returns True if no move is under way here. `settled` is called with
        the CA's certificate while there is only one. `etcd` is given on a voter."""
        self._node, self._store, self._vault = node, store, vault
        self._contexts, self._admission, self._peers, self._clock = contexts, admission, peers, clock
        self._folder, self._idle, self._settled, self._etcd = folder, idle, settled, etcd
        self._busy = asyncio.Lock()
        self._generation = store.generation()

    async def run(self) -> None:
        """Until cancelled: renew in time, follow the CAs, hold the sealing key."""
        renewal.mend(self._folder)
        await look_for_ever(self.look, what="certificates", every_s=LOOK_S, clock=self._clock, log=log)

    async def look(self) -> None:
        """Check once, and do what is needed. Raises VeeryError, OSError."""
        if self._node.has(Role.VOTER):
            await vault.carry(self._store, self._vault, self._node.name, self._ask_sealing)
        else:
            await vault.let_go(self._store, self._vault, self._node)
        await self._trust()
        if (generation := self._store.generation()) != self._generation:  # it may know an older certificate
            await revocation.tell(self._store, self._node.name, self._folder)
            self._generation = generation
        async with self._busy:
            held = self._held()
            signing = (await authorities.load(self._store)).authorities.signing
            known = await keys.CERTIFICATES.get(self._store, self._node.name)
            step = renewal.decide(held, known, signing=signing, now=self._clock.epoch(), idle=self._idle())
            if step is Step.RENEW:
                await self._renew(held)
            elif step is Step.RELEASE and self._contexts.serial == held.serial:
                await renewal.release(self._store, self._node.name, held.serial)

    # ---- orders
    async def renew(self, name: str) -> dict[str, Any]:
        """Renew the certificate of node `name` now. Raises Refused while its former certificate is still accepted."""
        if name != self._node.name:
            return convert(await self._peers.call(name, "POST", f"/v1/nodes/{name}/renew"), dict[str, Any])
        async with self._busy:
            held = self._held()
            await self._require_single(held)
            fresh = await self._renew(held)
        return {"node": name, "serial": fresh.serial, "ends": fresh.ends}

    async def cover(self, address: str) -> None:
        """Renew this node's certificate so that it also covers `address`. Raises Refused while a former one is still
        accepted, Failed if a voter of an older version signed."""
        async with self._busy:
            held = self._held()
            if address in held.addresses:
                return
            await self._require_single(held)
            fresh = await self._renew(held, address)
        if address not in fresh.addresses:
            raise Failed(f"the voter that signed cannot add {address}: its version is older", hint="veery version -a")

    async def require_cover(self, address: str) -> None:
        """Raise Refused if `cover` would."""
        if address not in (held := self._held()).addresses:
            await self._require_single(held)

    async def _require_single(self, held: tls.Facts) -> None:
        """Raise Refused while the certificate before `held` is still accepted: another renewal would cut it off."""
        known = await keys.CERTIFICATES.get(self._store, self._node.name)
        if known is not None and known.serial == held.serial and known.former:
            ends = max(0.0, known.since + renewal.OVERLAP_S - self._clock.epoch())
            raise Refused(
                f"{self._node.name} was renewed recently, and its former certificate is accepted for "
                f"{ends / 60:.0f} min or more",
                hint=f"when that is over, and no move is under way here: veery node renew {self._node.name}",
            )

    async def sign(self, shown: tls.Shown, request: RenewRequest) -> RenewReply:
        """Answer POST /v1/certificates of another node."""
        now, address = self._clock.epoch(), request.address
        cert = await renewal.sign(self._store, self._vault, shown, request.csr, epoch=now, address=address)
        return RenewReply(cert=cert)

    async def sealing(self, caller: str) -> str:
        """Answer POST /v1/sealing: return the sealing key to another voter. Raises Refused."""
        node = await keys.NODES.get(self._store, caller)
        if node is None or not node.has(Role.VOTER):
            log.warning("refused to give the sealing key to %s: it has no vote", caller)
            raise Refused(f"{caller or 'the caller'} has no vote", hint="veery node list shows the voters")
        return self._vault.export()

    async def status(self) -> CaStatus:
        """Return how far a change of CA has come."""
        return await authorities.status(self._store)

    async def new_ca(self) -> CaStatus:
        """Take the next step to a new CA, on a voter."""
        if self._node.has(Role.VOTER):
            return await authorities.renew(self._store, self._vault, epoch=self._clock.epoch())
        return convert(await self._of_voter("POST", "/v1/ca/renew"), CaStatus)

    async def cancel(self) -> CaStatus:
        """Return to the oldest CA."""
        return await authorities.cancel(self._store)

    async def drop(self) -> CaStatus:
        """Trust only the CA that signs."""
        return await authorities.drop(self._store)

    # ---- inside
    def _held(self) -> tls.Facts:
        return tls.facts((self._folder / CERT_FILE).read_text())

    async def _renew(self, held: tls.Facts, address: str = "") -> tls.Facts:
        name = self._node.name
        csr = renewal.request(self._folder, name)
        if self._node.has(Role.VOTER):
            shown = tls.Shown(name, held.serial)
            now = self._clock.epoch()
            cert = await renewal.sign(self._store, self._vault, shown, csr, epoch=now, address=address)
        else:
            told = await self._of_voter("POST", "/v1/certificates", plain(RenewRequest(csr=csr, address=address)))
            cert = convert(told, RenewReply).cert
        fresh = renewal.install(self._folder, name, cert)
        self._admission.own = tls.Shown(name, fresh.serial)
        return fresh

    async def _of_voter(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer of the first voter that answers. Raises what the last one raised."""
        last: VeeryError = Failed("the cluster has no voter", hint="veery node list")
        for node in (await keys.NODES.readable(self._store)).values():
            if node.has(Role.VOTER):
                try:
                    return await self._peers.call(node.name, method, path, body, deadline=ASK_S)
                except VeeryError as error:
                    last = error
        raise last

    async def _ask_sealing(self, voter: str) -> str:
        return str((await self._peers.call(voter, "POST", "/v1/sealing", deadline=ASK_S))["key"])

    async def _trust(self) -> None:
        """Trust the CAs that the store names, restart etcd for them, and record which ones are trusted."""
        found = (await authorities.load(self._store)).authorities
        wanted = [*found.trusted, *self._own_issuer(found.trusted)]
        file, bundle = self._folder / CA_FILE, "".join(wanted)
        if file.read_text() != bundle:
            write_atomic(file, bundle, mode=0o644, sync=True)
            log.info("%d CAs are trusted now", len(wanted))
        if self._etcd is not None and _older(self._etcd.pid, file):
            await self._restart_etcd(self._etcd)
        if self._node.has(Role.VOTER):
            await self._relist()
        if len(found.trusted) > 1 and not self._listed(len(found.trusted)):
            return  # without the new CA's list its certificates would be refused
        if len(wanted) == 1:
            self._settled(wanted[0])
        told = Trusting(ids=tuple(tls.authority_id(ca) for ca in wanted))
        if await keys.TRUSTS.get(self._store, self._node.name) != told:
            await self._store.commit([], [keys.TRUSTS.put(self._node.name, told)])

    def _own_issuer(self, trusted: tuple[str, ...]) -> list[str]:
        """Return the CA of this node's own certificate, if it is not among `trusted`.

        A store may have been restored from a backup that is older than that CA. The CA is dropped when the certificate
        has been renewed."""
        issuer = self._held().issuer
        if issuer in {tls.authority_id(ca) for ca in trusted}:
            return []
        return [ca for ca in tls.split((self._folder / CA_FILE).read_text()) if tls.authority_id(ca) == issuer]

    def _listed(self, count: int) -> bool:
        """Return True if the list of revoked certificates, where one exists, is signed by at least `count` CAs."""
        try:
            return (self._folder / crl.CA_FILE).read_text().count(crl.BEGIN) >= count
        except FileNotFoundError:
            return True

    async def _relist(self) -> None:
        """Sign the list of revoked certificates by every trusted CA."""
        now = self._clock.epoch()
        await revocation.publish(self._store, await revocation.serials(self._store, now), self._vault, epoch=now)

    async def _restart_etcd(self, etcd: Etcd) -> None:
        voters = [node for node in (await keys.NODES.readable(self._store)).values() if node.has(Role.VOTER)]
        async with self._turn():
            await etcd.restart(len(voters) < MAJORITY)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Hold the turn of one voter. Raises Refused while another voter has it."""
        lease = await self._store.grant(STEP_TTL_S)
        try:
            mine = Put(keys.CA_STEP, self._node.name.encode(), lease)
            if not (await self._store.commit([Unchanged(keys.CA_STEP, 0)], [mine])).held:
                raise Refused("another voter restarts its etcd for a change of CA", hint="veery cluster ca show")
            yield
        finally:
            with contextlib.suppress(VeeryError):
                await self._store.revoke(lease)


def _older(one: Path, other: Path) -> bool:
    """Return True if file `one` was written before `other`; False if `one` does not exist."""
    try:
        return one.stat().st_mtime < other.stat().st_mtime
    except FileNotFoundError:
        return False
