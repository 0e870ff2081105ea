"""The cluster's CAs: one, and two for as long as a new one is rolled out.

    renew    a new CA is made; all nodes come to trust both           trusted: old, new   signing: old
    renew    every node trusts both: the new one signs, nodes renew   trusted: old, new   signing: new
    drop     no node has a certificate of the other one any more      trusted: new        signing: new
    cancel   in between: the old one signs again, nodes renew; then `drop` drops the new one

Each step is one transaction. Its conditions are what it was judged by, so it may be broken off and ordered again at
any point. A node that is away keeps a step from being taken: it would no longer know the others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from veery.cluster import keys, vault
from veery.cluster.store import Delete, Put, Store, Unchanged
from veery.cluster.vault import Vault
from veery.errors import Refused
from veery.host import tls
from veery.host.log import decision
from veery.model import codec
from veery.model.cluster import Authorities, Certificate, Trusting

log = logging.getLogger(__name__)

SHOW = "veery cluster ca show"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The record as it is in the store, and its revision (0: there is none, and the CA of `cluster` is meant)."""

    authorities: Authorities
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaStatus:
    """How far a change of CA has come. `untrusting`: nodes that do not yet trust all; `old`: nodes with a certificate,
    or a former one, of a CA that does not sign. `ends` of the CA that signs, epoch."""

    trusted: tuple[str, ...]
    signing: str
    ends: float
    untrusting: tuple[str, ...]
    old: tuple[str, ...]

    @property
    def changing(self) -> bool:
        """Whether there are two."""
        return len(self.trusted) > 1


async def load(store: Store) -> Standing:
    """Which CAs there are. Raises Failed before the cluster has a record, StoreUnavailable."""
    entry = await store.get(keys.CA_AUTHORITIES)
    if entry is not None:
        return Standing(authorities=keys.AUTHORITIES.value(entry), revision=entry.revision)
    ca = (await keys.cluster(store)).ca
    return Standing(authorities=Authorities(trusted=(ca,), signing=tls.authority_id(ca)), revision=0)


def signing(standing: Standing) -> str:
    """The certificate (PEM) of the CA that signs."""
    found = standing.authorities
    return next(ca for ca in found.trusted if tls.authority_id(ca) == found.signing)


async def signer(store: Store, own: Vault | None) -> tls.KeyPair:
    """The CA that signs, with its key. Raises Refused on a node without a vote, Failed, StoreUnavailable."""
    ca = signing(await load(store))
    return tls.KeyPair(ca, await vault.ca_key(store, own, ca))


def judge(
    found: Authorities, nodes: Sequence[str], certificates: Mapping[str, Certificate], trusts: Mapping[str, Trusting]
) -> CaStatus:
    """What still stands in the way. A node whose record is missing, or cannot be read, is in the way."""
    ids = tuple(tls.authority_id(ca) for ca in found.trusted)
    untrusting = [name for name in nodes if name not in trusts or not set(ids) <= set(trusts[name].ids)]
    old = []
    for name in nodes:
        known = certificates.get(name)
        if known is None or known.issuer != found.signing or known.former:
            old.append(name)
    ends = next(tls.facts(ca).ends for ca in found.trusted if tls.authority_id(ca) == found.signing)
    return CaStatus(
        trusted=ids, signing=found.signing, ends=ends, untrusting=tuple(sorted(untrusting)), old=tuple(sorted(old))
    )


async def status(store: Store) -> CaStatus:
    """How far it has come. Raises StoreUnavailable."""
    return (await _observe(store))[1]


async def renew(store: Store, own: Vault, *, epoch: float) -> CaStatus:
    """Take the next step that leads to a new CA. Raises Refused while nodes stand in its way, or where this node has
    no vote; Failed, StoreUnavailable, OutcomeUnknown."""
    standing, seen, _ = await _observe(store)
    if not seen.changing:
        if not own.id:
            raise Refused("a new CA is made by a voter", hint="veery node list shows the voters; veery --node NODE ...")
        await _begin(store, own, standing, epoch)
    elif _newest(standing) != seen.signing:
        _all_trust(seen)
        await _put(store, standing, replace(standing.authorities, signing=_newest(standing)))
        log.info(decision("ca.signs", id=_newest(standing)))
    return await status(store)


