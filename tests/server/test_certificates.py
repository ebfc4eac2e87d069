"""The fleet's authority: what it signs is good for exactly its hosts, to OpenSSL and in a real handshake."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from neuroflux_fl.errors import StorageError, UsageError
from server.certificates import create_certificates, renew_server_certificate

OPENSSL = shutil.which("openssl")
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def openssl(*arguments: object) -> subprocess.CompletedProcess[str]:
    if OPENSSL is None:
        pytest.skip("openssl is not installed")
    return subprocess.run(
        [OPENSSL, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=20
    )  # fmt: skip


def verify(folder: Path, *arguments: str, certificate: str = "server.crt") -> bool:
    return not openssl(
        *("verify", "-x509_strict", "-CAfile", folder / "ca.crt", "-purpose", "sslserver", *arguments),
        folder / certificate,
    ).returncode


def greet(folder: Path, name: str, trusted: Path) -> str | None:
    """Name of the TLS version that client and server agree on, both of the standard library, the client strict."""
    accept = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accept.load_cert_chain(folder / "server.crt", folder / "server.key")
    trust = ssl.create_default_context(cafile=str(trusted))
    trust.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)

    def answer() -> None:
        try:
            with accept.wrap_socket(theirs, server_side=True):
                pass
        except (ssl.SSLError, OSError):
            theirs.close()

    server = threading.Thread(target=answer)
    server.start()
    try:
        with ours, trust.wrap_socket(ours, server_hostname=name) as secured:
            return secured.version()
    finally:
        server.join()


def test_openssl_and_a_strict_client_accept_it_for_its_hosts_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    made = create_certificates(folder, ["Fleet.Example.org", "192.0.2.7", "2001:db8::1", "192.0.2.7"])

    assert made.hosts == ("fleet.example.org", "192.0.2.7", "2001:db8::1", "localhost", "127.0.0.1")
    for host in made.hosts:
        assert greet(folder, host, folder / "ca.crt") == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        greet(folder, "other.example.org", folder / "ca.crt")
    for name in ("fleet.example.org", "localhost"):
        assert verify(folder, "-verify_hostname", name)
    for address in ("192.0.2.7", "2001:db8::1", "127.0.0.1"):
        assert verify(folder, "-verify_ip", address)
    assert not verify(folder, "-verify_hostname", "other.example.org")


def test_another_authority_proves_nothing(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    create_certificates(ours, ["localhost"])
    create_certificates(other, ["localhost"])

    with pytest.raises(ssl.SSLCertVerificationError):
        greet(ours, "localhost", other / "ca.crt")


def test_the_server_key_cannot_sign_certificates(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    create_certificates(folder, ["localhost"])
    request, forged, extensions = tmp_path / "csr", tmp_path / "forged.crt", tmp_path / "ext"
    extensions.write_text("subjectAltName=DNS:localhost\n")
    subject = ("-subj", "/CN=forged", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    assert openssl("req", "-new", *subject, "-keyout", tmp_path / "k", "-out", request).returncode == 0
    signed = openssl(
        *("x509", "-req", "-in", request, "-CA", folder / "server.crt", "-CAkey", folder / "server.key"),
        *("-set_serial", "1", "-extfile", extensions, "-out", forged),
    )

    assert signed.returncode == 0, signed.stderr
    assert not verify(folder, "-untrusted", str(folder / "server.crt"), certificate=str(forged))


def test_keys_are_private_from_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "certs"
    before = os.umask(0)
    try:
        create_certificates(folder, ["localhost"])
    finally:
        os.umask(before)

    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        "ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600,
    }  # fmt: skip


def test_they_are_good_for_ten_years_and_for_the_days_asked(tmp_path: Path) -> None:
    made = create_certificates(tmp_path / "certs", ["localhost"], 30, now=NOW)

    assert made.authority_expires_at == NOW + timedelta(days=3650)
    assert made.server_expires_at == NOW + timedelta(days=30)
    shown = openssl("x509", "-noout", "-enddate", "-in", tmp_path / "certs" / "server.crt").stdout
    assert shown == "notAfter=Feb  1 03:04:05 2030 GMT\n"


def test_renewal_keeps_the_authority_and_the_hosts_and_changes_the_key(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    create_certificates(folder, ["fleet.example.org"])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    renewed = renew_server_certificate(folder, [], 7)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}

    assert renewed.hosts == ("fleet.example.org", "localhost", "127.0.0.1")
    assert {name for name in before if before[name] != after[name]} == {"server.crt", "server.key"}
    assert before.keys() == after.keys()
    assert mode(folder / "server.key") == 0o600
    # A device that knows the old authority needs nothing new.
    assert greet(folder, "fleet.example.org", folder / "ca.crt") == "TLSv1.3"

    assert renew_server_certificate(folder, ["192.0.2.9"]).hosts == ("192.0.2.9", "localhost", "127.0.0.1")


@pytest.mark.parametrize(
    "host",
    [
        "", "fleet.example.org:8443", "https://fleet.example.org", "10.0.0.300", "10.0.0", "-a.example.org", "a..b",
        "fleet example", "fleet_1", "*.example.org", "flöte.example.org", "a" * 64, "0.0.0.0", "::", "fe80::1%eth0",
        "name.", "a\n",
    ],
)  # fmt: skip
def test_bad_hosts_are_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="Host"):
        create_certificates(tmp_path / "certs", ["fine.example.org", host])
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_bad_days_are_refused(tmp_path: Path, days: int) -> None:
    with pytest.raises(UsageError, match="1 to 3650"):
        create_certificates(tmp_path / "certs", ["localhost"], days)
    assert not (tmp_path / "certs").exists()


def test_an_authority_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    create_certificates(folder, ["localhost"])
    (folder / "ca.key").rename(tmp_path / "safe.key")  # As it should be: kept elsewhere.
    before = (folder / "ca.crt").read_bytes()

    with pytest.raises(StorageError, match="already has an authority"):
        create_certificates(folder, ["localhost"])
    with pytest.raises(StorageError, match=r"ca\.key cannot be read"):
        renew_server_certificate(folder, [])
    assert (folder / "ca.crt").read_bytes() == before


def test_keys_are_not_mixed_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()

    with pytest.raises(StorageError, match="not empty"):
        create_certificates(tmp_path, ["localhost"])
    with pytest.raises(StorageError, match="cannot be made"):
        create_certificates(tmp_path / "thesis.tex", ["localhost"])
    with pytest.raises(StorageError, match="no authority"):
        renew_server_certificate(tmp_path, [])


def test_an_expired_authority_signs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    create_certificates(folder, ["localhost"], now=NOW)
    before = (folder / "server.crt").read_bytes()

    with pytest.raises(StorageError, match="expired on 2039-12-31"):
        renew_server_certificate(folder, [], now=NOW + timedelta(days=3650))
    with pytest.raises(UsageError, match="at most 100"):
        renew_server_certificate(folder, [], 101, now=NOW + timedelta(days=3550))
    assert (folder / "server.crt").read_bytes() == before


def test_a_damaged_or_readable_authority_is_told(tmp_path: Path) -> None:
    folder, other = tmp_path / "certs", tmp_path / "other"
    create_certificates(folder, ["localhost"])
    create_certificates(other, ["localhost"])
    key = folder / "ca.key"

    key.chmod(0o640)
    with pytest.raises(StorageError, match=r"read by others \(mode 0640\)"):
        renew_server_certificate(folder, [])
    key.chmod(0o600)
    key.write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(StorageError, match="does not belong"):
        renew_server_certificate(folder, [])
    key.write_text("secret words")
    with pytest.raises(StorageError, match="not a private key") as told:
        renew_server_certificate(folder, [])
    assert "secret words" not in str(told.value)
    (folder / "ca.crt").write_text("nothing")
    with pytest.raises(StorageError, match="not a certificate"):
        renew_server_certificate(folder, [])
