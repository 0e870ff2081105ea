"""The plan of changes that bring tgtd to the state in the records. Pure: no clock, no await.

The order matters. An ACL entry without a bound account admits every initiator that claims its name (tgt.py). So the
plan first removes access, then binds accounts, and adds ACL entries last. After any number of its steps `decide` can
plan again from the reached state, so a crash in between does no harm."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from veery.model.volume import Initiator, Volume
from veery.storage.tgtoutput import Lun, Target, filler, is_filler, shown_size

LUN = 1  # of every volume; LUN 0 is tgt's controller


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The wanted state of one target. `size` is the present size of the bytes on disk."""

    tid: int
    iqn: str
    path: str
    size: int
    sync: bool
    admitted: tuple[Initiator, ...]

    @property
    def scsi_id(self) -> str:
        """Return the designator of INQUIRY page 0x83: the same for a volume on every node and at every time."""
        return f"veery-{hashlib.sha256(self.iqn.encode()).hexdigest()[:24]}"

    @property
    def serial(self) -> str:
        """Return the serial number of INQUIRY page 0x80."""
        return hashlib.sha256(self.iqn.encode()).hexdigest()[:20]


def wanted(volume: Volume, size: int, *, sync: bool, admitted: Sequence[Initiator]) -> Wanted:
    """Return the wanted target of `volume`, whose bytes have `size`."""
    return Wanted(tid=volume.tid, iqn=volume.iqn, path=volume.path, size=size, sync=sync, admitted=tuple(admitted))


# ---------------------------------------------------------------- steps; `tid` 0: the step belongs to no target


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a target with its LUNs."""

    tid: int
    target: Target
    why: str


@dataclass(frozen=True, slots=True)
class Deny:
    """Remove an ACL entry."""

    tid: int
    entry: str
    why: str


@dataclass(frozen=True, slots=True)
class Close:
    """Close the sessions of an initiator."""

    tid: int
    initiator: str
    why: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete an account."""

    tid: int
    user: str
    why: str


@dataclass(frozen=True, slots=True)
class Enrol:
    """Make an account; if `password` is "", with a random password that is not kept."""

    tid: int
    user: str
    password: str
    why: str


@dataclass(frozen=True, slots=True)
class Make:
    """Make an empty target."""

    tid: int
    iqn: str
    why: str


@dataclass(frozen=True, slots=True)
class Serve:
    """Give a target its LUN."""

    tid: int
    path: str
    sync: bool
    why: str


@dataclass(frozen=True, slots=True)
class Name:
    """Set the LUN's identity."""

    tid: int
    scsi_id: str
    serial: str
    why: str


@dataclass(frozen=True, slots=True)
class Reload:
    """Make tgtd read the LUN's new size."""

    tid: int
    target: Target
    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Bind:
    """Bind an account to a target, in the place of `filler` if that is not ""."""

    tid: int
    user: str
    filler: str
    why: str


@dataclass(frozen=True, slots=True)
class Unbind:
    """Unbind an account from a target; `filler` takes its place (tgt.TargetServer.unbind_account)."""

    tid: int
    user: str
    filler: str
    why: str


@dataclass(frozen=True, slots=True)
class Allow:
    """Add an ACL entry."""

    tid: int
    initiator: str
    why: str


Step = Remove | Deny | Close | Forget | Enrol | Make | Serve | Name | Reload | Bind | Unbind | Allow


def describe(step: Step) -> str:
    """Return one line for the log, without passwords."""
    about = {
        field: value
        for field in ("iqn", "entry", "initiator", "user", "path")
        if (value := getattr(step, field, "")) and "#" not in value
    }
    where = f" target {step.tid}" if step.tid else ""
    return f"{type(step).__name__.lower()}{where} {' '.join(about.values())}: {step.why}"


def mark(user: str, password: str) -> str:
    """Return the name of the mark of account `user`: an unbound account whose name identifies the user's password.

    The password cannot be read back from tgtd. The mark gives no access, and is lost with tgtd's memory like the
    password."""
    digest = hashlib.sha256(user.encode() + b"\0" + password.encode()).hexdigest()
    return f"{user}#{digest[:20]}"


