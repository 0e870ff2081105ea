"""Faults put into a move, one line each; the fast unit tests have to find every one.

    python tests/unit/migrate/move_mutants.py [NAME ...]

Each mutant is a copy of the package in a temporary folder with one line changed; the tests that it names run against
it, and one of them has to fail. A mutant that lives stands for a guard that nothing tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

from mutation import Mutant, check, found_by

MIGRATE, CLUSTER = "tests/unit/migrate", "tests/unit/cluster"
GATES = f"{MIGRATE}/test_move_gates.py::test_"
MOVING = f"{MIGRATE}/test_moving.py::test_"
VERSIONS = f"{MIGRATE}/test_moving_versions.py::test_"
GUEST = f"{MIGRATE}/test_moving_guest.py::test_"
POST = f"{MIGRATE}/test_moving_postcopy.py::test_"
ALONG = f"{MIGRATE}/test_disks_along.py::test_"
MIRROR = "tests/unit/hypervisor/test_qemu_mirror.py::test_"
GUESSED = f"{MIGRATE}/test_settle_guessed.py::test_"
DESTROYED = f"{MIGRATE}/test_moving_destroyed.py::test_"
OWNER = f"{CLUSTER}/test_owner_gate.py::test_"

SENDER = (
    Mutant(
        "COMMIT is sent without a look at the store",
        "migrate/sender.py",
        "            await self._own()\n            self._store_answered",
        "            self._store_answered",
        by=f"{GATES}a_store_without_a_quorum_is_noticed_before_commit",
    ),
    Mutant(
        "an offer goes to a target below the cluster's level",
        "migrate/sender.py",
        "await levels.require(context.store, self.target, versions.TAKE_IN)",
        "pass",
        by=f"{VERSIONS}a_target_present_with_an_older_version_gets_no_offer",
    ),
    Mutant(
        "the level in the target's answer is not checked",
        "migrate/versions.py",
        "if trouble := levels.behind(ready.level, cluster):",
        'if trouble := "":',
        by=f"{VERSIONS}messages_of_a_version_without_levels_are_read",
    ),
    Mutant(
        "another node's domain is moved",
        "migrate/sender.py",
        "        if owner is None or owner.node != self._context.node:",
        "        if owner is None:",
        by=f"{GATES}a_domain_that_belongs_to_another_node_is_not_moved",
    ),
    Mutant(
        "a COMMIT without an answer counts as done",
        "migrate/sender.py",
        "if settled is not None and settled.node == line.target:",
        "if settled is not None:",
        by=f"{MOVING}commit_without_an_answer_is_settled_by_the_store",
    ),
    Mutant(
        "COMMIT leaves the undo in place",
        "migrate/sender.py",
        "        undo.pop_all()\n        return await self._after_commit",
        "        return await self._after_commit",
        by=f"{MOVING}there_and_back",
    ),
    Mutant(
        "a cancellation breaks the hand-over off",
        "migrate/sender.py",
        "await tasks.through(self._hand_over(owner, channel, steps, undo))",
        "(await self._hand_over(owner, channel, steps, undo), None)",
        by=f"{GUEST}cancelled_past_commit_is_reported_as_it_ended",
    ),
    Mutant(
        "what is shielded ends with its caller",
        "host/tasks.py",
        "            cancelled = error",
        "            raise error",
        by=f"{GUEST}cancelled_past_commit_is_reported_as_it_ended",
    ),
    Mutant(
        "a new bandwidth does not reach the disks on their way",
        "migrate/diskcopy.py",
        "await self._driver.tune_disks(",
        "_ = (",
        by=f"{ALONG}its_bandwidth_is_changed_while_disks_are_copied",
    ),
    Mutant(
        "the memory begins with the old bandwidth",
        "migrate/sender.py",
        "settings = replace(settings, bandwidth=tuning.bandwidth)",
        "pass",
        by=f"{ALONG}its_bandwidth_is_changed_while_disks_are_copied",
    ),
    Mutant(
        "the memory begins with the old limit of the downtime",
        "migrate/sender.py",
        "settings = replace(settings, downtime=tuning.downtime)",
        "pass",
        by=f"{ALONG}its_bandwidth_is_changed_while_disks_are_copied",
    ),
    Mutant(
        "the target's error hides why the source's copy broke",
        "migrate/sender.py",
        "                    await sending  # it failed",
        "                    pass  # it failed",
        by=f"{ALONG}a_full_disk_is_told_though_the_target_gives_up_first",
    ),
    Mutant(
        "the target's hint replaces that of a full disk",
        "migrate/target_wait.py",
        "error.hint if isinstance(error, DiskFull) else theirs.hint or error.hint",
        "theirs.hint or error.hint",
        by=f"{ALONG}a_full_disk_is_told_though_the_target_gives_up_first",
    ),
    Mutant(
        "a cancellation hides why the mirrors broke",
        "hypervisor/qemu/mirror.py",
        "if cancelled is not None and _error(switching) is None:",
        "if cancelled is not None:",
        by=f"{MIRROR}a_full_disk_is_the_reason_though_the_copy_is_cancelled",
    ),
    Mutant(
        "a copy whose mirrors are cleared away is not cancelled",
        "hypervisor/qemu/mirror.py",
        "            raise cancelled\n",
        "            pass\n",
        by=f"{MIRROR}a_cancelled_copy_is_cancelled_once_its_mirrors_are_gone",
    ),
    Mutant(
        "the domain stands after an undo",
        "migrate/sender.py",
        "undo.push_async_callback(self._settler.run_on, steps.line)",
        "pass",
        by=f"{MOVING}cancel_before_commit",
    ),
    Mutant(
        "the journal keeps what was undone",
        "migrate/sender.py",
        "undo.push_async_callback(self._settler.undone, steps.line)",
        "pass",
        by=f"{MOVING}cancel_before_commit",
    ),
    Mutant(
        "the target is not told that the source gives up",
        "migrate/sender.py",
        'undo.callback(channel.part, f"{context.node} gave up the move of {spec.name}")',
        "pass",
        by=f"{MOVING}nothing_is_left_there_when_a_cancelled_move_is_told",
    ),
    Mutant(
        "the source keeps its copy",
        "migrate/sender.py",
        "await self._settler.leave(line)",
        "pass",
        by=f"{MOVING}there_and_back",
    ),
    Mutant(
        "a target that does not say that it runs fails the move",
        "migrate/sender.py",
        "return self.report(MoveState.DONE, reason=reason, hint=",
        "return self.report(MoveState.FAILED, reason=reason, hint=",
        by=f"{MOVING}the_target_that_fails_to_finish_does_so_later",
    ),
    Mutant(
        "phases in any order",
        "migrate/phases.py",
        "        if FOLLOWS.get(self.phase) is not phase:",
        "        if False:",
        by=f"{GATES}a_phase_follows_the_one_before_it",
    ),
    Mutant(
        "a move is cancelled past COMMIT",
        "migrate/moves.py",
        '            raise Refused(f"move {move} is past COMMIT"',
        '            Refused(f"move {move} is past COMMIT"',
        by=f"{MOVING}cancel_after_commit_is_refused",
    ),
)

VITALS = (
    Mutant(
        "nobody looks after the guest while it is copied",
        "migrate/sender.py",
        "await self._while_alive(self._send(channel, ready))",
        "await self._send(channel, ready)",
        by=f"{GUEST}a_copy_ends_soon_after_its_guest",
    ),
    Mutant(
        "nobody looks after the guest once it is loaded",
        "migrate/sender.py",
        "            self._booted = (await vitals.require(self._context.driver, self._order.reading.uuid)).started\n",
        "",
        by=f"{GUEST}an_end_before_commit_is_answered_at_the_source",
    ),
    Mutant(
        "what has ended is said to run on",
        "migrate/sender.py",
        'return "" if state is MoveState.UNKNOWN or self._ended else self._context.node',
        "return self._context.node",
        by=f"{GUEST}an_end_before_commit_is_answered_at_the_source",
    ),
    Mutant(
        "a domain that is gone counts as alive",
        "migrate/vitals.py",
        'if reading is not None else "ended"',
        'if reading is not None else ""',
        by=f"{MOVING}a_domain_that_ends_while_it_is_moved_is_said_to_run_nowhere",
    ),
    Mutant(
        "a crash is no end",
        "migrate/vitals.py",
        ', DomainState.CRASHED: "crashed"}',
        "}",
        by=f"{GUEST}a_crash_is_restarted_once",
    ),
    Mutant(
        "an end is looked for once",
        "migrate/vitals.py",
        "        await require(driver, uuid)\n        await clock",
        "        await clock",
        by=f"{GUEST}a_copy_ends_soon_after_its_guest",
    ),
    Mutant(
        "an end is a cancellation",
        "migrate/vitals.py",
        "            watching.result()",
        "            pass",
        by=f"{GUEST}a_copy_ends_soon_after_its_guest",
    ),
)

RECEIVER = (
    Mutant(
        "the source's word is enough",
        "migrate/receiver.py",
        'raise Failed(f"the source handed {line.domain} over, but the store names another owner")',
        "return",
        by=f"{GATES}a_finish_without_a_commit_lets_nothing_run",
    ),
    Mutant(
        "an owner key from before the move is enough",
        "migrate/receiver.py",
        " or owner.revision <= line.owner_revision:",
        ":",
        by=f"{GATES}an_owner_key_from_before_the_move_lets_nothing_run",
    ),
    Mutant(
        "a watch that failed is enough",
        "migrate/receiver.py",
        "if given.done() and given.exception() is None:",
        "if given.done():",
        by=f"{GATES}a_finish_without_a_commit_lets_nothing_run",
    ),
    Mutant(
        "an offer in another node's name is taken",
        "migrate/receiver.py",
        "        if channel.peer != offer.source:",
        "        if False:",
        by=f"{GATES}an_offer_in_the_name_of_another_node_is_refused",
    ),
    Mutant(
        "a domain is taken in twice",
        "migrate/receiver.py",
        "        if offer.domain in self._arriving:",
        "        if False:",
        by=f"{GATES}a_domain_that_is_on_its_way_is_not_taken_in_twice",
    ),
    Mutant(
        "half a domain that died is handed over",
        "migrate/receiver.py",
        "            if not await self._context.driver.stands(offer.spec.uuid):",
        "            if False:",
        by=f"{MOVING}a_half_domain_that_dies_before_commit_is_not_handed_over",
    ),
    Mutant(
        "Finish is taken before everything is loaded",
        "migrate/receiver.py",
        'raise Failed(f"{offer.source} sent Finish before everything was loaded")',
        "pass",
        by=f"{GATES}a_finish_before_everything_is_loaded_is_an_error",
    ),
    Mutant(
        "a target that gives up lets its half run",
        "migrate/receiver.py",
        "if owner is not None and owner.node == self._context.node and owner.boot == line.boot:",
        "if owner is not None:",
        by=f"{MOVING}a_failed_step_is_undone",
    ),
    Mutant(
        "a target that gives up keeps its half",
        "migrate/receiver.py",
        "                await self._context.driver.destroy(line.uuid)\n",
        "",
        by=f"{MOVING}a_failed_step_is_undone",
    ),
    Mutant(
        "a paused domain runs when it arrives",
        "migrate/receiver.py",
        "await context.driver.finish(offer.spec.uuid, paused=offer.paused, ",
        "await context.driver.finish(offer.spec.uuid, ",
        by=f"{MOVING}a_paused_domain_stays_paused",
    ),
    Mutant(
        "a reboot during a move is forgotten",
        "migrate/receiver.py",
        "started=word.started",
        "started=0.0",
        by=f"{GUEST}a_reboot_during_a_move_is_a_new_start_there_too",
    ),
    Mutant(
        "a target that gives up after COMMIT forgets a reboot",
        "migrate/receiver.py",
        "paused=line.paused, started=owner.started)",
        "paused=line.paused)",
        by=f"{GUEST}a_reboot_is_known_to_a_target_that_gives_up_after_commit",
    ),
    Mutant(
        "COMMIT does not say when the guest booted",
        "migrate/sender.py",
        ", started=self._booted)",
        ")",
        by=f"{GUEST}a_reboot_is_known_after_the_target_was_killed",
    ),
    Mutant(
        "a settled move forgets a reboot",
        "migrate/settle.py",
        "paused=line.paused, started=owner.started)",
        "paused=line.paused)",
        by=f"{GUEST}a_reboot_is_known_after_the_target_was_killed",
    ),
    Mutant(
        "a settled post-copy forgets a reboot",
        "migrate/postcopy.py",
        "paused=line.paused, started=started)",
        "paused=line.paused)",
        by=f"{GUEST}a_reboot_is_known_after_the_target_was_killed",
    ),
)

WIRE = (
    Mutant(
        "a message of any length",
        "migrate/wire.py",
        "                if length > FRAME_MAX:",
        "                if False:",
        by=f"{GATES}a_message_that_is_too_long_is_refused_before_it_is_read",
    ),
    Mutant(
        "a problem is a message like any other",
        "migrate/wire.py",
        "        if isinstance(message, Problem):",
        "        if False:",
        by=f"{GATES}a_problem_is_raised_as_the_error_that_it_carries",
    ),
    Mutant(
        "messages in any order",
        "migrate/wire.py",
        "        if not isinstance(message, kind):",
        "        if False:",
        by=f"{GATES}a_message_out_of_turn_is_an_error",
    ),
    Mutant(
        "a token of any length",
        "migrate/wire.py",
        "STREAM ([0-9a-f]{32})) *",
        "STREAM ([0-9a-f]*)) *",
        by=f"{GATES}a_greeting_that_is_none_is_refused",
    ),
    Mutant(
        "a little less is progress",
        "migrate/converge.py",
        "SHRINKING = 0.7",
        "SHRINKING = 0.95",
        by=f"{MIGRATE}/test_converge.py::test_a_need_that_hardly_shrinks_is_no_progress",
    ),
)

SETTLE = (
    Mutant(
        "any promise is taken away",
        "migrate/settle.py",
        "if promise is not None and promise.move == line.move:",
        "if promise is not None:",
        by=f"{GATES}a_promise_to_another_move_is_left_alone",
    ),
    Mutant(
        "the journal forgets a domain that does not run on yet",
        "migrate/settle.py",
        "        if _key(line) in self._open:\n            return\n",
        "",
        by=f"{MOVING}a_domain_that_does_not_run_on_yet_stays_in_the_journal",
    ),
    Mutant(
        "any owner is us",
        "migrate/settle.py",
        "here = owner is not None and owner.node == self._context.node and owner.boot == line.boot",
        "here = owner is not None",
        by=f"{GATES}a_copy_of_an_earlier_run_is_removed",
    ),
    Mutant(
        "an earlier move's copy of a new run is kept",
        "migrate/settle.py",
        "owner.node == self._context.node and owner.boot == line.boot",
        "owner.node == self._context.node",
        by=f"{GATES}a_copy_of_an_earlier_run_is_removed",
    ),
    Mutant(
        "what cannot run on is not tried again",
        "migrate/settle.py",
        "        except (Failed, OutcomeUnknown):\n            self.later(line)\n",
        "        except (Failed, OutcomeUnknown):\n",
        by=f"{MOVING}a_domain_that_cannot_be_let_run_on_is_tried_again",
    ),
    Mutant(
        "a domain of an unreadable move goes on whoever owns it",
        "migrate/settle.py",
        "        if owner is None or owner.node != self._context.node:\n            return\n        with",
        "        if owner is None:\n            return\n        with",
        by=f"{GUESSED}the_target_that_owns_the_domain_lets_it_run_and_the_source_does_not",
    ),
    Mutant(
        "the promise of an unreadable move stands",
        "migrate/settle.py",
        'if promise is not None and promise.move in line.move.split(","):',
        "if False:",
        by=f"{GUESSED}a_half_that_another_node_owns_does_not_run",
    ),
    Mutant(
        "an unreadable move takes any promise away",
        "migrate/settle.py",
        'if promise is not None and promise.move in line.move.split(","):',
        "if promise is not None:",
        by=f"{GUESSED}the_promise_of_a_move_that_can_be_read_stands",
    ),
    Mutant(
        "a domain of an unreadable move is settled by its journal",
        "migrate/settle.py",
        "self._settle_guessed if _key(line) in self._guessed else self._settle_once",
        "self._settle_once",
        by=f"{GUESSED}the_target_that_owns_the_domain_lets_it_run_and_the_source_does_not",
    ),
    Mutant(
        "a settling tells nothing",
        "migrate/settle.py",
        "            self._why[key] = why\n",
        "            pass\n",
        by=f"{DESTROYED}what_a_settling_waits_for_is_told",
    ),
)

OWNER_GATE = (
    Mutant(
        "COMMIT without the promise",
        "cluster/owner.py",
        "            Unchanged(RESERVATIONS.key(domain), reservation.revision),\n        ],\n        operations,",
        "        ],\n        operations,",
        by=f"{GATES}a_commit_of_another_promise_is_refused",
    ),
    Mutant(
        "COMMIT whoever owns the domain",
        "cluster/owner.py",
        "            Unchanged(OWNERS.key(domain), owner.revision),\n            Unchanged(",
        "            Unchanged(",
        by=f"{OWNER}an_owner_that_was_overruled_commits_nothing",
    ),
    Mutant(
        "two promises at once",
        "cluster/owner.py",
        "free = [Unchanged(key, 0), Unchanged(OWNERS",
        "free = [Unchanged(OWNERS",
        by=f"{OWNER}one_move_at_a_time",
    ),
    Mutant(
        "a promise to a fenced node",
        "cluster/owner.py",
        "Unchanged(OWNERS.key(domain), revision), Unchanged(FENCES.key(target), 0)]",
        "Unchanged(OWNERS.key(domain), revision)]",
        by=f"{OWNER}nothing_is_moved_to_a_fenced_node",
    ),
    Mutant(
        "a promise whoever owns the domain",
        "cluster/owner.py",
        "            if owner is None or owner.node != source:",
        "            if owner is None:",
        by=f"{OWNER}only_what_the_source_owns_can_be_reserved",
    ),
    Mutant(
        "a fenced node claims",
        "cluster/owner.py",
        "free = [Unchanged(OWNERS.key(domain), 0), Unchanged(FENCES.key(node), 0)]",
        "free = [Unchanged(OWNERS.key(domain), 0)]",
        by=f"{OWNER}a_fenced_node_claims_nothing",
    ),
    Mutant(
        "a claim of what another node owns",
        "cluster/owner.py",
        "free = [Unchanged(OWNERS.key(domain), 0), Unchanged(FENCES",
        "free = [Unchanged(FENCES",
        by=f"{OWNER}a_claim_of_what_runs_names_the_owner",
    ),
    Mutant(
        "a promise that is dropped stands",
        "cluster/owner.py",
        "            [Delete(RESERVATIONS.key(domain))],\n",
        "            [],\n",
        by=f"{OWNER}after_a_drop_no_commit_succeeds",
    ),
    Mutant(
        "anybody releases",
        "cluster/owner.py",
        "store.commit([Unchanged(key, owner.revision)], operations)",
        "store.commit([], operations)",
        by=f"{OWNER}a_release_frees_the_domain_for_its_owner_only",
    ),
    Mutant(
        "the watch takes any run of the domain for this one",
        "cluster/owner.py",
        "if (owner.node, owner.boot) == (reservation.target, boot):",
        "if owner.node == reservation.target:",
        by=f"{CLUSTER}/test_owner_given.py",
    ),
)

NODE = (
    Mutant(
        "a fenced node lets a domain go on",
        "node/domains.py",
        "        await self._heartbeat.require()\n        await fencing.refuse(self._store, self.node)\n",
        "        await self._heartbeat.require()\n",
        by=f"{GATES}a_fenced_node_lets_nothing_go_on",
    ),
    Mutant(
        "another node's domain goes on",
        "node/domains.py",
        "            await self.ours(reading.name)\n            alive(reading)\n            await self._disks_move_on",
        "            alive(reading)\n            await self._disks_move_on",
        by=f"{GATES}another_nodes_domain_does_not_go_on",
    ),
    Mutant(
        "a lock goes while an order waits for it",
        "node/domainlocks.py",
        "            if not mine.users:\n",
        "            if True:\n",
        by="tests/unit/node/test_domain_locks.py::test_one_that_waits_keeps_the_lock",
    ),
    Mutant(
        "a lock is kept for each name ever used",
        "node/domainlocks.py",
        "            if not mine.users:\n",
        "            if False:\n",
        by="tests/unit/node/test_domain_locks.py::test_a_lock_goes_with_the_last_order",
    ),
    Mutant(
        "a domain that moves takes orders",
        "node/domainlocks.py",
        "            if busy := self._moves.busy(name, arriving=arriving):\n",
        "            if busy := False:\n",
        by=f"{GATES}a_domain_that_moves_takes_no_orders",
    ),
    Mutant(
        "a domain that arrives takes orders",
        "node/domainlocks.py",
        "            if offer := self._receiver.arriving(name):\n",
        "            if offer := None:\n",
        by=f"{GATES}a_domain_that_moves_takes_no_orders",
    ),
    Mutant(
        "destroy at a node that is not the owner",
        "node/destroying.py",
        "        if owner is None or not elsewhere or await ALIVE.get(store, owner.node) is None:",
        "        if True:",
        by=f"{DESTROYED}half_a_domain_belongs_to_its_source",
    ),
    Mutant(
        "a dead owner keeps a domain from being destroyed",
        "node/destroying.py",
        " or await ALIVE.get(store, owner.node) is None:",
        ":",
        by=f"{DESTROYED}a_copy_whose_owner_is_dead_is_destroyed",
    ),
    Mutant(
        "a crash is answered as a poweroff",
        "node/caretaker.py",
        "DomainEnd.CRASH: spec.on_crash,",
        "DomainEnd.CRASH: spec.on_poweroff,",
        by=f"{GUEST}preserve_keeps_what_crashed",
    ),
    Mutant(
        "the paused copy of another node's domain stays",
        "node/caretaker.py",
        "            elif owner is None or owner.node != self._context.node:",
        "            elif False:",
        by=f"{GATES}a_paused_copy_of_another_nodes_domain_is_destroyed",
    ),
    Mutant(
        "a running domain is destroyed by an owner key alone",
        "node/caretaker.py",
        "elif owner is not None and reading.state in LIVE and not await self._fenced():",
        "elif False:",
        by=f"{GATES}a_domain_that_runs_is_not_destroyed_by_an_owner_key_alone",
    ),
)

MOVES = (
    Mutant(
        "a bug in one move ends the others",
        "migrate/moves.py",
        "        except Exception as error:  # a bug in one move must not end the others",
        "        except ZeroDivisionError as error:",
        by=f"{MOVING}a_bug_in_one_move_ends_no_other",
    ),
    Mutant(
        "a listener that is slow misses the end",
        "migrate/moves.py",
        "            if queue.full():\n                queue.get_nowait()\n            queue.put_nowait(None)",
        "            if not queue.full():\n                queue.put_nowait(None)",
        by=f"{MOVING}a_listener_that_is_slow_hears_the_end",
    ),
    Mutant(
        "a target takes in more than its limit",
        "migrate/receiver.py",
        "asyncio.Semaphore(limits.into)",
        "asyncio.Semaphore(99)",
        by=f"{MIGRATE}/test_scheduler.py::test_the_target_lets_in_so_many",
    ),
    Mutant(
        "a place for an arriving domain is not given back",
        "migrate/receiver.py",
        "            self._places.release()\n",
        "            pass\n",
        by=f"{MIGRATE}/test_scheduler.py::test_the_target_lets_in_so_many",
    ),
)

VERSIONS = (
    Mutant(
        "the version of the target is not looked at",
        "migrate/sender.py",
        "        versions.require(self.target, ready, level, post_copy=self._post_copy)\n",
        "",
        by=f"{MIGRATE}/test_moving_versions.py::test_an_old_target_gets_a_plain_stream_or_none",
    ),
    Mutant(
        "a target that knows no packed stream gets one",
        "migrate/sender.py",
        "            self._compression = None\n\n    async def _await_copy_place",
        "            pass\n\n    async def _await_copy_place",
        by=f"{MIGRATE}/test_moving_versions.py::test_an_old_target_gets_a_plain_stream_or_none",
    ),
)

POST_COPY = (
    Mutant(
        "a node that has no part in a move gets its memory",
        "migrate/postcopy.py",
        "if line is not None and channel.peer not in {line.source, line.target}:",
        "if False:",
        by=f"{POST}a_node_that_has_no_part_in_a_move_is_told_nothing",
    ),
    Mutant(
        "a source that says gone is believed at once",
        "migrate/postcopy.py",
        "if gone_since and now - gone_since > GRACE_S:",
        "if gone_since:",
        by=f"{POST}gone_is_believed_once_it_has_held",
    ),
    Mutant(
        "a domain whose memory is gone is not ended",
        "migrate/postcopy.py",
        "            await driver.lose(line.uuid)\n",
        "",
        by=f"{POST}a_source_that_dies_takes_the_run_with_it",
    ),
    Mutant(
        "a target that has everything takes a new stream",
        "migrate/postcopy.py",
        "if isinstance(message, wire.Ask) or standing is not Standing.PARTLY:",
        "if isinstance(message, wire.Ask):",
        by=f"{POST}a_target_that_has_everything_takes_no_new_stream",
    ),
    Mutant(
        "a stream that broke counts as the rest",
        "migrate/postcopy.py",
        "                if rest is Rest.SENT:\n                    return\n",
        "                return\n",
        by=f"{POST}a_broken_stream_is_replaced_until_it_holds",
    ),
    Mutant(
        "a settled source does not send the rest",
        "migrate/settle.py",
        "                await self._send_rest(line)\n",
        "",
        by=f"{POST}daemons_that_begin_anew_see_it_through",
    ),
    Mutant(
        "the target's journal forgets a move whose memory is on its way",
        "migrate/receiver.py",
        "(self._settler.later if line.post_copy else context.journal.strike)(line)",
        "context.journal.strike(line)",
        by=f"{POST}it_leaves_before_all_is_sent",
    ),
    Mutant(
        "the source's journal does not know of post-copy",
        "migrate/sender.py",
        "        self._steps.line = replace(self._steps.line, post_copy=True)\n",
        "",
        by=f"{POST}it_leaves_before_all_is_sent",
    ),
)

DISKS = (
    Mutant(
        "files that are the disks are removed",
        "migrate/disks.py",
        "for disk in line.disks if home != node else ():",
        "for disk in line.disks:",
        by=f"{ALONG}files_that_are_the_disks_are_not_removed",
    ),
    Mutant(
        "files of a move that was undone stay",
        "migrate/disks.py",
        "            local.unmake(disk)\n",
        "            pass\n",
        by=f"{ALONG}a_failed_step_is_undone",
    ),
    Mutant(
        "disks that were not handed over are put aside",
        "migrate/disks.py",
        '    if home in ("", node):\n',
        "    if home == node:\n",
        by=f"{ALONG}disks_that_were_not_handed_over_stay_where_they_are",
    ),
    Mutant(
        "disks that are here are put aside",
        "migrate/disks.py",
        '    if home in ("", node):\n',
        '    if home == "":\n',
        by=f"{ALONG}disks_that_were_not_handed_over_stay_where_they_are",
    ),
    Mutant(
        "a target may leave out a disk",
        "migrate/disks.py",
        "    if set(targets) != {disk.vdev for disk in going}:\n",
        "    if False:\n",
        by=f"{ALONG}a_target_takes_every_disk_or_none",
    ),
    Mutant(
        "the record does not say where the disks are",
        "migrate/disks.py",
        "spec=arrived(now.spec, line.disks), home=line.target)",
        "spec=arrived(now.spec, line.disks))",
        by=f"{ALONG}there_and_back",
    ),
    Mutant(
        "the record keeps the paths of the source",
        "migrate/disks.py",
        "spec=arrived(now.spec, line.disks), home=line.target)",
        "home=line.target)",
        by=f"{ALONG}there_and_back",
    ),
    Mutant(
        "the source's disks are removed without the flag",
        "migrate/disks.py",
        "local.put_aside(disk, line.target, remove=line.remove_source)",
        "local.put_aside(disk, line.target, remove=True)",
        by=f"{ALONG}there_and_back",
    ),
    Mutant(
        "disks that only the source has stay behind",
        "migrate/disks.py",
        "    if found:\n        raise Refused(",
        "    if False:\n        raise Refused(",
        by=f"{ALONG}without_the_flag_it_is_named",
    ),
    Mutant(
        "a file is made before the journal names it",
        "migrate/receiver.py",
        "            line = self._context.journal.write(replace(line, disks=taken))",
        "            line = replace(line, disks=taken)",
        by=f"{ALONG}the_journal_names_a_file_as_soon_as_it_is_made",
    ),
    Mutant(
        "a target that gives up keeps its files",
        "migrate/receiver.py",
        "                await self._settler.clear_disks(line)\n",
        "",
        by=f"{ALONG}a_failed_step_is_undone",
    ),
    Mutant(
        "a target that was killed keeps its files",
        "migrate/settle.py",
        "            if not here:\n                await self.clear_disks(line)\n",
        "",
        by=f"{ALONG}a_dead_target_s_files_are_removed",
    ),
)

MUTANTS = (*SENDER, *VITALS, *RECEIVER, *WIRE, *SETTLE, *OWNER_GATE, *NODE, *MOVES, *VERSIONS, *POST_COPY, *DISKS)


def main() -> None:
    """All of them, or those whose names hold one of the words given."""
    words = sys.argv[1:]
    check(MUTANTS)
    chosen = [each for each in MUTANTS if not words or any(word in each.name for word in words)]
    lived = 0
    for mutant in chosen:
        found = found_by(mutant)
        lived += not found or found.startswith("no verdict")
        print(f"{mutant.name}: {found or 'LIVES'}", flush=True)
    print(f"{len(chosen) - lived} of {len(chosen)} found")
    sys.exit(1 if lived else 0)


if __name__ == "__main__":
    main()
