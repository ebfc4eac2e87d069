"""What a device got when it was enrolled: the server's authority, and the key that is the device's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuroflux_fl.errors import StorageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Files that ``neuroflux-fl enroll`` made."""

    root_certificate: Path
    key: Path
    """SSH private key; only its path is ever passed on."""
    name: str
    """Empty where the bundle has none."""


def read_bundle(folder: Path) -> Bundle:
    """Find a bundle's files; their content is read by Flower alone.

    Raises:
        StorageError: one is missing, or others can read the key.
    """
    folder = folder.expanduser().resolve()
    certificate, key, name = folder / "ca.crt", folder / "node.key", folder / "name"
    for path in (certificate, key):
        if not path.is_file():
            hint = ": put the key that the device made itself there" if path == key else ""
            raise StorageError(
                f"Bundle {folder} has no {path.name}: neuroflux-fl enroll on the server makes a bundle{hint}."
            )
    if key.stat().st_mode & 0o077:
        raise StorageError(f"Key {key} can be read by others: run chmod 600 on it.")
    return Bundle(root_certificate=certificate, key=key, name=name.read_text().strip() if name.is_file() else "")
