"""Data sets by name, from small archives in the place of the downloaded ones."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroflux_fl.data import load_data, named
from neuroflux_fl.data.request import Request
from neuroflux_fl.errors import DataError
from neuroflux_fl.torchvision_import import torchvision


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take whatever file lies in the download folder, and fail as without a network if there is none."""

    def download_url(url: str, root: Path, filename: str, md5: str) -> None:
        if not (Path(root) / filename).exists():
            raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download_url)


def record(labels: list[int], red: int, green: int, blue: int) -> bytes:
    """A CIFAR record whose first pixel of the second row is 255 in red."""
    planes = [np.full((32, 32), value, dtype=np.uint8) for value in (red, green, blue)]
    planes[0][1, 0] = 255
    return bytes(labels) + b"".join(plane.tobytes() for plane in planes)


def write_archive(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def cifar10_contents() -> dict[str, bytes]:
    contents = {
        f"cifar-10-batches-bin/data_batch_{number}.bin": record([number], number, 20, 30) for number in range(1, 6)
    }
    contents["cifar-10-batches-bin/test_batch.bin"] = record([7], 1, 2, 3) + record([8], 4, 5, 6)
    contents["cifar-10-batches-bin/batches.meta.txt"] = ("\n".join(f"class{n}" for n in range(10)) + "\n\n").encode()
    return contents


def test_cifar10_records(tmp_path: Path) -> None:
    write_archive(tmp_path / "cifar-10-binary.tar.gz", cifar10_contents())

    data = load_data("cifar10", download_folder=tmp_path)

    assert data.class_names == tuple(f"class{n}" for n in range(10))
    assert data.image_shape == (3, 32, 32)
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5]
    assert data.train.images[:, :, 0, 0].tolist() == [[number, 20, 30] for number in range(1, 6)]
    assert data.train.images[0, 0, 1, 0] == 255
    assert data.test.labels.tolist() == [7, 8]
    assert data.test.images[1, :, 31, 31].tolist() == [4, 5, 6]


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    contents = {
        "cifar-100-binary/train.bin": record([19, 99], 1, 2, 3),
        "cifar-100-binary/test.bin": record([3, 42], 4, 5, 6),
        "cifar-100-binary/fine_label_names.txt": "\n".join(f"class{n}" for n in range(100)).encode(),
    }
    write_archive(tmp_path / "cifar-100-binary.tar.gz", contents)

    data = load_data("cifar100", image_side=16, download_folder=tmp_path)

    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([99], [42])
    assert (data.classes, data.image_shape) == (100, (3, 16, 16))
    assert data.test.images[0, :, 15, 15].tolist() == [4, 5, 6]


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, cifar10_contents())
    whole = path.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz cannot be read .*: delete the file"):
            load_data("cifar10", download_folder=tmp_path)

    contents = cifar10_contents()
    contents["cifar-10-batches-bin/test_batch.bin"] += b"x"
    write_archive(path, contents)
    with pytest.raises(DataError, match="6147 bytes are not records of 3073"):
        load_data("cifar10", download_folder=tmp_path)

    del contents["cifar-10-batches-bin/test_batch.bin"]
    write_archive(path, contents)
    with pytest.raises(DataError, match=r"cannot be read \('test_batch.bin'\)"):
        load_data("cifar10", download_folder=tmp_path)


def write_fashion(folder: Path) -> None:
    """Three train and two test images; image i has the value i + 1."""
    for prefix, count in (("train", 3), ("t10k", 2)):
        values = np.arange(1, count + 1, dtype=np.uint8)
        pixels = np.broadcast_to(values[:, None, None], (count, 28, 28)).tobytes()
        sizes = np.array([count, 28, 28], dtype=">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + sizes + pixels))
        labels = b"\0\0\x08\x01" + sizes[:4] + bytes(range(count))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_fashion_mnist_gets_a_margin(tmp_path: Path) -> None:
    write_fashion(tmp_path)

    data = load_data("fashion-mnist", download_folder=tmp_path)

    assert (data.image_shape, data.class_names[9]) == ((1, 32, 32), "Ankle boot")
    assert data.train.labels.tolist() == [0, 1, 2]
    assert data.train.images[1, 0, 2:30, 2:30].min() == 2
    assert data.train.images[1].sum() == 2 * 28 * 28
    assert len(data.test) == 2


@pytest.mark.parametrize("side", [28, 14])
def test_fashion_mnist_at_other_sides_has_no_margin(tmp_path: Path, side: int) -> None:
    write_fashion(tmp_path)

    data = load_data("fashion-mnist", image_side=side, download_folder=tmp_path)

    assert data.image_shape == (1, side, side)
    assert (data.train.images[2] == 3).all()


@pytest.mark.parametrize(
    "content",
    [b"", gzip.compress(b"short"), gzip.compress(b"\0\0\x08\x03" + b"\0" * 6)],
    ids=["empty", "short", "no pixels"],  # not the bytes: gzip writes the time into them, and workers must agree
)
def test_a_damaged_idx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)

    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz cannot be read"):
        load_data("fashion-mnist", download_folder=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist"])
def test_without_a_network_the_way_out_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=rf"'{name}' could not be .*no route to host.* or point --data at a folder"
    ) as e:
        load_data(name, download_folder=tmp_path)
    assert "\n" not in str(e.value)


def test_downloads_go_to_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert named.default_download_folder() == tmp_path / "neuroflux-fl" / "data"


def test_the_digest_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    write_archive(tmp_path / "cifar-10-binary.tar.gz", cifar10_contents())
    monkeypatch.setattr(torchvision.datasets.utils, "download_url", lambda *arguments: asked.append(arguments))

    named.load_cifar(replace(named.CIFAR10, md5="d1ge57"), Request(), tmp_path)

    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert asked == [(url, tmp_path, "cifar-10-binary.tar.gz", "d1ge57")]
