"""The cluster's CAs: one, or two while a new one is rolled out.

    renew    makes a new CA; all nodes come to trust both             trusted: old, new   signing: old
    renew    every node trusts both: the new CA signs, nodes renew    trusted: old, new   signing: new
    drop     no node has a certificate of the old CA any more         trusted: new        signing: new
    cancel   in between: the old CA signs again, nodes renew; then `drop` drops the new CA

Each step is one transaction. Its conditions are the records that it was judged by, so a step may fail at any point
and be requested again. An absent node blocks a step: it would no longer trust the others."""

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
    """The record in the store and its revision (0: no record exists; the CA is the one of `cluster`)."""

    authorities: Authorities
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CaStatus:
    """The progress of a change of CA. `untrusting`: nodes that do not yet trust every CA. `old`: nodes with a current
    or former certificate of a CA that does not sign. `ends`: expiry of the CA that signs, epoch."""

    trusted: tuple[str, ...]
    signing: str
    ends: float
    untrusting: tuple[str, ...]
    old: tuple[str, ...]

    @property
    def changing(self) -> bool:
        """Return whether there are two CAs."""
        return len(self.trusted) > 1


async def load(store: Store) -> Standing:
    """Return the CAs of the cluster. Raises Failed before the cluster has a record, StoreUnavailable."""
    entry = await store.get(keys.CA_AUTHORITIES)
    if entry is not None:
        return Standing(authorities=keys.AUTHORITIES.value(entry), revision=entry.revision)
    ca = (await keys.cluster(store)).ca
    return Standing(authorities=Authorities(trusted=(ca,), signing=tls.authority_id(ca)), revision=0)


def signing(standing: Standing) -> str:
    """Return the certificate (PEM) of the CA that signs."""
    found = standing.authorities
    return next(ca for ca in found.trusted if tls.authority_id(ca) == found.signing)


async def signer(store: Store, own: Vault | None) -> tls.KeyPair:
    """Return the CA that signs, with its key. Raises Refused on a non-voter, Failed, StoreUnavailable."""
    ca = signing(await load(store))
    return tls.KeyPair(ca, await vault.ca_key(store, own, ca))


def judge(
    found: Authorities, nodes: Sequence[str], certificates: Mapping[str, Certificate], trusts: Mapping[str, Trusting]
) -> CaStatus:
    """Return the progress and the nodes that block the next step. A missing or unreadable record blocks it."""
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
    """Return the progress of the change of CA. Raises StoreUnavailable."""
    return (await _observe(store))[1]


async def renew(store: Store, own: Vault, *, epoch: float) -> CaStatus:
    """Take the next step towards a new CA. Raises Refused while nodes block it, or if this node is no voter; Failed,
    StoreUnavailable, OutcomeUnknown."""
    standing, seen, _ = await _observe(store)
    if not seen.changing:
        if not own.id:
            raise Refused("only a voter can make a CA", hint="veery node list shows the voters; veery --node NODE ...")
        await _begin(store, own, standing, epoch)
    elif _newest(standing) != seen.signing:
        _all_trust(seen)
        await _put(store, standing, replace(standing.authorities, signing=_newest(standing)))
        log.info(decision("ca.signs", id=_newest(standing)))
    return await status(store)


async def cancel(store: Store) -> CaStatus:
    """Have the oldest CA sign again. Raises Refused if no change is in progress; otherwise as `renew`."""
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
    """Trust only the CA that signs. Raises Refused while a node has a certificate of another CA, or if there is only
    one CA; otherwise as `renew`."""
    standing, seen, seconds = await _observe(store)
    if not seen.changing:
        raise Refused("there is only one CA: nothing to drop", hint=SHOW)
    _all_trust(seen)
    if seen.old:
        raise Refused(
            f"these nodes have a certificate of the other CA: {', '.join(seen.old)}",
            hint="they renew by themselves while they are up, and drop former ones some minutes later: " + SHOW,
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
        raise Refused("the certificates changed meanwhile", hint=f"check again: {SHOW}")
    log.info(decision("ca.dropped", ids=",".join(tls.authority_id(other) for other in others)))
    return await status(store)


def _newest(standing: Standing) -> str:
    return tls.authority_id(standing.authorities.trusted[-1])


def _all_trust(seen: CaStatus) -> None:
    if seen.untrusting:
        raise Refused(
            f"these nodes do not trust both CAs yet: {', '.join(seen.untrusting)}",
            hint=f"start veeryd there (if a node is lost: veery node forget NODE), then check again: {SHOW}",
        )


async def _observe(store: Store) -> tuple[Standing, CaStatus, list[Unchanged]]:
    """Return the CAs, their status, and the conditions that the judged certificates are unchanged."""
    standing = await load(store)
    nodes = [keys.NODES.name(entry.key) for entry in (await store.scan(keys.NODES.prefix)).entries]
    trusts = await keys.TRUSTS.readable(store)
    certificates: dict[str, Certificate] = {}
    conditions: list[Unchanged] = []
    for entry in (await store.scan(keys.CERTIFICATES.prefix)).entries:
        conditions.append(Unchanged(entry.key, entry.revision))
        with contextlib.suppress(keys.Unreadable):  # it blocks the next step until it can be read
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
        raise Refused("another request changed the CAs meanwhile", hint=f"check again: {SHOW}")