async def cancel(store: Store) -> CaStatus:
    """Have the oldest CA sign again. Raises Refused where no change is under way; as `renew`."""
    standing, seen, _ = await _observe(store)
    if not seen.changing:
        raise Refused("no new CA is being rolled out", hint=SHOW)
    oldest = seen.trusted[0]
    if oldest != seen.signing:
        _all_trust(seen)
        await _put(store, standing, replace(standing.authorities, signing=oldest))
        log.info(decision("ca.signs", id=oldest))
    return await status(store)


async def drop(store: Store) -> CaStatus:
    """Trust the CA that signs alone. Raises Refused while a node has a certificate of another one, or where there is
    one; as `renew`."""
    standing, seen, seconds = await _observe(store)
    if not seen.changing:
        raise Refused("there is one CA, and nothing to drop", hint=SHOW)
    _all_trust(seen)
    if seen.old:
        raise Refused(
            f"these nodes have a certificate of the other CA: {', '.join(seen.old)}",
            hint="they renew by themselves while they are up; a former certificate goes some minutes later: " + SHOW,
        )
    ca = signing(standing)
    others = [other for other in standing.authorities.trusted if other != ca]
    record = await store.get(keys.CLUSTER)
    assert record is not None
    cluster = replace(await keys.cluster(store), ca=ca)
    kept = replace(standing.authorities, trusted=(ca,), signing=seen.signing)
    done = await store.commit(
        [Unchanged(keys.CA_AUTHORITIES, standing.revision), Unchanged(keys.CLUSTER, record.revision), *seconds],
        [
            keys.AUTHORITIES.put("authorities", kept),
            Put(keys.CLUSTER, codec.encode(cluster)),
            *(Delete(vault.sealed_name(other)) for other in others),
        ],
    )
    if not done.held:
        raise Refused("the certificates changed meanwhile", hint=f"look again: {SHOW}")
    log.info(decision("ca.dropped", ids=",".join(tls.authority_id(other) for other in others)))
    return await status(store)


def _newest(standing: Standing) -> str:
    return tls.authority_id(standing.authorities.trusted[-1])


def _all_trust(seen: CaStatus) -> None:
    if seen.untrusting:
        raise Refused(
            f"these nodes do not trust both CAs yet: {', '.join(seen.untrusting)}",
            hint=f"start veeryd there (gone for good: veery node forget NODE), then look again: {SHOW}",
        )


async def _observe(store: Store) -> tuple[Standing, CaStatus, list[Unchanged]]:
    """What there is, how it is judged, and the conditions under which that still holds for the nodes' certificates."""
    standing = await load(store)
    nodes = [keys.NODES.name(entry.key) for entry in (await store.scan(keys.NODES.prefix)).entries]
    trusts = await keys.TRUSTS.readable(store)
    certificates: dict[str, Certificate] = {}
    conditions: list[Unchanged] = []
    for entry in (await store.scan(keys.CERTIFICATES.prefix)).entries:
        conditions.append(Unchanged(entry.key, entry.revision))
        with contextlib.suppress(keys.Unreadable):  # in the way until it can be read
            certificates[keys.CERTIFICATES.name(entry.key)] = keys.CERTIFICATES.value(entry)
    return standing, judge(standing.authorities, nodes, certificates, trusts), conditions


async def _begin(store: Store, own: Vault, standing: Standing, epoch: float) -> None:
    cluster = await keys.cluster(store)
    made = tls.make_ca(cluster.name, epoch=epoch, mark=f"{int(epoch)}")
    name = vault.sealed_name(made.cert)
    both = replace(standing.authorities, trusted=(*standing.authorities.trusted, made.cert))
    await _put(store, standing, both, Put(name, own.seal(made.key, name)))
    log.info(decision("ca.made", id=tls.authority_id(made.cert)))


async def _put(store: Store, standing: Standing, wanted: Authorities, *more: Put) -> None:
    condition = Unchanged(keys.CA_AUTHORITIES, standing.revision)
    done = await store.commit([condition], [keys.AUTHORITIES.put("authorities", wanted), *more])
    if not done.held:
        raise Refused("another order changed the CAs meanwhile", hint=f"look again: {SHOW}")
