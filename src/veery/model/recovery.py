"""Messages between nodes during a recovery of the store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreWord:
    """The answer of GET /v1/recovery: what node `node` knows of the store.

    `voter`: its etcd is a member of the store. `quorum`: this member knows a leader; None without a member. `restored`:
    the node does not trust the store. `revision`: that of its member; 0 if it does not answer. `member`: etcd's id of
    the member's store, "" if not known. `cluster`: the id of the store that the node knows. `replaced`: ids of stores
    that a recovery gave up. `endpoints`: the client URLs of the members that the node uses. `still`: a recovery keeps
    this node still."""

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
    """The order of POST /v1/recovery/aside: give up the stores `replaced`, and use the members at `endpoints`."""

    replaced: tuple[str, ...]
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """The result or the plan of a recovery. `refusals`: the obstacles. `steps`: sentences."""

    refusals: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
