"""TLS contexts that follow their files: certificates, authorities and revoked certificates.

A running daemon renews its certificate and gets new lists of revoked ones. A context does not change with its files, so
a new context is made for later connections. Open connections keep theirs."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from veery.errors import Refused
from veery.host import crl, tls

log = logging.getLogger(__name__)

FILES = ("ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem", crl.CA_FILE)

Mark = tuple[tuple[int, int, int], ...]
Made = tuple[ssl.SSLContext, ssl.SSLContext, str]


class Contexts:
    """The TLS contexts of one folder, for both directions."""

    def __init__(self, folder: Path) -> None:
        """`folder` has the node's certificates. Raises Refused if they are unusable."""
        self._folder = folder
        self._mark: Mark = self._look()
        self._made: Made = self._make()

    def server(self) -> ssl.SSLContext:
        """Return the context for the next incoming connection."""
        return self._current()[0]

    def client(self) -> ssl.SSLContext:
        """Return the context for the next outgoing connection."""
        return self._current()[1]

    @property
    def serial(self) -> str:
        """Return the serial number (hex) of the certificate for new connections."""
        return self._current()[2]

    def _current(self) -> Made:
        mark = self._look()
        if mark != self._mark:
            self._mark = mark
            try:
                self._made = self._make()
            except (Refused, OSError, ValueError) as error:
                log.error("cannot load the new certificates, the old ones stay in use: %s", error)
        return self._made

    def _make(self) -> Made:
        contexts = tls.server_context(self._folder), tls.client_context(self._folder)
        return *contexts, crl.serial((self._folder / "server-cert.pem").read_text())[0]

    def _look(self) -> Mark:
        """Return values that change when a file is replaced."""
        found = []
        for name in FILES:
            try:
                stat = (self._folder / name).stat()
                found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)


Source = ssl.SSLContext | Callable[[], ssl.SSLContext]
"""A context, or a function that returns the one for the next connection."""


def current(source: Source) -> ssl.SSLContext:
    """Return the context for a connection that begins now."""
    return source if isinstance(source, ssl.SSLContext) else source()
