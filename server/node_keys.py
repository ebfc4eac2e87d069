"""The key pair by which a device proves who it is, in the forms that OpenSSH and Flower read."""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import ssh

from neuroflux_fl.errors import UsageError

KEYGEN = "ssh-keygen -t ecdsa -b 384 -N '' -f node.key"
"""What makes a fitting pair on a device."""
_LARGEST_FILE_BYTES = 16 * 1024
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def make_private_key() -> ec.EllipticCurvePrivateKey:
    """A new key on P-384, as ``ssh-keygen -t ecdsa -b 384`` makes it."""
    return ec.generate_private_key(ec.SECP384R1())


def private_key_file(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The content of an OpenSSH private key file without a passphrase: a device starts with nobody beside it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_key_line(key: ec.EllipticCurvePublicKey) -> str:
    """One line as in a ``.pub`` file, without a comment."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """As ``ssh-keygen -l`` prints it."""
    digest = ssh.ssh_key_fingerprint(key, hashes.SHA256())
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """The key in a ``.pub`` file.

    Raises:
        UsageError: there is none, or one of a kind that Flower does not take. The message quotes nothing of the file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"Public key {path} cannot be read: {error.strerror}.") from error
    if b"PRIVATE KEY" in content:
        raise UsageError(f"File {path} holds a private key, which must not leave the device: give its .pub file.")
    try:
        key = ssh.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"File {path} is no public key in SSH form: make one with {KEYGEN}.") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise UsageError(f"Public key {path} is not of the ECDSA kind that Flower takes: make one with {KEYGEN}.")
    return key
