"""Dealing examples out to devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroflux_fl.data.partition import PARTITION_SCHEMES, partition, split_validation
from neuroflux_fl.errors import DataError, NeurofluxError, UsageError

LABELS = np.arange(1000) % 10


def classes_held(part: np.ndarray) -> int:
    return len(set(LABELS[part].tolist()))


@pytest.mark.parametrize("scheme", PARTITION_SCHEMES)
@pytest.mark.parametrize("devices", [1, 7, 20])
def test_every_example_goes_to_exactly_one_device(scheme: str, devices: int) -> None:
    parts = partition(LABELS, devices, scheme, seed=3)

    assert len(parts) == devices
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    assert all(part.dtype == np.int64 and len(part) >= 2 for part in parts)


@pytest.mark.parametrize("scheme", PARTITION_SCHEMES)
def test_the_seed_decides(scheme: str) -> None:
    first, again, other = (partition(LABELS, 5, scheme, seed=seed) for seed in (1, 1, 2))

    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_iid_parts_differ_by_at_most_one() -> None:
    assert sorted(len(part) for part in partition(LABELS, 7, "iid", seed=0)) == [142] + [143] * 6


def test_shards_hold_few_classes() -> None:
    # 20 shards of 50 cut the ten classes of 100 exactly in halves: two shards hold at most two classes.
    parts = partition(LABELS, 10, "shards", shards_per_device=2, seed=0)

    assert {len(part) for part in parts} == {100}
    assert max(classes_held(part) for part in parts) == 2


def test_a_small_alpha_is_skewed_and_a_large_one_even() -> None:
    skewed = partition(LABELS, 5, "dirichlet", alpha=0.05, seed=0)
    even = partition(LABELS, 5, "dirichlet", alpha=1e6, seed=0)

    assert np.mean([classes_held(part) for part in skewed]) < 7
    assert all(abs(len(part) - 200) <= 10 and classes_held(part) == 10 for part in even)


def test_dirichlet_draws_again_until_every_device_has_enough() -> None:
    parts = partition(LABELS, 5, "dirichlet", alpha=0.1, min_examples=90, seed=0)

    assert min(len(part) for part in parts) >= 90


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"devices": 0}, UsageError, "Number of devices is 0: give 1 or more"),
        ({"devices": 1001}, DataError, "1000 examples are too few for 1001 devices .* at most 500 devices"),
        ({"scheme": "dirichlett"}, UsageError, "'dirichlett' is unknown: .* Did you mean 'dirichlet'"),
        ({"scheme": "??"}, UsageError, "use iid, dirichlet, shards.$"),
        ({"alpha": 0.0}, UsageError, "alpha is 0.0: give a finite number above 0"),
        ({"alpha": float("nan")}, UsageError, "alpha is nan"),
        ({"scheme": "shards", "shards_per_device": 0}, UsageError, "shards per device is 0"),
        ({"scheme": "shards", "shards_per_device": 600}, DataError, "cannot be cut into 1200 shards"),
        ({"min_examples": 0}, UsageError, "Smallest number of examples per device is 0"),
        (
            {"devices": 3, "scheme": "dirichlet", "alpha": 0.01, "min_examples": 333},
            DataError,
            "None of 100 .* raise alpha",
        ),
        ({"seed": -1}, UsageError, "Seed -1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[NeurofluxError], message: str) -> None:
    defaults: dict[str, Any] = {"devices": 2, "scheme": "iid", "seed": 0}

    with pytest.raises(error, match=message):
        partition(LABELS, **(defaults | arguments))


def test_validation_is_stratified_over_the_devices_own_indices() -> None:
    indices = np.arange(500, 700)

    train, validation = split_validation(indices, LABELS, 0.1, seed=0)

    assert np.bincount(LABELS[validation]).tolist() == [2] * 10
    assert sorted([*train, *validation]) == indices.tolist()


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_sides_of_a_validation_split_have_an_example(fraction: float) -> None:
    train, validation = split_validation(np.array([10, 20, 30]), LABELS, fraction, seed=0)

    assert len(train)
    assert len(validation)


def test_a_single_example_is_trained_on() -> None:
    train, validation = split_validation(np.array([42]), LABELS, 0.5, seed=0)

    assert (train.tolist(), validation.tolist()) == ([42], [])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(fraction: float) -> None:
    with pytest.raises(UsageError, match="not between 0 and 1"):
        split_validation(np.arange(10), LABELS, fraction, seed=0)
