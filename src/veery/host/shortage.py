"""Errors from a temporary shortage in this process or machine; they say nothing about the operation itself."""

from __future__ import annotations

import errno

SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN})


def is_shortage(error: BaseException) -> bool:
    """Return whether `error` (for a group: each of its errors) is a shortage of descriptors, processes or memory."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_shortage(each) for each in error.exceptions)
    if error.__cause__ is not None and is_shortage(error.__cause__):
        return True
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORT)
