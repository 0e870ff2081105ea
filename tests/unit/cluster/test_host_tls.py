"""Certificates: what stands in them."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from veery.errors import Refused
from veery.host import tls

EPOCH = 1_795_430_400.0


def test_a_node_certificate_says_who_and_where() -> None:
    ca = tls.make_ca("lab", epoch=EPOCH)
    request = tls.make_request("somebody else")
    cert = x509.load_pem_x509_certificate(
        tls.sign(ca, request.cert, name="test1", addresses=["172.16.31.1", "fd00::1"], epoch=EPOCH).encode()
    )
    cert.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.cert.encode()))
    assert cert.subject.rfc4514_string() == "CN=test1"
    places = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert places.get_values_for_type(x509.DNSName) == ["test1", "localhost"]
    assert places.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(each) for each in ("172.16.31.1", "fd00::1", "127.0.0.1")
    ]
    usage = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    now = datetime.datetime.fromtimestamp(EPOCH, datetime.UTC)
    assert cert.not_valid_before_utc == now - datetime.timedelta(hours=1)
    assert cert.not_valid_after_utc > now + datetime.timedelta(days=366)


def test_only_a_request_signed_by_its_own_key_is_signed() -> None:
    ca = tls.make_ca("lab", epoch=EPOCH)
    with pytest.raises(Refused, match="unreadable"):
        tls.sign(ca, "garbage", name="test1", addresses=[], epoch=EPOCH)
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test1")])
    other = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    with pytest.raises(Refused, match="not signed by its own EC key"):
        tls.sign(ca, other.public_bytes(serialization.Encoding.PEM).decode(), name="test1", addresses=[], epoch=EPOCH)


def test_a_fingerprint_is_of_the_certificate_not_of_its_text() -> None:
    cert = tls.make_ca("lab", epoch=EPOCH).cert
    expected = x509.load_pem_x509_certificate(cert.encode()).fingerprint(hashes.SHA256()).hex()
    assert tls.fingerprint(cert) == tls.fingerprint(cert + "\n\n") == expected
    with pytest.raises(Refused, match="not a PEM certificate"):
        tls.fingerprint("hello")


def test_unfit_folders_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="unusable") as refused:
        tls.client_context(tmp_path)
    assert "veery init" in refused.value.hint
    ca, request = tls.make_ca("lab", epoch=EPOCH), tls.make_request("test1")
    tls.write_folder(tmp_path / "tls", ca=ca.cert, node=tls.KeyPair(ca.cert, request.key))  # a key of another
    with pytest.raises(Refused, match="unusable"):
        tls.server_context(tmp_path / "tls")
    with pytest.raises(Refused, match="unreadable"):
        tls.pinned_context("not a certificate")


def test_nobody_has_no_name() -> None:
    assert tls.peer_name(None) == ""
