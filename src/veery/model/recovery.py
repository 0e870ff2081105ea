"""What nodes tell of the store while it is recovered."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreWord:
    """The answer of GET /v1/recovery: what node `node` knows of the store.

    `voter`: its etcd member has a place in the store. `quorum`: that member knows a leader; None without a member.
    `restored`: the node does not trust the store. `revision`: its member's; 0 where it does not answer. `member`:
    etcd's id of the store that its member is of, "" where that is not known. `cluster`: the id of the store that the
    node knows; `replaced`: ids of stores that were given up by a recovery.
    `endpoints`: the client URLs of the members that it asks. `still`: a recovery has this node stand still."""

    node: str
    voter: bool
    quorum: bool | None = None
    restored: bool = False
    revision: int = 0
    member: str = ""
    cluster: str = ""
    replaced: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    still: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """The order of POST /v1/recovery/aside: give up the stores `replaced`, and ask the members at `endpoints`."""

    replaced: tuple[str, ...]
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a recovery did, or would do. `refusals`: what stands in its way; `steps`: sentences."""

    refusals: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
