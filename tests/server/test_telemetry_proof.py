"""Who is let in: real keys of every kind that Flower takes, a real registry file, and those who try without."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from clients.telemetry_proof import prove
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.telemetry import PROOF_TEXT
from server.device_registry import Device, write_registry
from server.node_keys import fingerprint, private_key_file, public_key_line
from server.telemetry_proof import Caller, EnrolledOnly, Everyone, StreamRefusedError

NONCE = b"n" * 32


def enrolled(name: str, key: ec.EllipticCurvePrivateKey, node_id: int = 1) -> Device:
    public = key.public_key()
    return Device(
        name=name, node_id=node_id, fingerprint=fingerprint(public), public_key=public_key_line(public),
        enrolled_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def proof(key: ec.EllipticCurvePrivateKey, folder: Path, nonce: bytes = NONCE) -> pb.Proof:
    """As a device makes it."""
    path = folder / "node.key"
    path.write_bytes(private_key_file(key))
    line, signature = prove(path, nonce)
    return pb.Proof(telemetry_version=1, public_key=line, signature=signature, session=b"s")


class Registry:
    """A registry file, and the door behind it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "devices.json"
        self.devices: dict[str, Device] = {}
        self.notes: list[str] = []
        self.door = EnrolledOnly(self.path, self.notes.append)

    def write(self, *devices: Device) -> None:
        self.devices |= {device.name: device for device in devices}
        write_registry(self.path, self.devices)

    def refusal(self, made: pb.Proof, nonce: bytes = NONCE) -> str:
        with pytest.raises(StreamRefusedError) as raised:
            self.door.admit(made, nonce)
        return raised.value.reason


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_an_enrolled_key_is_let_in_by_its_name(registry: Registry, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    registry.write(enrolled("kitchen", key))

    made = proof(key, tmp_path)
    made.name = "garden"
    made.public_key += " a comment"
    caller = registry.door.admit(made, NONCE)

    assert caller.name == "kitchen"
    assert registry.door.is_welcome(caller)


def test_everyone_else_is_refused_with_a_reason(registry: Registry, tmp_path: Path) -> None:
    key, stranger = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    good = proof(key, tmp_path)
    assert registry.refusal(good) == "unknown_key"  # there is no registry yet

    registry.write(enrolled("kitchen", key))
    assert registry.refusal(pb.Proof(telemetry_version=1, session=b"s")) == "no_proof"
    assert registry.refusal(proof(stranger, tmp_path)) == "unknown_key"
    assert registry.refusal(pb.Proof(public_key="ssh-rsa AAAA", signature=b"x")) == "unknown_key"
    assert registry.refusal(good, b"m" * 32) == "bad_proof"  # what was read off another stream
    assert registry.refusal(pb.Proof(public_key=good.public_key)) == "bad_proof"
    assert (
        registry.refusal(pb.Proof(public_key=good.public_key, signature=b"\x30\x06\x02\x01\x00\x02\x01\x00"))
        == "bad_proof"
    )
    impostor = proof(stranger, tmp_path)
    impostor.public_key = good.public_key
    assert registry.refusal(impostor) == "bad_proof"
    weak = key.sign(PROOF_TEXT + NONCE, ec.ECDSA(hashes.SHA256()))  # not the hash that belongs to the curve
    assert registry.refusal(pb.Proof(public_key=good.public_key, signature=weak)) == "bad_proof"
    other_purpose = key.sign(NONCE, ec.ECDSA(hashes.SHA384()))
    assert registry.refusal(pb.Proof(public_key=good.public_key, signature=other_purpose)) == "bad_proof"
    registry.door.admit(good, NONCE)


def test_who_is_revoked_while_connected_is_not_welcome_any_more(registry: Registry, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    device = enrolled("kitchen", key)
    registry.write(device)
    made = proof(key, tmp_path)
    caller = registry.door.admit(made, NONCE)

    registry.write(replace(device, revoked_at="2026-01-02T00:00:00+00:00"))

    assert not registry.door.is_welcome(caller)
    assert not registry.door.knows("kitchen")
    assert registry.refusal(made) == "revoked"


def test_a_name_that_has_another_key_now_is_not_the_same_device(registry: Registry, tmp_path: Path) -> None:
    before, after = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    registry.write(enrolled("kitchen", before))
    caller = registry.door.admit(proof(before, tmp_path), NONCE)

    registry.write(enrolled("kitchen", after))

    assert registry.door.knows("kitchen")
    assert not registry.door.is_welcome(caller)


def test_a_damaged_registry_is_told_of_and_the_one_before_it_holds(registry: Registry, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    registry.write(enrolled("kitchen", key))
    registry.door.admit(proof(key, tmp_path), NONCE)

    registry.path.write_text("{")
    assert registry.door.knows("kitchen")
    assert "is damaged" in registry.notes[-1]

    registry.write()
    assert registry.door.knows("kitchen")
    assert registry.notes[-1] == ""


def test_a_registry_that_changed_within_the_same_second_is_read_again(registry: Registry) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    registry.write(enrolled("one", keys[0]))
    assert registry.door.knows("one")
    before = registry.path.stat()

    registry.write(enrolled("two", keys[1], node_id=2))
    os.utime(registry.path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert registry.door.knows("two")


def test_without_tls_a_device_is_who_it_says_it_is() -> None:
    door = Everyone()

    assert door.admit(pb.Proof(name="kitchen"), NONCE) == Caller("kitchen", "")
    assert door.admit(pb.Proof(name="a\nb\x1b[31m"), NONCE).name == "a?b?[31m"
    assert door.admit(pb.Proof(name="  "), NONCE).name == "unnamed"
    assert len(door.admit(pb.Proof(name="x" * 5000), NONCE).name) == 64
    assert door.is_welcome(Caller("anyone", ""))
