"""The fleet's own certificate authority: one root that devices trust, and the server's certificate signed by it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from neuroflux_fl.errors import StorageError, UsageError
from server.certificate_hosts import Host, certificate_hosts, parse_hosts
from server.private_files import make_private_folder, read_private, write_private, write_public

AUTHORITY_DAYS = 3650
DEFAULT_DAYS = 397
_BACKDATED = timedelta(days=1)  # Small boards start with a clock that is behind until they have reached a time server.


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetCertificates:
    """A folder with an authority and the server certificate that it signed last."""

    folder: Path
    hosts: tuple[str, ...]
    """Every name and address that the server certificate is good for."""
    authority_expires_at: datetime
    server_expires_at: datetime


@dataclass(frozen=True, slots=True)
class CertificateFolder:
    """Names inside a certificate folder; nothing is read or made here."""

    root: Path

    @property
    def authority(self) -> Path:
        """The root certificate that devices trust; no secret."""
        return self.root / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """What signs server certificates; belongs on no server that faces the network, and on no device."""
        return self.root / "ca.key"

    @property
    def server(self) -> Path:
        """The server's certificate."""
        return self.root / "server.crt"

    @property
    def server_key(self) -> Path:
        """The server's private key."""
        return self.root / "server.key"


def create_certificates(
    folder: Path, hosts: list[str], days: int = DEFAULT_DAYS, now: datetime | None = None
) -> FleetCertificates:
    """Make an authority (P-384, 10 years) and a server certificate (P-256) in a new or empty folder.

    Args:
        folder: Made with mode 0700; holds ``ca.crt``, ``ca.key``, ``server.crt`` and ``server.key``.
        hosts: Names and addresses that devices call the server by; localhost and 127.0.0.1 are added.
        days: How long the server certificate is good for.
        now: When both begin; the present, if not given.

    Raises:
        UsageError: no host, one that is neither a DNS name nor an IP address, or days outside 1 to 3650.
        StorageError: the folder holds something already or cannot be written.
    """
    now = now or _now()
    if not hosts:
        raise UsageError("A new authority needs the server's name: give --host NAME_OR_IP, once for each name.")
    names = parse_hosts(hosts)
    _check_days(days)
    files = CertificateFolder(folder)
    for path in (files.authority, files.authority_key):
        if path.exists():
            raise StorageError(
                f"Folder {folder} already has an authority ({path.name}), and devices may trust it: "
                "renew the server certificate with --renew, or choose another folder."
            )
    make_private_folder(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    authority = _authority_certificate(key, now)
    server_key, server = _server_certificate(authority, key, names, days, now)
    write_private(files.authority_key, _key_bytes(key))
    write_public(files.authority, _certificate_bytes(authority))
    write_private(files.server_key, _key_bytes(server_key))
    write_public(files.server, _certificate_bytes(server))
    return _describe(folder, authority, server)


def renew_server_certificate(
    folder: Path, hosts: list[str], days: int = DEFAULT_DAYS, now: datetime | None = None
) -> FleetCertificates:
    """Replace the server's key and certificate; the authority stays, so devices need nothing new.

    Args:
        folder: What :func:`create_certificates` filled.
        hosts: Names and addresses of the new certificate; empty keeps those of the present one.
        days: How long the new certificate is good for.
        now: When it begins; the present, if not given.

    Raises:
        UsageError: a bad host, or days outside 1 to 3650 or beyond the authority's own end.
        StorageError: the folder holds no readable authority, its key does not fit, or it has expired.
    """
    now = now or _now()
    names = parse_hosts(hosts) if hosts else None
    _check_days(days)
    files = CertificateFolder(folder)
    if not files.authority.exists():
        raise StorageError(f"Folder {folder} has no authority (ca.crt): make one without --renew.")
    authority = _read_certificate(files.authority)
    key = _read_authority_key(files.authority_key, authority)
    end = authority.not_valid_after_utc
    if end <= now:
        raise StorageError(
            f"The authority in {folder} expired on {end:%Y-%m-%d}: make a new one in another folder and hand its "
            "ca.crt to every device."
        )
    if now + timedelta(days=days) > end:
        raise UsageError(
            f"Days {days} is beyond the authority's own end on {end:%Y-%m-%d}: at most {(end - now).days}."
        )
    if names is None:
        names = certificate_hosts(_read_certificate(files.server))
        if not names:
            raise UsageError(f"Certificate {files.server} names no host: give --host NAME_OR_IP.")
    server_key, server = _server_certificate(authority, key, names, days, now)
    write_private(files.server_key, _key_bytes(server_key))
    write_public(files.server, _certificate_bytes(server))
    return _describe(folder, authority, server)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)  # Certificates know whole seconds only.


def _check_days(days: int) -> None:
    if not 1 <= days <= AUTHORITY_DAYS:
        raise UsageError(f"Days {days} is out of range: choose 1 to {AUTHORITY_DAYS}.")


def _authority_certificate(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    # Two authorities of one name would confuse whoever looks for the right one.
    name = _subject(f"Fleet authority {identifier.digest.hex()[:16]}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, names: list[Host], days: int, now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_subject("Fleet server"))  # Its names are alternative names: a common name holds 64 letters.
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - _BACKDATED, authority.not_valid_before_utc))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    return key, certificate


def _subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "NeuroFlux-FL"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_bytes(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise StorageError(f"Certificate {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise StorageError(f"File {path} is not a certificate in PEM form: restore it from a copy.") from error


def _read_authority_key(path: Path, authority: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    content = read_private(path)
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        # Not chained: what a parser says about a key is nobody's business.
        raise StorageError(f"File {path} is not a private key in PEM form: restore it from a copy.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise StorageError(f"Key {path} does not belong to the certificate beside it: restore the pair from a copy.")
    return key


def _describe(folder: Path, authority: x509.Certificate, server: x509.Certificate) -> FleetCertificates:
    return FleetCertificates(
        folder=folder,
        hosts=tuple(str(name.value) for name in certificate_hosts(server)),
        authority_expires_at=authority.not_valid_after_utc,
        server_expires_at=server.not_valid_after_utc,
    )
