"""The cluster's own certificates: a CA, a certificate for each node, and the ssl contexts that use them.

The folder STATE/tls has the file names of QEMU's tls-creds-x509 (qemu docs/system/tls.rst): ca-cert.pem,
server-cert.pem, server-key.pem, client-cert.pem, client-key.pem, dh-params.pem. A node is server and client with one
certificate; etcd, QEMU and veery's API all read the same files.

`cryptography` is imported only where a certificate is made, to save its memory in a running daemon."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veery.errors import Refused
from veery.host import crl
from veery.host.files import write_atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

DH_PARAMETERS = """\
-----BEGIN DH PARAMETERS-----
MIIBiAKCAYEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEfz9zeNVs7ZRkDW7w09N75nAI4YbRvydbmyQd62R0mkff3
7lmMsPrBhtkcrv4TCYUTknC0EwyTvEN5RPT9RFLi103TZPLiHnH1S/9croKrnJ32
nuhtK8UiNjoNq8Uhl5sN6todv5pC1cRITgq80Gv6U93vPBsg7j/VnXwl5B0rZsYu
N///////////AgEC
-----END DH PARAMETERS-----
"""
"""ffdhe3072 of RFC 7919, as PKCS #3. Without this file QEMU makes its own parameters each time it listens
(crypto/tlscreds.c; seen in 10.0): 0.2 to 2 s of every move, without use, since TLS 1.3 needs none."""

PEM_BEGIN = "-----BEGIN CERTIFICATE-----"
CA_DAYS = 3653
NODE_DAYS = 1827
BACKDATED = datetime.timedelta(hours=1)  # so that the certificate is valid for a node whose clock is behind


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    cert: str
    key: str


def make_ca(cluster: str, *, epoch: float, mark: str = "") -> KeyPair:
    """Return a new CA for `cluster`, valid for ten years from `epoch` (EC P-256). `mark` makes its name differ from an
    earlier CA's: programs could confuse two CAs of one name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = _new_key()
    name = _subject(f"veery {cluster} CA {mark}".rstrip())
    builder = (
        _builder(name, name, key.public_key(), epoch, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return KeyPair(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def make_request(name: str) -> KeyPair:
    """Return a new key, with the certificate request that node `name` sends (as `cert`)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    key = _new_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(name)).sign(key, hashes.SHA256())
    return KeyPair(_pem(request), _key_pem(key))


def sign(ca: KeyPair, request: str, *, name: str, addresses: Sequence[str], epoch: float) -> str:
    """Return the certificate (PEM) of node `name` at `addresses` for the key in `request` (PEM).

    Only the key is taken from the request. Raises Refused if the request is invalid."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        csr = x509.load_pem_x509_csr(request.encode())
    except ValueError as error:
        raise Refused(f"the certificate request of {name} is unreadable") from error
    public = csr.public_key()
    if not csr.is_signature_valid or not isinstance(public, ec.EllipticCurvePublicKey):
        raise Refused(f"the certificate request of {name} is not signed by its own EC key")
    issuer = x509.load_pem_x509_certificate(ca.cert.encode())
    signer = serialization.load_pem_private_key(ca.key.encode(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise Refused("the cluster's CA key is not an EC key")
    # 127.0.0.1: etcd's JSON gateway and the node's own daemon connect through loopback.
    places: list[x509.GeneralName] = [x509.DNSName(name), x509.DNSName("localhost")]
    places += [x509.IPAddress(ipaddress.ip_address(each)) for each in dict.fromkeys([*addresses, "127.0.0.1"])]
    builder = (
        _builder(_subject(name), issuer.subject, public, epoch, NODE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(places), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return _pem(builder.sign(signer, hashes.SHA256()))


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a certificate: its serial number (hex), its begin and end (epoch), the id of the CA that signed it
    ("" if it has none), the PEM of its public key, and its IP addresses."""

    serial: str
    begins: float
    ends: float
    issuer: str
    public: bytes
    addresses: tuple[str, ...] = ()


def facts(cert: str) -> Facts:
    """Read a PEM certificate. Raises ValueError if it is invalid."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    found = x509.load_pem_x509_certificate(cert.encode())
    try:
        issuer = found.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier or b""
    except x509.ExtensionNotFound:
        issuer = b""
    public = found.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    begins, ends = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    try:
        places = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = tuple(map(str, places.get_values_for_type(x509.IPAddress)))
    except x509.ExtensionNotFound:
        addresses = ()
    return Facts(f"{found.serial_number:x}", begins, ends, issuer.hex(), public, addresses)


def split(bundle: str) -> list[str]:
    """Return the certificates (PEM) in a bundle."""
    return [PEM_BEGIN + part for part in bundle.split(PEM_BEGIN)[1:]]


def authority_id(ca: str) -> str:
    """Return the id of a CA (PEM): its subject key identifier, in hex. Raises ValueError if it is invalid."""
    from cryptography import x509

    found = x509.load_pem_x509_certificate(ca.encode())
    return found.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def request_for(name: str, key: str) -> str:
    """Return the certificate request (PEM) of node `name` for its existing key (PEM)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    own = serialization.load_pem_private_key(key.encode(), None)
    if not isinstance(own, ec.EllipticCurvePrivateKey):
        raise Refused(f"the key of {name} is not an EC key", hint="join the node again")
    request = x509.CertificateSigningRequestBuilder().subject_name(_subject(name)).sign(own, hashes.SHA256())
    return _pem(request)


def replace_certificate(folder: Path, cert: str) -> None:
    """Replace the certificate in `folder` by a new one for the same key. Each file is replaced atomically, and matches
    the key before and after, so a reader always finds a pair, also after a crash. Raises OSError."""
    for side in ("server", "client"):
        write_atomic(folder / f"{side}-cert.pem", cert, mode=0o644, sync=True)


def write_folder(folder: Path, *, ca: str, node: KeyPair) -> None:
    """Write the node's PEM files into `folder`, with keys readable only by their owner."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(folder / "dh-params.pem", DH_PARAMETERS, mode=0o644)
    write_atomic(folder / "ca-cert.pem", ca, mode=0o644, sync=True)
    for side in ("server", "client"):
        write_atomic(folder / f"{side}-key.pem", node.key, mode=0o600, sync=True)
        write_atomic(folder / f"{side}-cert.pem", node.cert, mode=0o644, sync=True)
    crl.write(folder, (), epoch=time.time())
    (folder / crl.CA_FILE).unlink(missing_ok=True)  # it was another CA's list


def server_context(folder: Path) -> ssl.SSLContext:
    """Return the context of a listener. It requests a certificate: a caller with another CA's is rejected, a caller
    without one is accepted (`peer_name` is then ""). Raises Refused if the files are unusable."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, folder, "server")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(folder: Path) -> ssl.SSLContext:
    """Return the context of a caller: it sends this node's certificate, and checks the server's CA and address.

    Raises Refused if the files are unusable."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, folder, "client")


def pinned_context(ca: str) -> ssl.SSLContext:
    """Return the context of a joining node, which has only the CA's certificate (PEM). The server must have a
    certificate for the name or address that was called. Raises Refused if `ca` is not a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca)
    except (ssl.SSLError, ValueError) as error:
        raise Refused("the CA's certificate is unreadable") from error
    return context


def unverified_context() -> ssl.SSLContext:
    """Return a context without checks, to fetch the CA's certificate, which is then checked by its fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class Shown:
    """The certificate of a connection's peer: its common name and its serial number (hex)."""

    name: str
    serial: str


def shown(connection: ssl.SSLObject | ssl.SSLSocket | None) -> Shown | None:
    """Return the peer's certificate of the cluster's CA; None if it sent none."""
    peer: dict[str, Any] = (connection.getpeercert() or {}) if connection is not None else {}
    for part in peer.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return Shown(str(value), f"{int(peer['serialNumber'], 16):x}")
    return None


def peer_name(connection: ssl.SSLObject | ssl.SSLSocket | None) -> str:
    """Return the node of the peer's certificate (its common name); "" if it sent none."""
    found = shown(connection)
    return found.name if found else ""


def peer_addresses(connection: ssl.SSLObject | ssl.SSLSocket | None) -> tuple[str, ...]:
    """Return the IP addresses in the peer's certificate."""
    peer: dict[str, Any] = (connection.getpeercert() or {}) if connection is not None else {}
    return tuple(str(value).strip() for kind, value in peer.get("subjectAltName", ()) if kind == "IP Address")


def fingerprint(cert: str) -> str:
    """Return the SHA-256 of a PEM certificate's DER form, in hex. Raises Refused if it is not PEM."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(cert)).hexdigest()
    except ValueError as error:
        raise Refused("not a PEM certificate") from error


def _context(protocol: ssl._SSLMethod, folder: Path, side: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(folder / "ca-cert.pem")
        context.load_cert_chain(folder / f"{side}-cert.pem", folder / f"{side}-key.pem")
        if (folder / crl.CA_FILE).exists():
            context.load_verify_locations(folder / crl.CA_FILE)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except OSError as error:  # ssl.SSLError is one
        raise Refused(
            f"the certificates in {folder} are unusable: {error.strerror or error}",
            hint="veery init --help; veery join --help",
        ) from error
    return context


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _subject(name: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    """Return the key usage that QEMU requires (crypto/tlscredsx509.c): certificate signing for a CA, digital signature
    and key encipherment for the others, although an EC key never enciphers a key."""
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not ca,
        key_encipherment=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, epoch: float, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509

    begin = datetime.datetime.fromtimestamp(epoch, datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - BACKDATED)
        .not_valid_after(begin + datetime.timedelta(days=days))
    )


def _pem(thing: x509.Certificate | x509.CertificateSigningRequest) -> str:
    from cryptography.hazmat.primitives import serialization

    return thing.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
