"""Errors that say nothing of the order, only that this process or machine is short of something for now."""

from __future__ import annotations

import errno

SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})


def is_shortage(error: BaseException) -> bool:
    """Whether `error` (of a group: each in it) came of too few descriptors, processes or too little memory."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_shortage(each) for each in error.exceptions)
    if error.__cause__ is not None and is_shortage(error.__cause__):
        return True
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORT)
