"""Stratified choices."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflux_fl.data.subset import generator, split_off_test, stratified_sample, stratified_split
from neuroflux_fl.errors import UsageError

LABELS = np.array([0] * 60 + [1] * 30 + [2] * 10)


def test_classes_keep_their_proportions() -> None:
    chosen = stratified_sample(LABELS, 10, seed=0)

    assert np.bincount(LABELS[chosen]).tolist() == [6, 3, 1]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


def test_shares_are_rounded_by_largest_remainder() -> None:
    # 7 of 100 are 4.2, 2.1 and 0.7: the last has the largest remainder.
    assert np.bincount(LABELS[stratified_sample(LABELS, 7, seed=0)]).tolist() == [4, 2, 1]


def test_the_seed_decides() -> None:
    first, again, other = (stratified_sample(LABELS, 20, seed) for seed in (1, 1, 2))

    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (100, 100), (1000, 100)])
def test_extreme_counts(count: int, expected: int) -> None:
    assert len(stratified_sample(LABELS, count, seed=0)) == expected


def test_a_split_is_disjoint_and_complete() -> None:
    rest, held_out = stratified_split(LABELS, 0.2, seed=0)

    assert np.bincount(LABELS[held_out]).tolist() == [12, 6, 2]
    assert sorted([*rest, *held_out]) == list(range(100))


@pytest.mark.parametrize(("examples", "sizes"), [(0, (0, 0)), (1, (1, 0)), (2, (1, 1)), (3, (2, 1))])
def test_small_splits_keep_one_on_either_side(examples: int, sizes: tuple[int, int]) -> None:
    for fraction in (0.01, 0.3):
        rest, held_out = stratified_split(np.zeros(examples, dtype=np.int64), fraction, seed=0)
        assert (len(rest), len(held_out)) == sizes


def test_the_test_share_is_a_fifth() -> None:
    train, test = split_off_test(LABELS)

    assert (len(train), len(test)) == (80, 20)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="Seed -1 is negative"):
        generator(-1)
