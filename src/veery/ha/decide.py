"""The decision: takes one view, returns actions with their reasons. Pure: no await, and time is an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from veery.ha.context import DecisionContext, note
from veery.ha.rules.fencing import fence_silent
from veery.ha.rules.moving import come_home, drain, leave_cut_off, leave_sick
from veery.ha.rules.recovery import (
    readmit_returned,
    settle_moves,
    tell_outdated,
    tell_stopped,
    tell_unreadable,
    tell_unsettled,
)
from veery.ha.rules.waiting import forget_tries, place_waiting
from veery.model.ha import Action, ClusterView, Level, Rules

RULES: tuple[Callable[[DecisionContext], Iterator[Action]], ...] = (  # earlier rules take room and turns first
    tell_unreadable,
    tell_unsettled,
    tell_outdated,
    tell_stopped,
    fence_silent,
    settle_moves,
    readmit_returned,
    leave_cut_off,
    place_waiting,
    drain,
    leave_sick,
    come_home,
    forget_tries,
)


def decide(view: ClusterView, now: float, rules: Rules) -> tuple[Action, ...]:
    """Return the actions for the cluster as it is in `view`. `now` (epoch seconds) paces retries and delays; no safety
    depends on it.

    Each subject gets at most one action that does something. Notes say why nothing is done, where that matters."""
    if view.restored:
        reason = f"{view.restored}: domains run on, nothing is decided; next: veery cluster adopt --plan"
        return (note("cluster", "store-restored", reason, Level.ALARM),)
    if not view.quorum:
        return (
            note("cluster", "no-quorum", "the store has no quorum: domains run on, nothing is decided", Level.ALARM),
        )
    if view.disarmed is not None:
        by = f" by {view.disarmed.by}" if view.disarmed.by else ""
        why = f": {view.disarmed.reason}" if view.disarmed.reason else ""
        return (note("cluster", "disarmed", f"disarmed{by}{why}; nothing is done until `veery arm`", Level.WARNING),)
    context = DecisionContext.of(view, now, rules)
    return tuple(action for rule in RULES for action in rule(context))
