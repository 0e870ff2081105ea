"""Who may get a vote or give one up, and what the node's identity says then."""

from __future__ import annotations

import dataclasses

import pytest

from veery.cluster import voting
from veery.cluster.identity import EtcdStart, Identity
from veery.cluster.upkeep import Seen
from veery.cluster.voters import Voter, VoterStatus
from veery.model.cluster import Cluster
from veery.model.node import Node, Role


def seen(name: str, *, up: bool = True, leader: int = 1, learner: bool = False) -> Seen:
    number = sum(map(ord, name))
    voter = Voter(number, name, (f"https://{name}:2380",), (f"https://{name}:2379",), learner)
    status = VoterStatus(number, "3.4.23", leader, learner, 7, 0) if up else None
    return Seen(voter, f"https://{name}:2379", status)


A, B, C = seen("a"), seen("b"), seen("c")
START = EtcdStart(initial_cluster="a=https://a:2380", initial_cluster_state="existing")
IDENTITY = Identity(
    cluster=Cluster(name="lab", id="1", ca="", authority="iqn.x"),
    node=Node(name="a", address="10.0.0.1", roles=(Role.HYPERVISOR,)),
    voters=("https://b:2379", "https://c:2379"),
)


def test_a_vote_is_given_only_while_every_voter_answers() -> None:
    peer = "https://d:2380"
    assert voting.judge_gain([A], peer) == voting.judge_gain([A, B, C], peer) == ""
    assert "b does not answer" in voting.judge_gain([A, seen("b", up=False), C], peer)
    assert "b does not answer" in voting.judge_gain([A, seen("b", leader=0), C], peer)
    assert "b does not answer" in voting.judge_gain([A, seen("b", learner=True)], peer)  # etcd takes one at a time


def test_a_member_that_waits_for_its_own_vote_is_no_hindrance() -> None:
    assert voting.judge_gain([A, B, seen("d", up=False, learner=True)], "https://d:2380") == ""


def test_a_vote_is_given_up_only_where_the_others_are_a_majority() -> None:
    assert voting.judge_loss([A, B, C], "a") == voting.judge_loss([A, B], "a") == ""
    assert "last voter" in voting.judge_loss([A], "a")
    assert "last voter" in voting.judge_loss([A, seen("b", learner=True)], "a")
    assert "only 1 of 2" in voting.judge_loss([A, B, seen("c", up=False)], "a")
    assert "only 0 of 1" in voting.judge_loss([A, seen("b", up=False)], "a")


def test_the_vote_of_one_that_is_down_may_go_while_the_others_are_up() -> None:
    assert voting.judge_loss([A, B, seen("c", up=False)], "c") == ""


@pytest.mark.parametrize(("votes", "words"), [(1, ""), (2, "the loss of 0"), (3, ""), (4, "the loss of 1"), (5, "")])
def test_even_numbers_are_warned_of(votes: int, words: str) -> None:
    told = voting.warn(votes)
    assert (bool(told), words in told) == (bool(words), True)


def test_the_identity_follows() -> None:
    voting_now = voting.with_vote(IDENTITY, START)
    assert voting_now.node.roles == (Role.HYPERVISOR, Role.VOTER)
    assert voting_now.etcd == START
    assert voting.with_vote(voting_now, START) == voting_now
    assert voting.without_vote(voting_now) == IDENTITY


def test_a_store_that_was_given_up_is_remembered() -> None:
    once = voting.without_vote(voting.with_vote(IDENTITY, START), ["https://b:2379"], ["11", ""])
    assert (once.etcd, once.voters, once.replaced) == (None, ("https://b:2379",), ("11",))
    twice = voting.without_vote(once, [], ["11", "12"])
    assert (twice.voters, twice.replaced) == (("https://b:2379",), ("11", "12"))
    kept = voting.without_vote(voting.with_vote(IDENTITY, START), roles=False)
    assert kept == dataclasses.replace(IDENTITY, node=kept.node)
    assert kept.node.has(Role.VOTER)
