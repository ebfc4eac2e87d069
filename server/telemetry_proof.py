"""Who may report: a device proves by its node key that it is the one that was enrolled."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import ssh

from neuroflux_fl.errors import StorageError
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.telemetry import PROOF_TEXT
from server.device_registry import Device, read_registry

REASONS = ("unknown_key", "revoked", "bad_proof", "no_proof", "too_many")
LONGEST_NAME = 64
_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}


class StreamRefusedError(Exception):
    """A stream that is not let in; ``reason`` is one of ``REASONS``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a stream comes from."""

    name: str
    public_key: str
    """Empty where none was asked for."""


class Door(Protocol):
    """Decides who may report."""

    asks_for_proof: bool

    def admit(self, proof: pb.Proof, nonce: bytes) -> Caller:
        """Who has answered the challenge; raises StreamRefusedError where the proof is not good."""

    def is_welcome(self, caller: Caller) -> bool:
        """Whether a caller who was admitted may go on."""

    def knows(self, name: str) -> bool:
        """Whether a device of this name may report at all."""


class EnrolledOnly:
    """Devices of a registry that are not revoked; the file is read again whenever it changes."""

    asks_for_proof = True

    def __init__(self, registry: Path, note: Callable[[str], None]) -> None:
        """Nothing is read yet.

        Args:
            registry: ``devices.json``; there need be none.
            note: told of a registry that cannot be read, and, with an empty text, of one that can again. Meanwhile the
                one before it holds on.
        """
        self._registry = registry
        self._note = note
        self._seen: tuple[int, int, int] | None = None
        self._by_key: dict[str, Device] = {}
        self._by_name: dict[str, Device] = {}

    def admit(self, proof: pb.Proof, nonce: bytes) -> Caller:
        """Check the signature of the nonce by the key that the proof names.

        Raises:
            StreamRefusedError: the key is not enrolled or was revoked, or the signature is not its own.
        """
        self._refresh()
        if not proof.public_key:
            raise StreamRefusedError("no_proof", "Only enrolled devices may report: a proof by the node key is needed.")
        line = " ".join(proof.public_key.split()[:2])
        device = self._by_key.get(line)
        if device is None:
            raise StreamRefusedError("unknown_key", "This key is not enrolled here.")
        if not _is_signed(device.public_key, proof.signature, PROOF_TEXT + nonce):
            raise StreamRefusedError("bad_proof", "The signature is not that of this key over this stream's challenge.")
        if device.revoked_at is not None:
            raise StreamRefusedError("revoked", f"Device '{device.name}' was revoked.")
        return Caller(device.name, device.public_key)

    def is_welcome(self, caller: Caller) -> bool:
        """Whether the registry still has the caller's key under the caller's name, not revoked."""
        self._refresh()
        device = self._by_name.get(caller.name)
        return device is not None and device.public_key == caller.public_key

    def knows(self, name: str) -> bool:
        """Whether a device of this name is enrolled and not revoked."""
        self._refresh()
        return name in self._by_name

    def _refresh(self) -> None:
        try:
            status = os.stat(self._registry)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        except FileNotFoundError:
            seen = (0, 0, 0)
        except OSError:
            return  # the next look may do
        if seen == self._seen:
            return
        self._seen = seen
        try:
            devices = read_registry(self._registry).values()
        except StorageError as error:
            self._note(f"{error} Until then the devices known before it may report.")
            return
        self._note("")
        self._by_key = {device.public_key: device for device in devices}
        self._by_name = {device.name: device for device in devices if device.revoked_at is None}


class Everyone:
    """No proof, for a server without TLS: a device is whoever it says it is."""

    asks_for_proof = False

    def admit(self, proof: pb.Proof, nonce: bytes) -> Caller:
        """The name that the device gives itself, made printable and not too long."""
        name = "".join(character if character.isprintable() else "?" for character in proof.name[:LONGEST_NAME])
        return Caller(name.strip() or "unnamed", "")

    def is_welcome(self, caller: Caller) -> bool:
        """Always."""
        return True

    def knows(self, name: str) -> bool:
        """Always."""
        return True


def _is_signed(public_key: str, signature: bytes, text: bytes) -> bool:
    try:
        key = ssh.load_ssh_public_key(public_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, text, ec.ECDSA(_HASHES[key.curve.name]()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, KeyError):
        return False  # a forged signature; or a registry that someone has edited
    return True
