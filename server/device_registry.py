"""The devices that were ever enrolled, by name: one small JSON file, whole or as it was before."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuroflux_fl.errors import StorageError
from server.private_files import write_private


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device that was let into the fleet."""

    name: str
    node_id: int
    """What Flower calls it; up to 64 bits, so a string in JSON."""
    fingerprint: str
    """Of its public key, as ``ssh-keygen -l`` prints it."""
    public_key: str
    """One line, as in a ``.pub`` file, without a comment."""
    enrolled_at: str
    """UTC, ISO 8601."""
    revoked_at: str | None = None
    """UTC, ISO 8601; None while it may take part."""


@contextmanager
def registry_lock(path: Path) -> Iterator[None]:
    """Hold off every other process that would change the registry; wait for one that does.

    Raises:
        StorageError: the lock file beside it cannot be made.
    """
    try:
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"Folder {path.parent} cannot be written: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def read_registry(path: Path) -> dict[str, Device]:
    """All devices by name, in the order of their enrolment; none if the file does not exist.

    Raises:
        StorageError: the file cannot be read or is damaged.
    """
    try:
        content = json.loads(path.read_text())
        return {name: _parse(name, entry) for name, entry in content.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StorageError(f"List of devices {path} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise StorageError(f"List of devices {path} is damaged: restore it from a copy.") from error


def names_by_node(path: Path) -> dict[int, str]:
    """The name of each enrolled device by its node id; raises as ``read_registry``."""
    return {device.node_id: device.name for device in read_registry(path).values()}


def write_registry(path: Path, devices: Mapping[str, Device]) -> None:
    """Replace the file, which only its owner can read: names and places of devices are nobody else's business.

    Raises:
        StorageError: it cannot be written; the older file is then untouched.
    """
    content = {}
    for name, device in devices.items():
        entry = asdict(device) | {"node_id": str(device.node_id)}
        del entry["name"]
        content[name] = entry
    write_private(path, (json.dumps(content, indent=2) + "\n").encode())


def _parse(name: str, entry: dict[str, Any]) -> Device:
    return Device(**(entry | {"name": name, "node_id": int(entry["node_id"])}))
