"""The system users as which veery's programs run instead of root."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Collection
from dataclasses import dataclass

from veery.errors import Refused

ID_MAX = 2**32 - 2
AUTO = "auto"
ACCOUNT = "veery-qemu"
"""The user that the Debian package and `veery setup` make (packaging/deb/veery.sysusers)."""
ADD_OPTIONS = ("--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin")


@dataclass(frozen=True, slots=True)
class Owner:
    """The user and group of a program."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Owners:
    """A range of users to choose from: `count` of them, from `first` on. `gid` is the group of all; None: each has the
    group with its own number."""

    first: int
    count: int
    gid: int | None

    def choose(self, number: int, taken: Collection[int]) -> Owner:
        """Return the user for the program with `number`. If there are several, skip those in `taken` (UIDs).

        Raises Refused if all are taken."""
        for step in range(self.count):
            uid = self.first + (number + step) % self.count
            if self.count == 1 or uid not in taken:
                return Owner(uid, uid if self.gid is None else self.gid)
        raise Refused(f"all {self.count} user ids are taken", hint="widen the range: user under [qemu] in veery.toml")


def owners(text: str, account: str = ACCOUNT) -> Owners | None:
    """Read a setting: "" (None: root), a user's name, its number, a range FIRST-LAST, or "auto": the user `account` if
    it exists, otherwise root. Raises Refused."""
    if not text or (text == AUTO and not has_account(account)):
        return None
    text = account if text == AUTO else text
    if os.geteuid() != 0:
        raise Refused(f'user = "{text}" under [qemu]: only root may start programs as another user', hint="run as root")
    match = re.fullmatch(r"(\d{1,10})(?:-(\d{1,10}))?", text)
    if match is None:
        return _named(text)
    first = int(match.group(1))
    last = int(match.group(2) or first)
    if not 0 < first <= last <= ID_MAX:
        raise Refused(
            f'user = "{text}" under [qemu] is neither a user id nor a range', hint='for example user = "200000-265535"'
        )
    if match.group(2):
        return Owners(first, last - first + 1, None)
    try:
        return Owners(first, 1, pwd.getpwuid(first).pw_gid)
    except KeyError:
        return Owners(first, 1, first)


def has_account(name: str = ACCOUNT) -> bool:
    """Return whether programs can be started as that user."""
    try:
        return os.geteuid() == 0 and pwd.getpwnam(name).pw_uid != 0
    except KeyError:
        return False


def _named(name: str) -> Owners:
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise Refused(
            f'user = "{name}" under [qemu]: there is no such user',
            hint=f"useradd {' '.join(ADD_OPTIONS)} {name}",
        ) from error
    if entry.pw_uid == 0:
        raise Refused(f'user = "{name}" under [qemu] is root', hint="leave user out, or name another")
    return Owners(entry.pw_uid, 1, entry.pw_gid)
