"""Lists of revoked certificates as files: one for etcd, and one for GnuTLS and OpenSSL.

etcd reads its list at each new connection. It compares serial numbers only (pkg/transport/listener_tls.go, checkCRL):
it checks neither the list's signature nor its age. So each node signs its own list with its own key.

GnuTLS (QEMU) and OpenSSL need a list that the CA has signed and that is in force (RFC 5280, 5)."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path

from veery.host.files import write_atomic

FILE = "revoked.pem"  # in the folder of certificates
CA_FILE = "ca-crl.pem"  # the name that QEMU looks for beside ca-cert.pem (qemu docs/system/tls.rst)
BEGIN = "-----BEGIN X509 CRL-----"
LIST_DAYS = 3653  # a list is valid as long as the CA: a new one is signed at each change, not by age
BACKDATED = datetime.timedelta(hours=1)  # so that the list is valid for a node whose clock is behind


def serial(cert: str) -> tuple[str, float]:
    """Return the serial number (hex) of a PEM certificate, and its end (seconds of the epoch)."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(cert.encode())
    return f"{found.serial_number:x}", found.not_valid_after_utc.timestamp()


def write(folder: Path, serials: Iterable[str], *, epoch: float) -> None:
    """Write etcd's list into `folder`, which has the node's certificate and key. Raises OSError."""
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
        .next_update(now + datetime.timedelta(days=LIST_DAYS))
    )
    for each in sorted(serials):
        one = x509.RevokedCertificateBuilder().serial_number(int(each, 16)).revocation_date(now).build()
        builder = builder.add_revoked_certificate(one)
    data = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    write_atomic(folder / FILE, data.decode(), mode=0o644, sync=True)


def sign(ca_cert: str, ca_key: str, serials: Iterable[str], *, number: int, epoch: float) -> str:
    """Return the CA's list (PEM) of `serials`; `number` grows from one list to the next."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    issuer = x509.load_pem_x509_certificate(ca_cert.encode())
    key = serialization.load_pem_private_key(ca_key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.fromtimestamp(epoch, datetime.UTC) - BACKDATED
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now)
        .next_update(now + datetime.timedelta(days=LIST_DAYS))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    for each in sorted(serials):
        one = x509.RevokedCertificateBuilder().serial_number(int(each, 16)).revocation_date(now).build()
        builder = builder.add_revoked_certificate(one)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def listed(pem: str) -> frozenset[str]:
    """Return the serial numbers (hex) in one or more concatenated lists. Raises ValueError if there is no list."""
    from cryptography import x509

    lists = [BEGIN + part for part in pem.split(BEGIN)[1:]]
    if not lists:
        raise ValueError("no list of revoked certificates")
    return frozenset(f"{each.serial_number:x}" for one in lists for each in x509.load_pem_x509_crl(one.encode()))


def signed_by(pem: str, ca_cert: str) -> str:
    """Return the list (PEM) in `pem` that this CA has signed; "" if there is none. Raises ValueError."""
    from cryptography import x509

    public = x509.load_pem_x509_certificate(ca_cert.encode()).public_key()
    for part in pem.split(BEGIN)[1:]:
        one = x509.load_pem_x509_crl((BEGIN + part).encode())
        if one.is_signature_valid(public):  # type: ignore[arg-type]
            return BEGIN + part
    return ""


def ensure(folder: Path, *, epoch: float) -> None:
    """Write an empty list if there is none: without the file etcd accepts no connection. Raises OSError."""
    if not (folder / FILE).exists():
        write(folder, (), epoch=epoch)
