"""Faults put into the brain, one line each, and how soon the random schedules find them.

    python tests/simulation/mutants.py [COUNT [SEED]] [-- NAME ...]

Each mutant is a copy of the package in a temporary folder with one line changed; a process of its own plays COUNT
schedules (those of the quick test, or of SEED) against it. A mutant that lives says that the schedules are too gentle,
or the judges too kind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from schedules import QUICK, SEED

import veery

PACKAGE = Path(veery.__file__).parent
HERE = Path(__file__).parent
SCENARIO = "tests/simulation/test_scenarios.py::test_a_scenario_goes_as_its_log_says"  # [NAME]
DECIDE = "tests/unit/ha/test_decide.py"
OUTDATED = "tests/unit/ha/test_outdated.py"
GATE = "tests/unit/cluster/test_owner_gate.py"
FILES = "tests/unit/node/test_create_after_fence.py"
GOING_DOWN = "tests/unit/node/test_going_down.py"
GUARD = "tests/unit/node/test_guard_ruling.py"  # a node's own guard is no part of the simulated cluster


@dataclass(frozen=True)
class Mutant:
    """In `file` of the package `old` becomes `new`. `rare`: only the slow run has to find it. `by`: the test, or the
    scenario, that has to find it; "": the schedules."""

    name: str
    file: str
    old: str
    new: str
    rare: bool = False
    by: str = ""


MUTANTS = (
    Mutant(
        "a failed fence counts as proof",
        "ha/act.py",
        "failed = dataclasses.replace(begun, tried=tried, at=self._clock.epoch())",
        "failed = dataclasses.replace(begun, tried=tried, state=FenceState.FENCED)",
    ),
    Mutant(
        "a fence that gave up counts as proof",
        "ha/act.py",
        "dataclasses.replace(action.record, state=FenceState.FAILED,",
        "dataclasses.replace(action.record, state=FenceState.FENCED,",
    ),
    Mutant(
        "a node that is being fenced is fenced",
        "ha/states.py",
        "FenceState.FENCING: NodeState.FENCING,",
        "FenceState.FENCING: NodeState.FENCED,",
    ),
    Mutant(
        "a node whose fence has failed is fenced",
        "ha/states.py",
        "FenceState.FAILED: NodeState.FENCE_FAILED,",
        "FenceState.FAILED: NodeState.FENCED,",
    ),
    Mutant(
        "an isolated node is lost",
        "ha/states.py",
        "return NodeState.ISOLATED",
        "return NodeState.LOST",
    ),
    Mutant(
        "no storage node need tell",
        "ha/states.py",
        "return NodeState.UNWATCHED",
        "return NodeState.LOST",
    ),
    Mutant(
        "silence is judged however new the store is",
        "ha/states.py",
        "or view.settled < rules.grace or absent",
        "or absent",
    ),
    Mutant(
        "an announced restart is judged",
        "ha/states.py",
        "return NodeState.AWAY",
        "return NodeState.LOST",
    ),
    Mutant(
        "one heartbeat elsewhere makes a node cut off",
        "ha/states.py",
        "any(other.beating >= rules.cutoff for other in others)",
        "any(other.sign is not None for other in others)",
    ),
    Mutant(
        "a node that has just come is given domains",
        "ha/states.py",
        "return NodeState.PRESENT if settled and known else NodeState.ARRIVING",
        "return NodeState.PRESENT",
        rare=True,
    ),
    Mutant(
        "a watchdog fires at once",
        "ha/rules/fencing.py",
        "deadline = node.means.watchdog + context.rules.margin\n    return absent",
        "deadline = 0.0\n    return absent",
    ),
    Mutant(
        "a watchdog is not fed by the storage",
        "ha/rules/fencing.py",
        "return absent >= deadline and (node.sign is None or node.sign.age >= deadline)",
        "return absent >= deadline",
        rare=True,
    ),
    Mutant(
        "a fence without gain",
        "ha/rules/fencing.py",
        "    if kept := _nothing_gained(context, node.name, left):",
        "    if (kept := ''):",
    ),
    Mutant(
        "a second fence for a place that the first one takes",
        "ha/rules/fencing.py",
        "                _give(left, domain)\n",
        "                pass\n",
        by=f"{SCENARIO}[lost-two-room-for-one]",
    ),
    Mutant(
        "a fence for a place that a waiting domain takes",
        "ha/rules/fencing.py",
        "    for domain in sorted(waiting, key=order):\n",
        "    for domain in ():\n",
        by=DECIDE,
    ),
    Mutant(
        "the last method first",
        "ha/rules/fencing.py",
        "yield _fence(node, fresh[0], absent, record)",
        "yield _fence(node, fresh[-1], absent, record)",
    ),
    Mutant(
        "a failed fence is not tried again",
        "ha/rules/fencing.py",
        "elif ready and context.waited(subject, record.at, context.rules.retry):",
        "elif False:",
        by=f"{SCENARIO}[fence-fails-then-works]",
    ),
    Mutant(
        "let in with old copies",
        "ha/rules/recovery.py",
        "    if stale:\n",
        "    if False:\n",
    ),
    Mutant(
        "an old copy is any that is not owned by name",
        "ha/rules/recovery.py",
        "if owner and (owner.node, owner.boot) == (node.name, copy.boot):",
        "if owner:",
    ),
    Mutant(
        "what was ended on purpose is started",
        "ha/context.py",
        "return domain.ha.policy is Policy.RESTART and domain.ha.wanted and domain.ha.max_restarts > 0",
        "return domain.ha.wanted and domain.ha.max_restarts > 0",
    ),
    Mutant(
        "the lowest priority first",
        "ha/context.py",
        "return -domain.ha.priority, -domain.memory, domain.name",
        "return domain.ha.priority, -domain.memory, domain.name",
    ),
    Mutant(
        "nobody is held back",
        "ha/rules/waiting.py",
        "elif hold is not None and domain.ha.priority < hold[0]:",
        "elif False:",
    ),
    Mutant(
        "no pause between tries",
        "ha/rules/waiting.py",
        "if domain.owner is None and not context.waited(subject, run.at, pause):",
        "if False:",
    ),
    Mutant(
        "the pause does not grow",
        "ha/rules/waiting.py",
        "context.rules.backoff * 2 ** min(tries - 1, 20)",
        "context.rules.backoff",
    ),
    Mutant(
        "tries are not counted",
        "ha/act.py",
        "tries=old.tries + 1,",
        "tries=old.tries,",
    ),
    Mutant(
        "room is not looked at",
        "ha/placement.py",
        'return best_node if self._free[best_node] >= domain.memory else ""',
        "return best_node",
    ),
    Mutant(
        "the disk of one node is everywhere",
        "ha/placement.py",
        "if domain.tied and node != domain.tied:",
        "if False:",
        rare=True,
    ),
    Mutant(
        "what ran under KVM may be emulated",
        "ha/placement.py",
        'if domain.accelerator == "kvm" and node in self._emulating:',
        "if False:",
        by=f"{SCENARIO}[place-not-emulated]",
    ),
    Mutant(
        "a strict group is a wish",
        "ha/placement.py",
        "if not group.strict:",
        "if True:",
        rare=True,
    ),
    Mutant(
        "a node below the cluster's level is given domains",
        "ha/states.py",
        "        return NodeState.OUTDATED",
        "        pass",
        by=f"{OUTDATED}::test_no_drained_domain_moves_to_it",
    ),
    Mutant(
        "the domains of a node below the cluster's level are ended",
        "ha/states.py",
        "if not old and cut_off(view, node, rules):",
        "if cut_off(view, node, rules):",
        by=f"{OUTDATED}::test_its_domains_are_not_ended_when_its_heartbeats_stop",
    ),
    Mutant(
        "what is drained may be given domains",
        "ha/states.py",
        "return NodeState.DRAINING if owning else NodeState.MAINTENANCE",
        "return NodeState.PRESENT",
        by=f"{SCENARIO}[drain]",
    ),
    Mutant(
        "moves without limits",
        "ha/context.py",
        "self.out[source] < out and self.into[target] < into and",
        "",
    ),
    Mutant(
        "disarmed, and decided all the same",
        "ha/decide.py",
        "if view.disarmed is not None:",
        "if False:",
    ),
    Mutant(
        "sick nodes lose what is off",
        "ha/sickness.py",
        "return not domain.unreadable and domain.ha.policy is not Policy.OFF",
        "return not domain.unreadable",
        rare=True,
    ),
    Mutant(
        "what is off is ended where the storage is lost",
        "ha/rules/moving.py",
        "if context.busy(domain) or not restarts(domain) or not domain.owner:",
        "if context.busy(domain) or not domain.owner:",
        rare=True,
    ),
    Mutant(
        "what was taken is not started",
        "ha/rules/waiting.py",
        "if each.owner is None and restarts(each)]",
        "if each.owner is None and restarts(each) and not each.run]",
    ),
    Mutant(
        "a node is let in and its fence stays",
        "ha/act.py",
        "await self._commit([Unchanged(key, record.revision)], [Delete(key)])",
        "await self._commit([Unchanged(key, record.revision)], [])",
    ),
    Mutant(
        "a fence is begun though the lease is back",
        "ha/act.py",
        "            conditions.append(Unchanged(ALIVE.key(node), 0))",
        "            pass",
        by=f"{SCENARIO}[fence-lease-back-meanwhile]",
    ),
    Mutant(
        "a node believes in its lease for too long",
        "cluster/presence.py",
        "self._until = asked + good_for",
        "self._until = asked + good_for + 100",
        by=f"{SCENARIO}[net-all]",
    ),
    Mutant(
        "the loss of a node is a failed try",
        "ha/context.py",
        "return max(0, run.tries - 1) if went_well else run.tries",
        "return run.tries",
        by=f"{SCENARIO}[lost-twice-is-no-try]",
    ),
    Mutant(
        "a start that got no answer is no failed try",
        "ha/context.py",
        " and run.node not in run.failed\n",
        "\n",
        by=DECIDE,
    ),
    Mutant(
        "tries are forgotten while the node is gone",
        "ha/rules/waiting.py",
        "if context.states.get(domain.owner.node) not in IN_USE:",
        "if False:",
        by=DECIDE,
    ),
    Mutant(
        "a drain is written whatever was ordered meanwhile",
        "ha/orders.py",
        "return (await store.commit(conditions, [INTENTS.put(node, intent)])).held",
        "return (await store.commit([], [INTENTS.put(node, intent)])).held",
        by=f"{SCENARIO}[drain-all-at-once]",
    ),
    Mutant(
        "groups do not count when one more node is lost",
        "ha/survival.py",
        "return where[node] == 0",
        "return True",
        by=f"{SCENARIO}[drain-refused-n1-group]",
    ),
    Mutant(
        "a domain is taken by hand without a proof",
        "cluster/owner.py",
        "if fence is None or fence.state is not FenceState.FENCED or await",
        "if fence is None or await",
        by=GATE,
    ),
    Mutant(
        "a domain is taken by hand from a node that is back",
        "cluster/owner.py",
        " or await store.get(ALIVE.key(node)) is not None:\n        return None",
        ":\n        return None",
        by=GATE,
    ),
    Mutant(
        "files are taken by a proof of the storage",
        "cluster/owner.py",
        "if fence.method == Method.STORAGE else None",
        "if False else None",
        by=FILES,
    ),
    Mutant(
        "nobody remembers who may still write files",
        "cluster/owner.py",
        "dataclasses.replace(left, left=owner.node)",
        "left",
        by=FILES,
    ),
    Mutant(
        "a word adds nothing to a fence at the storage",
        "ha/orders.py",
        " and old.method != Method.STORAGE:",
        ":",
        by=FILES,
    ),
    Mutant(
        "nobody is called for what waits",
        "ha/rules/waiting.py",
        "< ARRIVAL_FACTOR * context.rules.use and not",
        "< 1e9 and not",
        by=DECIDE,
    ),
    Mutant(
        "a machine that goes down stays present",
        "node/goingdown.py",
        "await heartbeat.withdraw()",
        "pass",
        by=GOING_DOWN,
    ),
    Mutant(
        "what is shut down counts as a try",
        "ha/orders.py",
        "tries=run.tries - 1))",
        "tries=run.tries))",
        by=f"{SCENARIO}[shut-down]",
    ),
    Mutant(
        "an end on time is an end in ten times the time",
        "node/guard.py",
        "if view.lost >= end:",
        "if view.lost >= 10 * end:",
        by=GUARD,
    ),
    Mutant(
        "a fenced node's guard lets it run",
        "node/guard.py",
        "        if view.fenced:\n",
        "        if False:\n",
        by=GUARD,
    ),
    Mutant(
        "one voter without a leader keeps the watchdog fed",
        "node/guard.py",
        "2 * len(leaderless) > len(view.voters)",
        "leaderless",
        by=GUARD,
    ),
    Mutant(
        "sick nodes are emptied all at once",
        "ha/sickness.py",
        "most = at_once(context.view)",
        "most = len(waiting)",
        by=f"{SCENARIO}[health-one-after-another]",
    ),
    Mutant(
        "a common cause is none",
        "ha/commoncause.py",
        "least = max(2, ",
        "least = 99 + max(2, ",
        by=f"{SCENARIO}[health-common-cause]",
    ),
    Mutant(
        "others get no time to show the same",
        "ha/sickness.py",
        "if age_s < WAIT_S else",
        "if age_s < 0 else",
        by=f"{SCENARIO}[health-common-cause-of-two]",
    ),
    Mutant(
        "a sick node is emptied whatever can be lost then",
        "ha/sickness.py",
        "if view.nodes[name].health.severe or len(rest) < 2:",
        "if rest:",
        by=f"{SCENARIO}[health-n1-kept]",
    ),
    Mutant(
        "a node that may die is kept for the loss of another",
        "ha/sickness.py",
        "if view.nodes[name].health.severe or len(rest) < 2:",
        "if len(rest) < 2:",
        by=f"{SCENARIO}[health-n1-severe]",
    ),
    Mutant(
        "moves out of a sick node may fail for ever",
        "ha/sickness.py",
        "if count < FAILED_MOVES_MAX:",
        "if count >= 0:",
        by=f"{SCENARIO}[health-two-moves-fail]",
    ),
    Mutant(
        "the largest leaves a sick node first",
        "ha/sickness.py",
        "return -domain.ha.priority, domain.memory, domain.name",
        "return -domain.ha.priority, -domain.memory, domain.name",
        by=f"{SCENARIO}[health-order]",
    ),
    Mutant(
        "quarantine keeps nothing away",
        "ha/states.py",
        "NodeVerdict.QUARANTINE and settled",
        "NodeVerdict.QUARANTINE and not settled",
        by=f"{SCENARIO}[health-quarantine-takes-nobody]",
    ),
    Mutant(
        "a log is believed whatever a disk says",
        "health/verdict.py",
        "if part.kind is not Kind.LOG:",
        "if part.value is not None:",
        by=f"{SCENARIO}[health-log-refuted]",
    ),
    Mutant(
        "a state counts at its first reading",
        "health/verdict.py",
        "(kind in (Kind.FACT, Kind.LOG) or",
        "(kind in Kind or",
        by=f"{SCENARIO}[health-state-short]",
    ),
    Mutant(
        "a fact passes by itself",
        "health/verdict.py",
        "if part.raised is None or part.kind is Kind.FACT:",
        "if part.raised is None:",
        by=f"{SCENARIO}[health-fact-stands]",
    ),
    Mutant(
        "what is to be watched counts as bad",
        "health/verdict.py",
        "level is Level.WATCH and sign.exposed and kind is Kind.STATE",
        "level is Level.WATCH",
        by=f"{SCENARIO}[health-watch]",
    ),
    Mutant(
        "a lost supply does not count",
        "health/verdict.py",
        "level is Level.WATCH and sign.exposed and kind is Kind.STATE",
        "False",
        by=f"{SCENARIO}[health-supply-lost]",
    ),
    Mutant(
        "a lost supply empties its node",
        "health/verdict.py",
        "    if part.mild:",
        "    if False:",
        by=f"{SCENARIO}[tree-supplies]",
    ),
    Mutant(
        "one lost feed keeps half of the nodes from restarting anything",
        "ha/states.py",
        "and settled and not shared:",
        "and settled:",
        by=f"{SCENARIO}[health-supply-common]",
    ),
    Mutant(
        "one reading of another serial ends a fact",
        "health/verdict.py",
        "if old.other != sign.serial:",
        "if False:",
        by="tests/unit/health/test_verdict.py",
    ),
    Mutant(
        "a fact stands whatever disk is there",
        "health/verdict.py",
        "if sign.level is Level.UNKNOWN or not sign.serial:",
        "if sign:",
        by=f"{SCENARIO}[tree-disk]",
    ),
    Mutant(
        "a domain is moved though the cluster was disarmed during the forecast",
        "ha/act.py",
        "if not stands:",
        "if False:",
        by="tests/unit/ha/test_move_record.py",
    ),
    Mutant(
        "a user's move goes to a sick node",
        "node/domains.py",
        "if not (brain or force):",
        "if False:",
        by="tests/unit/node/test_unwell_nodes.py",
    ),
)


def check_all() -> None:
    """Raise AssertionError where a line to be changed is not there once."""
    for mutant in MUTANTS:
        count = (PACKAGE / mutant.file).read_text().count(mutant.old)
        assert count == 1, f"{mutant.name}: {count} times in {mutant.file}: {mutant.old}"


def play(mutant: Mutant, count: int, number: int = SEED, deadline: float = 1200.0) -> str:
    """The number of the schedule that found it, and why; "" when none of `count` did."""
    with tempfile.TemporaryDirectory(prefix="veery-mutant-") as folder:
        shutil.copytree(PACKAGE, Path(folder) / "veery", ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(folder) / "veery" / mutant.file
        file.write_text(file.read_text().replace(mutant.old, mutant.new))
        argv = [sys.executable, str(HERE / "tries.py"), str(count), str(number)]
        if mutant.by:
            argv = [sys.executable, "-m", "pytest", "-q", "-x", mutant.by]
        env = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            argv, cwd=HERE.parents[1], env=env, capture_output=True, text=True, timeout=deadline, check=False
        )
    if done.returncode == 0:
        return ""
    lines = done.stdout.splitlines()
    if mutant.by:
        return next((line for line in lines if line.startswith("FAILED")), f"no verdict: {done.stderr[-300:]}")
    first = next((line for line in lines if line.startswith("schedule ")), f"no verdict: {done.stderr[-300:]}")
    marks = [line.partition("JUDGE")[2].strip() for line in lines if "  JUDGE" in line]
    said = next((line for line in lines if line.startswith("broken: ")), "")
    return f"{first.partition(':')[0]}: {marks[0] if marks else said[:140]}"


def main() -> None:
    """All of them, or those whose names hold one of the words given."""
    words = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    figures = [int(each) for each in sys.argv[1:] if each.isdigit()]
    check_all()
    chosen = [each for each in MUTANTS if not words or any(word in each.name for word in words)]
    lived = 0
    for mutant in chosen:
        found = play(mutant, figures[0] if figures else QUICK, figures[1] if len(figures) > 1 else SEED)
        lived += not found
        print(f"{mutant.name}: {found or 'LIVES'}", flush=True)
    print(f"{len(chosen) - lived} of {len(chosen)} found")


if __name__ == "__main__":
    main()
