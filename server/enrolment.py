"""Letting devices into a fleet and shutting them out: the server's list of keys, and the bundle for the device."""

from __future__ import annotations

import re
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from neuroflux_fl.errors import ConfigError, FleetError, NeurofluxError, StorageError, UsageError
from server.device_registry import Device, read_registry, registry_lock, write_registry
from server.flower_cli import NODE_NOT_FOUND, PUBLIC_KEY_IN_USE, FlowerRefusal, ask_flower
from server.node_keys import (
    KEYGEN,
    fingerprint,
    make_private_key,
    private_key_file,
    public_key_line,
    read_public_key,
)
from server.private_files import make_private_folder, write_private, write_public
from server.state_folder import CONNECTION, ServerState

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_STATUS = {"registered": "never-connected", "online": "online", "offline": "offline"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """A device and what the server knows of it."""

    device: Device
    status: str
    """``online``, ``offline``, ``never-connected``, ``revoked``, ``unknown`` (the server has forgotten it)."""


def enrol(state: ServerState, name: str, bundle: Path, public_key_file: Path | None = None) -> Device:
    """Register a device with the running server and write what it needs to join into a new folder (mode 0700).

    Args:
        state: Of the running server.
        name: Of the device, for people.
        bundle: Gets ``ca.crt`` and ``name``, and without ``public_key_file`` also ``node.key`` (SSH format, mode 0600)
            and ``node.key.pub``.
        public_key_file: The public half of a key that the device made itself; its private half stays there.

    Raises:
        UsageError: a bad or taken name, or a key that is none, of an unfit kind, or in use.
        ConfigError: the server runs without TLS.
        FleetError: there is no server, or it does not answer, or it refuses.
        StorageError: a file cannot be read or written. Nothing is registered then, and no bundle left.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"Name {name!r} is not allowed: up to 63 letters, digits, dots, dashes and underscores, "
            "the first a letter or digit."
        )
    public_key = None if public_key_file is None else read_public_key(public_key_file)
    root_certificate = _root_certificate(state)
    with registry_lock(state.devices_file):
        devices = read_registry(state.devices_file)
        if name in devices and devices[name].revoked_at is None:
            raise UsageError(f"Name {name!r} is taken since {devices[name].enrolled_at}: choose another, or revoke it.")
        if public_key is not None:
            _check_unused(public_key, devices)
        with _new_bundle(bundle):
            write_public(bundle / "ca.crt", root_certificate)
            write_public(bundle / "name", f"{name}\n".encode())
            if public_key is None:
                public_key = _write_key_pair(bundle)
            device = Device(
                name=name,
                node_id=_register(state, public_key),
                fingerprint=fingerprint(public_key),
                public_key=public_key_line(public_key),
                enrolled_at=_now(),
            )
            try:
                # A revoked device of that name makes room; the newest comes last.
                devices.pop(name, None)
                write_registry(state.devices_file, devices | {name: device})
            except BaseException:
                with suppress(NeurofluxError):  # The first error is the one to tell.
                    _unregister(state, device)
                raise
    return device


def revoke(state: ServerState, name: str) -> Device:
    """Shut a device out: from now on the server answers none of its requests. Its key can never be enrolled again.

    Raises:
        UsageError: there is no such device, or it was revoked before.
        FleetError: there is no server, or it does not answer, or it refuses.
        StorageError: the list of devices cannot be read or written.
    """
    with registry_lock(state.devices_file):
        devices = read_registry(state.devices_file)
        device = devices.get(name)
        if device is None:
            close = get_close_matches(name, devices, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else "neuroflux-fl devices lists those that there are."
            raise UsageError(f"Device {name!r} was never enrolled: {remedy}")
        if device.revoked_at is not None:
            raise UsageError(f"Device {name!r} was revoked on {device.revoked_at}: it is shut out already.")
        _unregister(state, device)
        device = replace(device, revoked_at=_now())
        write_registry(state.devices_file, devices | {name: device})
    return device


def list_devices(state: ServerState) -> tuple[list[DeviceStatus], list[int]]:
    """All devices that were ever enrolled, and the node ids that the server lets in without a name in our list.

    Raises:
        FleetError: there is no server, or it does not answer.
        StorageError: the list of devices cannot be read.
    """
    devices = read_registry(state.devices_file)
    try:
        nodes = {
            int(node["node-id"]): str(node["status"]) for node in ask_flower(state, ("supernode", "list"))["nodes"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise FleetError("Flower's list of devices has another form than that of flwr 1.41: install that.") from error
    allowed = {node_id: _STATUS[status] for node_id, status in nodes.items() if status in _STATUS}
    rows = [
        DeviceStatus(
            device=device, status="revoked" if device.revoked_at is not None else allowed.get(device.node_id, "unknown")
        )
        for device in devices.values()
    ]
    named = {device.node_id for device in devices.values() if device.revoked_at is None}
    return rows, sorted(allowed.keys() - named)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _root_certificate(state: ServerState) -> bytes:
    """The certificate by which this server's own commands know it: devices trust the same."""
    try:
        connection = tomllib.loads(state.flwr_config.read_text())["superlink"][CONNECTION]
    except FileNotFoundError:
        raise FleetError(
            f"No server was ever started in {state.root}: run neuroflux-fl server --state {state.root} --certs DIR."
        ) from None
    except OSError as error:
        raise StorageError(f"File {state.flwr_config} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise StorageError(
            f"File {state.flwr_config} has no connection {CONNECTION!r}: start the server anew."
        ) from error
    certificate = connection.get("root-certificates")
    if not certificate:
        raise ConfigError(
            f"Server of {state.root} runs without TLS, where keys prove nothing: start it with --certs DIR "
            "(neuroflux-fl certs makes one)."
        )
    path = Path(certificate)
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"Certificate {path} cannot be read: {error.strerror}.") from error


@contextmanager
def _new_bundle(folder: Path) -> Iterator[None]:
    """A private folder that is gone again if what happens inside fails: half a bundle is none."""
    make_private_folder(folder)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_key_pair(bundle: Path) -> ec.EllipticCurvePublicKey:
    key = make_private_key()
    write_private(bundle / "node.key", private_key_file(key))
    write_public(bundle / "node.key.pub", f"{public_key_line(key.public_key())}\n".encode())
    return key.public_key()


def _check_unused(key: ec.EllipticCurvePublicKey, devices: dict[str, Device]) -> None:
    shown = fingerprint(key)
    for device in devices.values():
        if device.fingerprint == shown:
            belongs = "belongs to" if device.revoked_at is None else "was revoked with"
            raise UsageError(f"Key {shown} {belongs} device {device.name!r}: make a new one with {KEYGEN}.")


def _register(state: ServerState, key: ec.EllipticCurvePublicKey) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "node.pub"
        file.write_text(f"{public_key_line(key)}\n")
        try:
            return int(ask_flower(state, ("supernode", "register", str(file)))["node-id"])
        except FlowerRefusal as refusal:
            if refusal.code != PUBLIC_KEY_IN_USE:
                raise
            raise UsageError(
                f"Key {fingerprint(key)} was registered with the server before: make a new one with {KEYGEN}."
            ) from refusal


def _unregister(state: ServerState, device: Device) -> None:
    try:
        ask_flower(state, ("supernode", "unregister", str(device.node_id)))
    except FlowerRefusal as refusal:
        if refusal.code != NODE_NOT_FOUND:  # What the server does not know, it does not let in.
            raise
