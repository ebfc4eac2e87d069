"""The names and addresses by which devices call a server, as its certificate holds them."""

from __future__ import annotations

import ipaddress
import re

from cryptography import x509

from neuroflux_fl.errors import UsageError

Host = x509.DNSName | x509.IPAddress

_ALWAYS = ("localhost", "127.0.0.1")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def parse_hosts(hosts: list[str]) -> list[Host]:
    """The hosts and the loopback, each once, in the order given.

    Raises:
        UsageError: one is neither a DNS name nor an IP address that another machine could call.
    """
    return list(dict.fromkeys(_host_name(host.lower()) for host in (*hosts, *_ALWAYS)))


def certificate_hosts(certificate: x509.Certificate) -> list[Host]:
    """The hosts that a certificate is good for, in its own order; none where it does not say."""
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            return [name for name in extension.value if isinstance(name, x509.DNSName | x509.IPAddress)]
    return []


def _host_name(host: str) -> Host:
    labels = host.split(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # A last label of digits only is a mistyped address, never a name.
        if len(host) > 253 or labels[-1].isdigit() or not all(_LABEL.fullmatch(label) for label in labels):
            raise UsageError(
                f"Host {host!r} is neither a DNS name nor an IP address: write for example fleet.example.org or "
                "192.0.2.10, without a port; international names in their xn-- form."
            ) from None
        return x509.DNSName(host)
    if address.is_unspecified or "%" in host:
        raise UsageError(f"Host {host!r} means something on this machine only: give the address that devices call.")
    return x509.IPAddress(address)
