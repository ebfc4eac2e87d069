"""A device proves to the telemetry gateway that it holds its node key; the key itself never travels."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from neuroflux_fl.errors import StorageError
from neuroflux_fl.wire.telemetry import PROOF_TEXT

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512(),
}  # fmt: skip


def prove(key_file: Path, nonce: bytes) -> tuple[str, bytes]:
    """The public key as in a ``.pub`` file, and the signature over the gateway's nonce.

    Raises:
        StorageError: the key cannot be read, or is none of ECDSA.
    """
    try:
        key = serialization.load_ssh_private_key(key_file.read_bytes(), password=None)
    except OSError as error:
        raise StorageError(f"Key {key_file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise StorageError(f"Key {key_file} is none that can be used: enroll the device again.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise StorageError(f"Key {key_file} is not of the ECDSA kind that Flower takes: enroll the device again.")
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return line.decode("ascii"), key.sign(PROOF_TEXT + nonce, ec.ECDSA(_HASHES[key.curve.name]))
