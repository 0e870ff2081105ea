"""The plan for tgtd: what it does, in which order, and that every prefix of it leads on to the same end."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from veery.model.units import MIB
from veery.model.volume import Backing, Initiator, Volume
from veery.storage import plan
from veery.storage.plan import Allow, Bind, Close, Deny, Enrol, Forget, Make, Name, Reload, Remove, Serve, Unbind
from veery.storage.tgtoutput import Lun, Session, Target, is_filler, shown_size

ONE = Initiator(node="test1", iqn="iqn.2026-11.lab.veery:node:test1", user="test1", password="first-secret")
TWO = Initiator(node="test2", iqn="iqn.2026-11.lab.veery:node:test2", user="test2", password="other-secret")


def volume(name: str, tid: int) -> Volume:
    return Volume(
        name=name,
        size=64 * MIB,
        node="stor",
        backing=Backing.FILE,
        path=f"/pool/{name}.img",
        iqn=f"iqn.2026-11.lab.veery:{name}",
        tid=tid,
        portal="172.16.31.3:3260",
    )


def want(name: str, tid: int, *admitted: Initiator) -> plan.Wanted:
    return plan.wanted(volume(name, tid), 64 * MIB, sync=True, admitted=admitted or (ONE, TWO))


class Daemon:
    """tgtd as far as the plan goes, its traps included: a hole in an account table is an error here."""

    def __init__(self) -> None:
        self.targets: dict[int, Target] = {}
        self.accounts: dict[str, str] = {}

    def act(self, step: plan.Step) -> None:
        target = self.targets.get(step.tid)
        match step:
            case Remove():
                del self.targets[step.tid]
            case Enrol():
                assert step.user not in self.accounts
                self.accounts[step.user] = step.password or "unknown"
            case Forget():
                assert not any(step.user in one.accounts for one in self.targets.values()), "a hole"
                del self.accounts[step.user]
            case Make():
                assert target is None
                assert step.iqn not in {one.iqn for one in self.targets.values()}
                self.targets[step.tid] = Target(tid=step.tid, iqn=step.iqn, state="ready")
            case _:
                assert target is not None
                self.targets[step.tid] = self._changed(target, step)
        for one in self.targets.values():  # nobody comes in without a password
            bound = {self.accounts[user] for user in one.accounts}
            assert not one.acl or bound, f"{one.iqn} is open after {step}"

    def _changed(self, target: Target, step: plan.Step) -> Target:
        match step:
            case Deny():
                return replace(target, acl=tuple(entry for entry in target.acl if entry != step.entry))
            case Close():
                kept = tuple(one for one in target.sessions if one.initiator != step.initiator)
                return replace(target, sessions=kept)
            case Allow():
                assert step.initiator not in target.acl
                return replace(target, acl=(*target.acl, step.initiator))
            case Bind():
                assert step.user not in target.accounts
                assert step.user in self.accounts
                if not step.filler:
                    return replace(target, accounts=(*target.accounts, step.user))
                at = target.accounts.index(step.filler)
                return replace(target, accounts=(*target.accounts[:at], step.user, *target.accounts[at + 1 :]))
            case Unbind():
                assert step.filler in self.accounts
                assert step.filler not in target.accounts
                at = target.accounts.index(step.user)
                return replace(target, accounts=(*target.accounts[:at], step.filler, *target.accounts[at + 1 :]))
            case Serve():
                assert target.lun(1) is None
                return replace(target, luns=(*target.luns, disk(step.path, "sync" if step.sync else "")))
            case Name():
                named = replace(target.luns[-1], scsi_id=step.scsi_id, serial=step.serial)
                return replace(target, luns=(*target.luns[:-1], named))
            case Reload():
                assert set(step.target.acl) <= set(target.acl)
                grown = replace(target.luns[-1], size_mb=shown_size(64 * MIB), online=True)
                return replace(target, luns=(*target.luns[:-1], grown))
            case _:
                raise AssertionError(step)


def disk(path: str, flags: str = "sync", size: int = 64 * MIB) -> Lun:
    return Lun(
        lun=1,
        kind="disk",
        scsi_id="IET     00010001",
        serial="beaf11",
        size_mb=shown_size(size),
        block_size=512,
        online=True,
        readonly=False,
        backing="rdwr",
        path=path,
        flags=flags,
    )


def steps(daemon: Daemon, *wanted: plan.Wanted, known: tuple[Initiator, ...] = (ONE, TWO)) -> tuple[plan.Step, ...]:
    return plan.decide(wanted, known, tuple(daemon.targets.values()), set(daemon.accounts))


def settle(daemon: Daemon, *wanted: plan.Wanted, known: tuple[Initiator, ...] = (ONE, TWO)) -> list[plan.Step]:
    done = list(steps(daemon, *wanted, known=known))
    for step in done:
        daemon.act(step)
    assert steps(daemon, *wanted, known=known) == ()
    return done


def test_from_nothing_doors_open_last() -> None:
    daemon = Daemon()
    done = settle(daemon, want("a", 1), want("b", 2))
    kinds = [type(step) for step in done]
    assert kinds == [*[Enrol] * 4, *[Make, Serve, Name] * 2, *[Bind] * 4, *[Allow] * 4]
    assert daemon.targets[1].accounts == ("test1", "test2")
    assert daemon.targets[2].acl == (ONE.iqn, TWO.iqn)
    assert daemon.accounts["test1"] == "first-secret"


def test_a_stranger_goes_and_its_number_is_free_for_ours() -> None:
    daemon = Daemon()
    daemon.targets[1] = Target(tid=1, iqn="iqn.2015-02.com.stu31:t1", state="ready", acl=())
    done = settle(daemon, want("a", 1))
    assert type(done[0]) is Remove
    assert daemon.targets[1].iqn == "iqn.2026-11.lab.veery:a"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"luns": (disk("/elsewhere"),)}, "its LUN is /elsewhere"),
        ({"luns": (disk("/pool/a.img", ""),)}, "should be synchronous"),
        ({"luns": (disk("/pool/a.img"), replace(disk("/x"), lun=2))}, "LUN 2 was not made by veery"),
        ({"tid": 5}, "its id should be 1"),
    ],
)
def test_what_cannot_be_mended_is_made_anew(change: dict[str, object], words: str) -> None:
    daemon = Daemon()
    settle(daemon, want("a", 1))
    target = replace(daemon.targets.pop(1), **change)  # type: ignore[arg-type]
    daemon.targets[target.tid] = target
    first = settle(daemon, want("a", 1))[0]
    assert isinstance(first, Remove)
    assert words in first.why


def test_growth_is_seen_and_names_are_set() -> None:
    daemon = Daemon()
    settle(daemon, want("a", 1))
    daemon.targets[1] = replace(daemon.targets[1], luns=(disk("/pool/a.img", size=63 * MIB),))
    assert [type(step) for step in settle(daemon, want("a", 1))] == [Reload, Name]


def test_a_denied_node_loses_its_door_its_account_and_its_sessions() -> None:
    daemon = Daemon()
    settle(daemon, want("a", 1), want("b", 2))
    daemon.targets[1] = replace(daemon.targets[1], sessions=(Session(sid=1, initiator=ONE.iqn),))
    done = settle(daemon, want("a", 1, TWO), want("b", 2))
    assert [type(step) for step in done] == [Deny, Close, Enrol, Unbind]
    assert daemon.targets[1].accounts == ("#0", "test2")
    assert daemon.targets[2].accounts == ("test1", "test2")
    back = settle(daemon, want("a", 1), want("b", 2))
    assert [type(step) for step in back] == [Bind, Allow]
    assert daemon.targets[1].accounts == ("test1", "test2")


def test_a_new_password_shuts_the_door_before_the_account_goes() -> None:
    daemon = Daemon()
    settle(daemon, want("a", 1))
    renewed = replace(ONE, password="renewed-secret")
    done = settle(daemon, want("a", 1, renewed, TWO), known=(renewed, TWO))
    assert daemon.accounts["test1"] == "renewed-secret"
    assert plan.mark("test1", "first-secret") not in daemon.accounts
    kinds = [type(step) for step in done]
    assert kinds.index(Deny) < kinds.index(Unbind) < kinds.index(Forget)
    assert kinds[-1] is Allow


def test_an_account_without_its_mark_is_made_anew() -> None:
    """A crash between the account and its mark: nobody knows which password it has."""
    daemon = Daemon()
    daemon.accounts["test1"] = "who knows"
    settle(daemon, want("a", 1))
    assert daemon.accounts["test1"] == "first-secret"


def test_passwords_are_not_told() -> None:
    for step in steps(Daemon(), want("a", 1)):
        assert "secret" not in plan.describe(step)
    assert plan.describe(Deny(3, "iqn.x:y", "not admitted")) == "deny target 3 iqn.x:y: not admitted"


def test_every_crash_leads_to_the_same_end() -> None:
    """From a random state, through a plan broken off anywhere, to what the records then say: never open."""
    luck = random.Random(7)
    renewed = replace(ONE, password="renewed-secret")
    three = Initiator(node="test3", iqn="iqn.2026-11.lab.veery:node:test3", user="test3", password="third-secret")
    for _ in range(400):
        daemon = Daemon()
        for _ in range(5):
            known = tuple(luck.sample([luck.choice([ONE, renewed]), TWO, three], luck.randint(0, 3)))
            names = luck.sample("abc", luck.randint(0, 3))
            wanted = [
                replace(
                    want(name, luck.choice([1, 10]) + number),
                    admitted=tuple(luck.sample(known, luck.randint(0, len(known)))),
                )
                for number, name in enumerate(names)
            ]
            todo = steps(daemon, *wanted, known=known)
            for step in todo[: luck.randint(0, len(todo))]:
                daemon.act(step)
        settle(daemon, *wanted, known=known)
        assert {one.iqn for one in daemon.targets.values()} == {one.iqn for one in wanted}
        for one in wanted:
            target = daemon.targets[one.tid]
            assert set(target.acl) == {initiator.iqn for initiator in one.admitted}
            people = {user for user in target.accounts if not is_filler(user)}
            assert people == {initiator.user for initiator in one.admitted}
