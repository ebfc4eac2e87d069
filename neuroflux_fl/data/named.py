"""CIFAR-10, CIFAR-100 and Fashion-MNIST, downloaded by name and checked against known digests.

The archives are read where they lie. CIFAR is taken in its binary version: the Python version holds pickles, and no
pickle is ever loaded.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.data.images import ImageData, LabelledImages
from neuroflux_fl.data.request import Request, fulfil
from neuroflux_fl.data.resize import pad
from neuroflux_fl.errors import DataError

_CIFAR_SHAPE = (3, 32, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class CifarArchive:
    """Where a CIFAR binary archive is found and how its records are laid out."""

    name: str
    file: str
    md5: str
    folder: str
    """The folder inside the archive that holds the members below."""
    train_members: tuple[str, ...]
    test_members: tuple[str, ...]
    names_member: str
    label_bytes: int
    """Bytes before the pixels of a record; the last of them is the label that is used."""


_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
CIFAR10 = CifarArchive(
    name="cifar10",
    file="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train_members=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_members=("test_batch.bin",),
    names_member="batches.meta.txt",
    label_bytes=1,
)
CIFAR100 = CifarArchive(
    name="cifar100",
    file="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train_members=("train.bin",),
    test_members=("test.bin",),
    names_member="fine_label_names.txt",
    label_bytes=2,  # the coarse label, then the fine one
)

_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_SIDE = 28
_FASHION_DEFAULT_SIDE = 32


def default_download_folder() -> Path:
    """The user's cache folder for downloaded data sets."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "neuroflux-fl" / "data"


def load_cifar(archive: CifarArchive, request: Request, download_folder: Path) -> ImageData:
    """Load CIFAR-10 or CIFAR-100 (fine labels) as (3, 32, 32) images.

    Raises:
        DataError: the archive cannot be downloaded or does not hold what it should.
    """
    path = _download(archive.name, _CIFAR_URL, archive.file, archive.md5, download_folder)
    try:
        members = _read_members(path, archive)
        class_names = tuple(members[archive.names_member].decode().split())
        train = _parse_records(path, archive.label_bytes, [members[name] for name in archive.train_members])
        test = _parse_records(path, archive.label_bytes, [members[name] for name in archive.test_members])
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    return fulfil(request, name=archive.name, class_names=class_names, train=train, test=test, horizontal_flip=True)


def load_fashion_mnist(request: Request, download_folder: Path) -> ImageData:
    """Load Fashion-MNIST. For the default side of 32 its 28x28 images get a margin of 2 pixels; others are scaled.

    Raises:
        DataError: a file cannot be downloaded or does not hold what it should.
    """
    files = [_download("fashion-mnist", _FASHION_URL, file, md5, download_folder) for file, md5 in _FASHION_MD5.items()]
    train_images, train_labels, test_images, test_labels = (_read_idx(path) for path in files)
    side = request.image_side or _FASHION_DEFAULT_SIDE
    margin = (side - _FASHION_SIDE) // 2 if side == _FASHION_DEFAULT_SIDE else 0
    return fulfil(
        replace(request, image_side=side),
        name="fashion-mnist",
        class_names=_FASHION_CLASSES,
        train=LabelledImages(images=pad(train_images[:, None], margin), labels=train_labels.astype(np.int64)),
        test=LabelledImages(images=pad(test_images[:, None], margin), labels=test_labels.astype(np.int64)),
        horizontal_flip=True,
    )


def _download(name: str, base_url: str, file: str, md5: str, folder: Path) -> Path:
    """The path of a file with the right digest, fetched if it is not there yet."""
    from neuroflux_fl.torchvision_import import torchvision

    try:
        torchvision.datasets.utils.download_url(base_url + file, folder, file, md5)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"Data set {name!r} could not be downloaded from {base_url}{file} to {folder} ({reason}): "
            "check the network and the folder, use 'digits', which needs no download, "
            "or point --data at a folder or Parquet files."
        ) from error
    return folder / file


def _read_members(path: Path, archive: CifarArchive) -> dict[str, bytes]:
    """Contents by name of the archive's files, in one pass: every jump back would decompress from the start."""
    wanted = {f"{archive.folder}/{name}" for name in (*archive.train_members, *archive.test_members)}
    wanted.add(f"{archive.folder}/{archive.names_member}")
    contents: dict[str, bytes] = {}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in wanted else None
            if file is not None:
                contents[Path(member.name).name] = file.read()
    return contents


def _parse_records(path: Path, label_bytes: int, contents: list[bytes]) -> LabelledImages:
    """Records of ``label_bytes`` labels and 3072 pixels, channel by channel and row by row."""
    record = label_bytes + int(np.prod(_CIFAR_SHAPE))
    content = b"".join(contents)
    if not content or len(content) % record:
        raise _unreadable(path, f"{len(content)} bytes are not records of {record}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    pixels = records[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE)
    return LabelledImages(images=pixels, labels=records[:, label_bytes - 1].astype(np.int64))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes: two zero bytes, type 8, rank, big-endian sizes, then the values."""
    try:
        content = gzip.decompress(path.read_bytes())
        if len(content) < 8 or content[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of bytes")
        rank = content[3]
        shape = np.frombuffer(content, dtype=">u4", count=rank, offset=4).tolist()
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, reason: object) -> DataError:
    return DataError(f"{path} cannot be read ({reason}): delete the file, so that it is downloaded again.")
