"""What stands in the way of a recovery, which stores were given up, and standing still meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from veery.cluster.identity import EtcdStart, Identity
from veery.cluster.memory import MemoryStore
from veery.cluster.presence import Heartbeat
from veery.config.settings import Settings
from veery.errors import Failed
from veery.model.cluster import Cluster
from veery.model.codec import plain
from veery.model.node import Node, Role
from veery.model.recovery import Aside, StoreWord
from veery.node.guard import Stance, View, rule
from veery.node.stillness import STILL_S, Stillness
from veery.node.storerecovery import Recoverer, believed, given_up, judge, judge_aside
from veery.node.witness import WitnessAnswer

OWN = StoreWord(node="a", voter=True, quorum=False, revision=100)
B, C = (StoreWord(node=name, voter=True, quorum=False, revision=90) for name in "bc")


def judged(
    own: StoreWord = OWN,
    told: Collection[StoreWord] = (B, C),
    silent: Mapping[str, str] | None = None,
    *,
    lost: Collection[str] = (),
    data: bool = True,
    file: bool = False,
) -> str:
    words = {word.node: word for word in told}
    return "; ".join(judge(own, words, silent or {}, voters="abc", lost=lost, data=data, file=file))


def word(node: str, **changes: object) -> StoreWord:
    return StoreWord(node=node, **{"voter": True, **changes})  # type: ignore[arg-type]


def test_nothing_stands_in_the_way_where_nobody_decides() -> None:
    assert judged() == ""
    assert judged(file=True, data=False) == ""
    assert judged(told=[B], silent={"c": "no route"}, lost=["c"]) == ""


@pytest.mark.parametrize("who", ["a", "b"])
def test_a_store_that_decides_is_left_alone(who: str) -> None:
    own, other = (word(name, quorum=name == who) for name in "ab")
    assert f"the store of {who} has a quorum" in judged(own, [other, C])
    own, other = (word(name, quorum=name == who, restored=True) for name in "ab")
    assert judged(own, [other, C]) == ""  # one that nobody trusts may be replaced once more


def test_a_silent_voter_wants_an_operators_word() -> None:
    assert "voter c does not answer (no route)" in judged(told=[B], silent={"c": "no route"})
    assert judged(silent={"hypervisor": "no route"}) == ""
    assert "b answers: it is not lost" in judged(lost=["b"])
    assert "no node 'x'" in judged(lost=["x"])
    assert "a answers" in judged(lost=["a"])


def test_the_newest_data_is_taken() -> None:
    newer = word("c", quorum=False, revision=101)
    assert "veery --node c cluster recover" in judged(told=[B, newer])
    assert judged(told=[B, newer], file=True) == ""
    assert "a has no data" in judged(data=False)


def test_a_voter_learns_that_its_store_was_given_up() -> None:
    told = word("a", member="2", cluster="1", replaced=("1",), endpoints=("https://a:2379",))
    assert given_up("1", told), "also before the new store is adopted"
    assert given_up("1", word("h", voter=False, cluster="1", replaced=("1",), endpoints=("https://a:2379",)))
    assert not given_up("2", told)
    assert not given_up("", told)
    assert not given_up("1", word("a", member="1", replaced=("1",), endpoints=("https://a:2379",)))
    assert not given_up("1", word("a", member="2", replaced=("1",)))


def test_one_node_without_a_vote_takes_no_store_away() -> None:
    says = {"replaced": ("1",), "endpoints": ("https://h:2379",)}
    liar, other = word("h", voter=False, **says), word("b", member="1")
    assert believed("1", {"h": liar, "b": other}, "ab") is None
    assert believed("1", {"h": liar}, "ab") is liar, "nobody contradicts: it was recovered on a node without a vote"
    assert believed("1", {"h": liar, "i": replace(liar, node="i")}, "ab") is liar
    voter = word("b", member="2", **says)
    assert believed("1", {"h": word("h", voter=False), "b": voter}, "ab") is voter
    assert believed("1", {}, "ab") is None


# ---- standing aside
AT_B, AT_SIX = ("10.0.0.2", "fd00::2"), "https://[fd00:0:0::2]:2379"


def aside(*endpoints: str, replaced: tuple[str, ...] = ("12ab",), still: bool = True) -> str:
    return judge_aside(Aside(replaced=replaced, endpoints=endpoints), "b", AT_B, still=still)


def test_a_node_stands_aside_for_the_caller_alone() -> None:
    assert aside("https://10.0.0.2:2379") == aside(AT_SIX) == ""
    assert "knows of no recovery on b" in aside("https://10.0.0.2:2379", still=False)
    assert "no member" in aside()
    assert "no member" in aside(*["https://10.0.0.2:2379"] * 9)
    assert "does not name stores" in aside("https://10.0.0.2:2379", replaced=("../x",))
    assert "does not name stores" in aside("https://10.0.0.2:2379", replaced=("1",) * 1001)


@pytest.mark.parametrize(
    "url",
    [
        "https://10.0.0.3:2379",
        "http://10.0.0.2:2379",
        "https://10.0.0.2",
        "https://10.0.0.2:2379/x",
        "https://10.0.0.2:2379@10.0.0.3:2379",
        "https://x@10.0.0.2:2379",
        "https://10.0.0.2:99999",
        "https://b:2379",
        "https://[::",
        "10.0.0.2:2379",
        "",
    ],
)
def test_an_endpoint_of_another_kind_is_not_taken(url: str) -> None:
    assert "is not an endpoint of b" in aside("https://10.0.0.2:2379", url)
    assert "is not an endpoint of b" in aside(url)


async def test_standing_still_is_for_the_node_that_ordered_it() -> None:
    clock = HandClock()
    still = Stillness(Heartbeat(MemoryStore(clock), "a", ttl=9, clock=clock), clock)
    assert not still.holds_for("")
    still.order("b")
    assert (still.holds_for("b"), still.holds_for("c")) == (True, False)
    clock.at += STILL_S
    assert not still.holds_for("b")


# ---- standing still
def test_the_guard_stands_still_unless_storage_shuts_it_out() -> None:
    view = View(lost=500.0, fenced=False, voters=frozenset("abc"), storage=frozenset("s"), still=True)
    assert (rule(view, 20.0).stance, rule(view, 20.0).feed) == (Stance.STAY, True)
    shut = View(
        lost=500.0,
        fenced=False,
        voters=frozenset("abc"),
        storage=frozenset("s"),
        still=True,
        words=(WitnessAnswer(node="s", fenced=True),),
    )
    assert (rule(shut, 20.0).stance, rule(shut, 20.0).feed) == (Stance.END, False)


class HandClock:
    """Goes on by hand."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def epoch(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        ends = self.at + seconds
        while self.at < ends:
            await asyncio.sleep(0)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0)


