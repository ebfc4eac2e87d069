"""The device's half of the challenge, against the gateway's half."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from clients.telemetry_proof import prove
from neuroflux_fl.errors import StorageError
from neuroflux_fl.wire import telemetry_pb2 as pb
from server.device_registry import Device, write_registry
from server.node_keys import fingerprint, private_key_file, public_key_line
from server.telemetry_proof import EnrolledOnly, StreamRefusedError

NONCE = bytes(32)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: str(curve.name))
def test_the_gateway_takes_the_proof_of_every_key_that_flower_takes(curve: ec.EllipticCurve, tmp_path: Path) -> None:
    key = ec.generate_private_key(curve)
    (tmp_path / "node.key").write_bytes(private_key_file(key))
    public = key.public_key()
    device = Device(
        name="shelf", node_id=1, fingerprint=fingerprint(public), public_key=public_key_line(public), enrolled_at=""
    )
    write_registry(tmp_path / "devices.json", {"shelf": device})
    door = EnrolledOnly(tmp_path / "devices.json", lambda _: None)

    line, signature = prove(tmp_path / "node.key", NONCE)

    proof = pb.Proof(public_key=line, signature=signature)
    assert door.admit(proof, NONCE).name == "shelf"
    with pytest.raises(StreamRefusedError):
        door.admit(proof, bytes(31) + b"x")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        (b"nonsense", "is none that can be used"),
        (
            ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
            "not of the ECDSA kind",
        ),
    ],
    ids=["absent", "damaged", "ed25519"],
)
def test_a_key_of_no_use(content: bytes | None, complaint: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "node.key").write_bytes(content)

    with pytest.raises(StorageError, match=complaint):
        prove(tmp_path / "node.key", NONCE)
