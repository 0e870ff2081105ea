"""One plain sentence for each move of a plan. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from veery.balance.model import Node
from veery.balance.state import State


@dataclass(frozen=True, slots=True)
class Look:
    """What a sentence needs of two nodes at one moment. Each pair is (source, target)."""

    used: tuple[float, float]  # share of the node's memory
    load: tuple[float, float]  # share of its cores
    vcpus: tuple[float, float]  # for each core
    missing: float  # cores that the source lacks
    conflicts: int
    stranded: int

    @classmethod
    def at(cls, state: State, stranded: int, source: int, target: int) -> Look:
        """Look at `state` now."""
        return cls(
            used=(1 - state.memory_share[source], 1 - state.memory_share[target]),
            load=(state.load_share[source], state.load_share[target]),
            vcpus=(state.vcpus_share[source], state.vcpus_share[target]),
            missing=state.missing(source),
            conflicts=state.conflicts(),
            stranded=stranded,
        )


def why(before: Look, after: Look, source: Node, target: Node, limit: float) -> str:
    """Return the main reason for a move from `source` to `target`. `limit`: the share above which a node is busy."""
    if after.stranded < before.stranded:
        count = before.stranded - after.stranded
        return f"{_domains(count)} more would find a place after the loss of one node."
    if after.conflicts < before.conflicts:
        return f"{_domains(before.conflicts - after.conflicts)} fewer would break the rule of a group."
    if before.missing > after.missing:
        busy = f"{source.name} is {before.load[0]:.0%} busy, above {limit:.0%}"
        return f"{busy}, and becomes {after.load[0]:.0%}; {target.name} becomes {after.load[1]:.0%}."
    changes = [
        (_closer(before.load, after.load), "busy", before.load, after.load),
        (_closer(before.used, after.used), "full", before.used, after.used),
    ]
    gained, word, old, new = max(changes, key=lambda each: each[0])
    vcpus = _closer(before.vcpus, after.vcpus)
    if vcpus > gained:
        return (
            f"{source.name} has {before.vcpus[0]:.2f} vcpus for each core and {target.name} {before.vcpus[1]:.2f}; "
            f"that becomes {after.vcpus[0]:.2f} and {after.vcpus[1]:.2f}."
        )
    return (
        f"{source.name} is {old[0]:.0%} {word} and {target.name} {old[1]:.0%}; "
        f"that becomes {new[0]:.0%} and {new[1]:.0%}."
    )


def _closer(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return by how much two nodes come closer to each other."""
    return abs(before[0] - before[1]) - abs(after[0] - after[1])


def _domains(count: int) -> str:
    return f"{count} domain" + ("s" if count != 1 else "")