async def test_standing_still_ends_by_itself() -> None:
    clock = HandClock()
    still = Stillness(Heartbeat(MemoryStore(clock), "a", ttl=9, clock=clock), clock)
    assert not still.holds()
    still.order("b")
    assert still.holds()
    clock.at += STILL_S
    assert not still.holds()


async def test_standing_still_ends_with_the_first_lease_that_is_granted_afterwards() -> None:
    """From then on the others may fence this node: nothing else may keep its watchdog fed."""
    clock = HandClock()
    heartbeat = Heartbeat(MemoryStore(clock), "a", ttl=9, clock=clock)
    work = asyncio.ensure_future(heartbeat.run())
    try:
        await until(lambda: heartbeat.remaining() == 9)
        clock.at += 1
        still = Stillness(heartbeat, clock)
        still.order("b")
        assert still.holds(), "the lease of before the order proves nothing"
        clock.at += 3
        await until(lambda: heartbeat.remaining() == 9)
        assert not still.holds()
        work.cancel()
        clock.at += 100
        assert not still.holds(), "it does not come back when the lease is lost again"
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


# ---- a voter that was away
class Away:
    """A voter whose store another node calls given up, and all that a Recoverer asks. `asked` is called when the other
    node answers, which is when a recovery may end here."""

    def __init__(self, store: str) -> None:
        node = Node(name="a", address="10.0.0.1", roles=(Role.VOTER,))
        etcd = EtcdStart(initial_cluster="", initial_cluster_state="existing", store=store)
        cluster = Cluster(id="c", name="lab", ca="", authority="iqn.2026-11.internal.lab")
        self.identity = Identity(cluster=cluster, node=node, voters=(), etcd=etcd)
        self.seen, self.restored, self.nodes = None, False, {"a": node, "b": replace(node, name="b")}
        self.voters, self.asides = self, list[Aside]()
        self.asked: Callable[[], None] = lambda: None

    async def status(self, url: str, *, within: float) -> NoReturn:
        raise Failed("it does not run")

    async def call(self, name: str, method: str, path: str, *, deadline: float) -> object:
        self.asked()
        return plain(word("b", member="new", replaced=("old",), endpoints=("https://10.0.0.2:2379",)))

    def holds(self) -> bool:
        return False

    async def aside(self, order: Aside) -> None:
        self.asides.append(order)

    async def look(self) -> bool:
        each: Any = self
        parts = dict.fromkeys(("switch", "votes", "stillness", "node_cache", "peers", "tls"), each)
        return await Recoverer(Settings(), each, each, each, clock=HandClock(), **parts).look()  # type: ignore[arg-type]


async def test_a_voter_gives_its_old_store_up() -> None:
    away = Away("old")
    assert not await away.look()
    assert [order.replaced for order in away.asides] == [("old",)]


async def test_a_store_that_was_made_anew_meanwhile_is_kept() -> None:
    """The other node's answer was on its way when the recovery here ended."""
    away = Away("old")

    def recovered() -> None:
        start = EtcdStart(initial_cluster="", initial_cluster_state="new")
        away.identity = replace(away.identity, etcd=start, replaced=("old",))

    away.asked = recovered
    await away.look()
    assert away.asides == []
