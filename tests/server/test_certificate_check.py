"""A certificate folder that will not do is found out before anything is started."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from neuroflux_fl.errors import ConfigError, StorageError
from server.certificate_check import check_certificates
from server.certificates import create_certificates
from server.superlink import Endpoint

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet") / "certs"
    create_certificates(folder, ["fleet.example.org"], days=100)
    return folder


def endpoint(folder: Path | None, host: str = "127.0.0.1") -> Endpoint:
    return Endpoint(host=host, port=8443, certificates=folder)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "Fleet.Example.Org"])
def test_good_ones(good: Path, host: str) -> None:
    assert check_certificates(endpoint(good, host)) is None


def test_none_are_needed_without_tls() -> None:
    assert check_certificates(endpoint(None)) is None


def test_another_host(good: Path) -> None:
    with pytest.raises(ConfigError, match=r"is for 127\.0\.0\.1, fleet\.example\.org, localhost, not for 192\.0\.2\.7"):
        check_certificates(endpoint(good, "192.0.2.7"))


def test_the_end_is_told_before_it_comes(good: Path) -> None:
    assert check_certificates(endpoint(good), NOW + timedelta(days=78)) is None
    assert "--renew" in str(check_certificates(endpoint(good), NOW + timedelta(days=80)))
    with pytest.raises(ConfigError, match="expired on"):
        check_certificates(endpoint(good), NOW + timedelta(days=101))


@pytest.mark.parametrize("name", ["ca.crt", "server.key"])
def test_parts_of_different_fleets(good: Path, tmp_path: Path, name: str) -> None:
    other, mixed = tmp_path / "other", tmp_path / "mixed"
    create_certificates(other, ["fleet.example.org"])
    shutil.copytree(good, mixed)
    shutil.copy(other / name, mixed / name)

    with pytest.raises(ConfigError, match="do not fit together"):
        check_certificates(endpoint(mixed))


def test_damaged_and_missing_files(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    shutil.copytree(good, folder)
    (folder / "ca.crt").write_text("nonsense")
    with pytest.raises(ConfigError, match="do not fit together"):
        check_certificates(endpoint(folder))

    (folder / "ca.crt").unlink()
    with pytest.raises(StorageError, match=r"has no ca\.crt"):
        check_certificates(endpoint(folder))
