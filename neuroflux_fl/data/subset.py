"""Seeded choices of examples that keep the proportions of the classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import UsageError

# Which images are for testing must not change with a run's seed, or runs could not be compared.
TEST_SHARE = 0.2
_TEST_SPLIT_SEED = 20240422


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers that depend on ``seed`` and on what they are for.

    Raises:
        UsageError: the seed is negative.
    """
    if seed < 0:
        raise UsageError(f"Seed {seed} is negative: give 0 or more.")
    return np.random.default_rng([seed, *purpose])


def stratified_sample(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Choose ``count`` indices into ``labels`` (n,), each class by its share; all of them if ``count >= n``.

    Shares are rounded by largest remainder, so a class is off its exact share by less than one example.

    Returns:
        Sorted indices, (min(count, n),).
    """
    if count >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    _, members, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    exact = count * sizes / len(labels)
    quotas = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(quotas - exact, kind="stable")
    quotas[by_remainder[: count - quotas.sum()]] += 1
    rng = generator(seed)
    chosen = [
        rng.choice(np.flatnonzero(members == number), quota, replace=False) for number, quota in enumerate(quotas)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def stratified_split(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split the indices of ``labels`` (n,) in two: the rest, and a ``fraction`` of every class held out.

    Both sides get at least one example where there are two or more; a single one is not held out.
    """
    wanted = round(len(labels) * fraction)
    held_out = stratified_sample(labels, max(1, min(wanted, len(labels) - 1)) if len(labels) > 1 else 0, seed)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), held_out, assume_unique=True), held_out


def split_off_test(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Train and test indices for a source without a test split of its own: the same for every run's seed."""
    return stratified_split(labels, TEST_SHARE, _TEST_SPLIT_SEED)
