"""Names on the storage network: volumes, IQNs, CHAP secrets."""

from __future__ import annotations

import re
import secrets

from veery.errors import Refused
from veery.model.volume import Initiator

IQN_BYTES = 223  # RFC 7143, section 4.2.7.2
_VOLUME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")
_AUTHORITY = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])\.[a-z0-9-]+(?:\.[a-z0-9-]+)*")


def check_volume_name(name: str) -> str:
    """Return `name` if it is valid for a volume. Raises Refused.

    The allowed characters are those valid in an IQN, at tgtd and in a logical volume's name. RFC 3722 allows "a-z",
    "0-9", "-", "." and ":" in an iSCSI name; ":" is the separator before the volume's name."""
    if not _VOLUME.fullmatch(name) or ".." in name:
        raise Refused(
            f"{name!r} cannot be a volume's name",
            hint="use a-z, 0-9, '-' and '.', beginning and ending with a letter or digit, at most 64",
        )
    return name


def check_authority(authority: str) -> str:
    """Return `authority` if it is valid ("YYYY-MM.REVERSED.DOMAIN", RFC 7143 section 4.2.7.4). Raises Refused."""
    if not _AUTHORITY.fullmatch(authority) or len(authority) > 100:
        raise Refused(
            f"{authority!r} cannot be a naming authority",
            hint="write a month in which you owned a domain, and the domain reversed: 2026-11.lab.veery",
        )
    return authority


def volume_iqn(authority: str, name: str) -> str:
    """Return the target name of volume `name`: "iqn.2026-11.lab.veery:busybox". Raises Refused."""
    return f"iqn.{check_authority(authority)}:{check_volume_name(name)}"


def initiator_iqn(authority: str, node: str) -> str:
    """Return the initiator name of node `node`: "iqn.2026-11.lab.veery:node:test1". Raises Refused."""
    iqn = f"iqn.{check_authority(authority)}:node:{node.lower()}"
    if not re.fullmatch(r"[a-z0-9.:-]+", iqn) or len(iqn) > IQN_BYTES:
        raise Refused(f"{node!r} cannot be part of an initiator name", hint="use a-z, 0-9, '-' and '.'")
    return iqn


def new_secret() -> str:
    """Return a CHAP secret: 16 characters with 96 random bits, as RFC 7143 section 9.2.1 requires. Some initiators
    accept only 12 to 16 bytes."""
    return secrets.token_urlsafe(12)


def new_initiator(authority: str, node: str) -> Initiator:
    """Return new credentials for node `node`. Raises Refused."""
    return Initiator(node=node, iqn=initiator_iqn(authority, node), user=node.lower(), password=new_secret())
