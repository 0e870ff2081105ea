"""Certificates that are worth nothing any more, as a file that etcd reads at each new connection.

etcd compares serial numbers and nothing else (pkg/transport/listener_tls.go, checkCRL): neither who signed the list nor
how old it is. So each node signs its own, with its own key."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path

from veery.host.files import write_atomic

FILE = "revoked.pem"  # in the folder of certificates
DAYS = 3653  # nobody looks at it


def serial(cert: str) -> tuple[str, float]:
    """The serial number (hex) of a PEM certificate, and when it ends (seconds of the epoch)."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(cert.encode())
    return f"{found.serial_number:x}", found.not_valid_after_utc.timestamp()


def write(folder: Path, serials: Iterable[str], *, epoch: float) -> None:
    """Write the list into `folder`, where the node's certificate and key are. Raises OSError."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    own = x509.load_pem_x509_certificate((folder / "server-cert.pem").read_bytes())
    key = serialization.load_pem_private_key((folder / "server-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.fromtimestamp(epoch, datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(own.subject)
        .last_update(now)
        .next_update(now + datetime.timedelta(days=DAYS))
    )
    for each in sorted(serials):
        one = x509.RevokedCertificateBuilder().serial_number(int(each, 16)).revocation_date(now).build()
        builder = builder.add_revoked_certificate(one)
    data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    write_atomic(folder / FILE, data.decode(), mode=0o644, sync=True)


def ensure(folder: Path, *, epoch: float) -> None:
    """Write an empty list where there is none: without the file etcd lets nobody in. Raises OSError."""
    if not (folder / FILE).exists():
        write(folder, (), epoch=epoch)
