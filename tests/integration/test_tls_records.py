"""The ciphers of a move's stream in GnuTLS itself, the library that QEMU uses: which one two QEMUs agree on, and which
one changes its keys by itself after so many records."""

from __future__ import annotations

import ctypes
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from veery.host import tls
from veery.hypervisor.qemu.migration import cipher, priority

LIBRARY = "libgnutls.so.30"
SERVER, CLIENT = 1, 2  # gnutls/gnutls.h
CREDENTIALS_CERTIFICATE, PEM, KEY_UPDATE, HOOK_POST, OUTGOING = 1, 1, 24, 1, 0
AGAIN = -28
NAMES = {10: "AES-128-GCM", 23: "ChaCha20-Poly1305"}  # gnutls_cipher_algorithm_t
LIMIT = 1 << 24
"""Records after which GnuTLS changes the keys of AES-GCM: some 32 GiB of a move."""
ROUND = 8

OLD, NEW = (10, 0), (10, 1)
Hook = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)


class Pair:
    """A client and a server that have shaken hands, by the priorities of QEMUs of two versions."""

    def __init__(self, folder: Path, mine: tuple[int, int], theirs: tuple[int, int]) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._wires = socket.socketpair()
        self._hook = Hook(self._heard)
        self.key_updates = 0
        ends = ((CLIENT, mine, "client"), (SERVER, theirs, "server"))
        self._sessions = [
            self._session(kind, version, folder, side, wire)
            for (kind, version, side), wire in zip(ends, self._wires, strict=True)
        ]
        with ThreadPoolExecutor(2) as pool:
            for code in pool.map(self._library.gnutls_handshake, self._sessions):
                assert code == 0, f"GnuTLS: {code}"
        self._library.gnutls_handshake_set_hook_function(self._sessions[0], KEY_UPDATE, HOOK_POST, self._hook)

    def _heard(self, session: int, kind: int, post: int, incoming: int, message: int) -> int:
        self.key_updates += incoming == OUTGOING
        return 0

    def _session(
        self, kind: int, version: tuple[int, int], folder: Path, side: str, wire: socket.socket
    ) -> ctypes.c_void_p:
        session, credentials, wrong = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_char_p()
        call = self._call
        call("gnutls_init", ctypes.byref(session), ctypes.c_uint(kind))
        call("gnutls_certificate_allocate_credentials", ctypes.byref(credentials))
        cert, key = (str(folder / f"{side}-{what}.pem").encode() for what in ("cert", "key"))
        call("gnutls_certificate_set_x509_key_file", credentials, cert, key, PEM)
        call("gnutls_credentials_set", session, CREDENTIALS_CERTIFICATE, credentials)
        call("gnutls_priority_set_direct", session, priority(version).encode(), ctypes.byref(wrong))
        self._library.gnutls_transport_set_int2(session, wire.fileno(), wire.fileno())
        return session

    def _call(self, name: str, *arguments: object) -> int:
        code: int = getattr(self._library, name)(*arguments)
        assert code >= 0, f"{name}: {code}"
        return code

    @property
    def cipher(self) -> str:
        """What they agreed on."""
        return NAMES[self._call("gnutls_cipher_get", self._sessions[0])]

    def at(self, record: int) -> None:
        """Go on as if so many records had gone from the client to the server."""
        number = record.to_bytes(8, "big")
        self._call("gnutls_record_set_state", self._sessions[0], 0, number)
        self._call("gnutls_record_set_state", self._sessions[1], 1, number)

    def send(self, records: int) -> None:
        """Send so many, each read by the other end."""
        buffer = ctypes.create_string_buffer(64)
        for _ in range(records):
            assert self._call("gnutls_record_send", self._sessions[0], b"page", 4) == 4
            while (got := self._library.gnutls_record_recv(self._sessions[1], buffer, 64)) == AGAIN:
                pass  # what came was no page but new keys
            assert got == 4, f"GnuTLS: {got}"

    def close(self) -> None:
        for session in self._sessions:
            self._library.gnutls_deinit(session)
        for wire in self._wires:
            wire.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node's certificates."""
    ca, request = tls.make_ca("lab", epoch=time.time()), tls.make_request("test1")
    cert = tls.sign(ca, request.cert, name="test1", addresses=["127.0.0.1"], epoch=time.time())
    tls.write_folder(tmp_path / "tls", ca=ca.cert, node=tls.KeyPair(cert, request.key))
    return tmp_path / "tls"


@pytest.fixture
def pairs(folder: Path) -> Iterator[list[Pair]]:
    """All four ways in which an older and a newer QEMU meet."""
    made = [Pair(folder, mine, theirs) for mine in (OLD, NEW) for theirs in (OLD, NEW)]
    yield made
    for pair in made:
        pair.close()


def test_two_qemus_agree_on_the_cipher_that_is_told(pairs: list[Pair]) -> None:
    told = [cipher(mine, f"{theirs[0]}.{theirs[1]}") for mine in (OLD, NEW) for theirs in (OLD, NEW)]
    assert [pair.cipher for pair in pairs] == told
    assert told == ["ChaCha20-Poly1305"] * 3 + ["AES-128-GCM"]


def test_only_the_cipher_of_two_newer_qemus_changes_its_keys(pairs: list[Pair]) -> None:
    """At the limit, far beyond it, and after 2^32 records (8 TiB)."""
    for pair in pairs:
        for record in (LIMIT, 2 * LIMIT, 1 << 32):
            pair.at(record - ROUND // 2)
            pair.send(ROUND)
        assert (pair.key_updates > 0) is (pair.cipher == "AES-128-GCM"), pair.cipher