def decide(
    targets: Sequence[Wanted],
    initiators: Sequence[Initiator],
    observed: Sequence[Target],
    accounts: Collection[str],
) -> tuple[Step, ...]:
    """Return the steps from `observed` and its `accounts` to `targets`, with accounts for all `initiators`."""
    wanted_by_iqn = {one.iqn: one for one in targets}
    removed, kept = [], {}
    for target in observed:
        reason = _misfit(target, wanted_by_iqn.get(target.iqn))
        if reason:
            removed.append(Remove(target.tid, target, reason))
        else:
            kept[target.iqn] = target
    passwords = {one.user: one.password for one in initiators}
    marks = {user: mark(user, password) for user, password in passwords.items()}
    stale = {user for user in passwords if user in accounts and marks[user] not in accounts}
    known = {user for user in passwords if user in accounts} - stale
    expected = set(passwords) | {marks[user] for user in known}  # a mark without its account has no meaning
    gone = {user for user in accounts if user not in expected and not is_filler(user)}

    removals: list[Step] = []
    bodies: list[Step] = []
    unbinds: list[Unbind] = []
    binds: list[Bind] = []
    allows: list[Allow] = []
    for one in targets:
        target = kept.get(one.iqn) or Target(tid=one.tid, iqn=one.iqn, state="")
        closing = tuple(_removals(one, target, stale))
        removals += closing
        denied = {step.entry for step in closing if isinstance(step, Deny)}
        target = replace(target, acl=tuple(entry for entry in target.acl if entry not in denied))
        bodies += _body(one, target, new=one.iqn not in kept)
        taken, given = _bindings(one, target, stale)
        unbinds += taken
        binds += given
        allows += [
            Allow(one.tid, initiator.iqn, f"node {initiator.node} is admitted")
            for initiator in one.admitted
            if initiator.iqn not in target.acl
        ]
    fillers = {step.filler for step in unbinds} - set(accounts)
    return (
        *removed,
        *removals,
        *(Enrol(0, user, "", "a filler for an unbound account") for user in sorted(fillers)),
        *unbinds,
        *(Forget(0, user, "its password changed") for user in sorted(stale)),
        *(Forget(0, user, "no record names it") for user in sorted(gone)),
        *_enrol(passwords, marks, known),
        *bodies,
        *binds,
        *allows,
    )


def _bindings(one: Wanted, target: Target, stale: set[str]) -> tuple[list[Unbind], list[Bind]]:
    """Return the accounts to unbind from a target, and those to bind."""
    users = {initiator.user for initiator in one.admitted}
    fillers = [user for user in target.accounts if is_filler(user)]
    unbinds = []
    for user in target.accounts:
        if not is_filler(user) and (user not in users or user in stale):
            substitute = filler(fillers)
            fillers.append(substitute)
            why = "its password changed" if user in stale else "it belongs to no admitted node"
            unbinds.append(Unbind(one.tid, user, substitute, why))
    staying = set(target.accounts) - {step.user for step in unbinds}
    binds = []
    for user in sorted(users - staying):
        binds.append(Bind(one.tid, user, fillers.pop(0) if fillers else "", "it belongs to an admitted node"))
    return unbinds, binds


def _misfit(target: Target, one: Wanted | None) -> str:
    """Return why a target must be removed, and perhaps made again; "" if it can stay."""
    if one is None:
        return "no record names it"
    if target.tid != one.tid:
        return f"its id should be {one.tid}"
    foreign = [lun.lun for lun in target.luns if lun.lun not in {0, LUN}]
    if foreign:
        return f"LUN {foreign[0]} was not made by veery"
    lun = target.lun(LUN)
    return _lun_misfit(lun, one) if lun else ""


def _lun_misfit(lun: Lun, one: Wanted) -> str:
    if lun.path != one.path:
        return f"its LUN is {lun.path or 'empty'}"
    if ("sync" in lun.flags) != one.sync:
        return f"its writes should {'' if one.sync else 'not '}be synchronous"
    return ""


def _removals(one: Wanted, target: Target, stale: set[str]) -> Iterator[Deny | Close]:
    """Yield the removals of access at a target that stays."""
    admitted = {initiator.iqn: initiator for initiator in one.admitted}
    for entry in target.acl:
        if entry not in admitted:
            yield Deny(one.tid, entry, "not admitted")
        elif admitted[entry].user in stale:
            yield Deny(one.tid, entry, "its password changed")
        elif admitted[entry].user not in target.accounts:
            yield Deny(one.tid, entry, "its account is not bound")
    for initiator in dict.fromkeys(session.initiator for session in target.sessions):
        if initiator not in admitted:
            yield Close(one.tid, initiator, "not admitted")


def _body(one: Wanted, target: Target, *, new: bool) -> Iterator[Step]:
    """Yield the steps for the target itself and its LUN."""
    if new:
        yield Make(one.tid, one.iqn, "recorded")
    lun = target.lun(LUN)
    if lun is None:
        yield Serve(one.tid, one.path, one.sync, "recorded")
    elif lun.size_mb != shown_size(one.size) or not lun.online:
        yield Reload(one.tid, target, one.path, f"tgtd shows {lun.size_mb} MB")
    if lun is None or (lun.scsi_id, lun.serial) != (one.scsi_id, one.serial):
        yield Name(one.tid, one.scsi_id, one.serial, "recorded")


def _enrol(passwords: dict[str, str], marks: dict[str, str], known: set[str]) -> Iterator[Enrol]:
    """Yield the missing accounts, each followed by its mark: an account without a mark is made again."""
    for user in sorted(set(passwords) - known):
        yield Enrol(0, user, passwords[user], "recorded")
        yield Enrol(0, marks[user], passwords[user], "it identifies the password")
