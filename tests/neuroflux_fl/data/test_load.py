"""The one door: names, paths and options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroflux_fl.data import load_data
from neuroflux_fl.errors import DataError, DependencyError, UsageError


def test_digits_need_no_download() -> None:
    digits = load_data("digits")

    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert (digits.image_shape, digits.classes, digits.horizontal_flip) == ((1, 32, 32), 10, False)
    assert digits.train.images.max() == 255
    assert digits.mean == pytest.approx((0.305,), abs=0.01)


def test_digits_at_their_own_size_keep_their_pixels() -> None:
    digits = load_data("digits", image_side=8)

    assert set(np.unique(digits.test.images)) == set(np.rint(np.arange(17) * 255 / 16))


def test_limits_keep_the_classes_in_proportion_and_the_seed_chooses() -> None:
    first, again, other = (load_data("digits", train_limit=50, test_limit=20, seed=seed) for seed in (1, 1, 2))

    assert (len(first.train), len(first.test)) == (50, 20)
    assert np.bincount(first.train.labels).tolist() == [5] * 10
    assert np.array_equal(first.train.images, again.train.images)
    assert not np.array_equal(first.train.images, other.train.images)


def test_the_test_set_does_not_depend_on_the_seed() -> None:
    one, two = (load_data("digits", image_side=8, seed=seed).test for seed in (1, 2))

    assert np.array_equal(one.images, two.images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar-10"}, "'cifar-10' is neither a known name .* Did you mean 'cifar10'"),
        ({"name": "no/such/folder"}, "'no/such/folder' is neither .* nor a folder of pictures or Parquet files.$"),
        ({"name": ""}, "'' is neither a known name"),
        ({"name": __file__}, "is a file: give the folder"),
        ({"train_limit": 0}, "train limit is 0: give 1 or more"),
        ({"test_limit": -5}, "test limit is -5"),
        ({"image_side": 0}, "image side is 0"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_data(**({"name": "digits"} | arguments))
    assert "\n" not in str(caught.value)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="Seed -1"):
        load_data("digits", train_limit=10, seed=-1)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DependencyError, match=r'pip install "neuroflux-fl\[simulation\]"'):
        load_data("digits")

    (tmp_path / "train-0.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match=r'pip install "neuroflux-fl\[parquet\]"'):
        load_data(str(tmp_path))
