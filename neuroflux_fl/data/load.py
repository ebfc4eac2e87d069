"""One door to every data source: a name, a folder of pictures, or a folder of Parquet files."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from neuroflux_fl.data.digits import load_digits
from neuroflux_fl.data.folder import load_folder
from neuroflux_fl.data.images import ImageData
from neuroflux_fl.data.named import CIFAR10, CIFAR100, default_download_folder, load_cifar, load_fashion_mnist
from neuroflux_fl.data.parquet import load_parquet
from neuroflux_fl.data.request import Request
from neuroflux_fl.errors import DataError

_NAMED: dict[str, Callable[[Request, Path], ImageData]] = {
    "digits": lambda request, _: load_digits(request),
    "cifar10": lambda request, folder: load_cifar(CIFAR10, request, folder),
    "cifar100": lambda request, folder: load_cifar(CIFAR100, request, folder),
    "fashion-mnist": load_fashion_mnist,
}

DATA_NAMES = tuple(_NAMED)


def load_data(
    name: str,
    *,
    image_side: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    seed: int = 0,
    download_folder: Path | None = None,
) -> ImageData:
    """Load a data set.

    Args:
        name: one of ``DATA_NAMES``; or a folder with ``train-*.parquet`` and ``test-*.parquet``; or a folder of
            pictures with one subfolder a class, with or without ``train/`` and ``test/`` above. A known name wins
            over a folder of that name: write ``./digits`` for the folder.
        image_side: height and width that images are scaled to, in pixels. By default 32 for digits, Fashion-MNIST
            and folders of pictures, the images' own size otherwise.
        train_limit: at most so many train images, chosen by ``seed`` with the classes in proportion.
        test_limit: the same for test images.
        seed: used for the limits only. Which images are for testing never depends on it.
        download_folder: where downloads are kept; by default ``neuroflux-fl/data`` in the user's cache folder.

    Raises:
        DataError: the data is unknown, missing, empty, corrupt, or a limit or side is below 1.
        DependencyError: an optional package is needed for this source.
        UsageError: the seed is negative.
    """
    request = Request(image_side=image_side, train_limit=train_limit, test_limit=test_limit, seed=seed)
    if name in _NAMED:
        return _NAMED[name](request, download_folder or default_download_folder())
    path = Path(name).expanduser()
    if name and path.is_dir():
        return load_parquet(path, request) if any(path.glob("*.parquet")) else load_folder(path, request)
    if path.is_file():
        raise DataError(f"Data {name!r} is a file: give the folder that holds it, with both train and test data.")
    nearest = get_close_matches(name.lower(), _NAMED, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise DataError(
        f"Data {name!r} is neither a known name ({', '.join(_NAMED)}) nor a folder of pictures or Parquet files.{hint}"
    )
