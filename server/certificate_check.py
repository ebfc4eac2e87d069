"""Whether a certificate folder will do for a server, found out before anything is started."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from neuroflux_fl.errors import ConfigError
from server.superlink import Endpoint

_SOON = timedelta(days=21)


def check_certificates(endpoint: Endpoint, now: datetime | None = None) -> str | None:
    """Check names, dates, key and authority of an endpoint's certificates; also returns a warning if one is due.

    Raises:
        ConfigError: they do not fit together, have expired, or do not name the host that this machine connects to.
        StorageError: a file is missing.
    """
    if endpoint.certificates is None:
        return None
    now = now or datetime.now(UTC)
    paths = {name: endpoint.certificate(name) for name in ("ca.crt", "server.crt", "server.key")}
    renew = f"neuroflux-fl certs {endpoint.certificates} --renew"
    try:
        # Checks the key against the certificate; the server's own chain is checked below.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(paths["server.crt"], paths["server.key"])
        with open(paths["ca.crt"], "rb") as ca_file, open(paths["server.crt"], "rb") as server_file:
            authority = x509.load_pem_x509_certificate(ca_file.read())
            server = x509.load_pem_x509_certificate(server_file.read())
        server.verify_directly_issued_by(authority)
    except (ssl.SSLError, ValueError, TypeError, InvalidSignature, OSError) as error:
        raise ConfigError(
            f"Certificates in {endpoint.certificates} do not fit together ({type(error).__name__}): restore them, or "
            f"run {renew}."
        ) from error
    end = server.not_valid_after_utc
    if end <= now:
        raise ConfigError(f"Server certificate in {endpoint.certificates} expired on {end:%Y-%m-%d}: run {renew}.")
    names = _names(server)
    if endpoint.local_host.lower() not in names:
        raise ConfigError(
            f"Server certificate in {endpoint.certificates} is for {', '.join(sorted(names)) or 'no host'}, not for "
            f"{endpoint.local_host}: run {renew} --host {endpoint.local_host}, once more --host for each other name."
        )
    if end <= now + _SOON:
        return f"The server certificate expires on {end:%Y-%m-%d}: run {renew}, then start the server again."
    return None


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value).lower() for name in names if isinstance(name, (x509.DNSName, x509.IPAddress))}
