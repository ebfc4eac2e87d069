"""Deal examples out to devices, evenly or unevenly, and split off a device's validation part. NumPy only."""

from __future__ import annotations

import math
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.data.subset import generator, stratified_split
from neuroflux_fl.errors import DataError, UsageError

PARTITION_SCHEMES = ("iid", "dirichlet", "shards")
_DIRICHLET_DRAWS = 100


def partition(
    labels: NDArray[np.int64],
    devices: int,
    scheme: str,
    *,
    alpha: float = 0.5,
    shards_per_device: int = 2,
    min_examples: int = 2,
    seed: int,
) -> tuple[NDArray[np.int64], ...]:
    """Deal every index of ``labels`` (n,) to exactly one of ``devices``; the same seed gives the same parts.

    Args:
        labels: class numbers, (n,).
        devices: number of parts.
        scheme: ``iid``: shuffled, equal parts. ``dirichlet``: each class in proportions drawn from Dirichlet(alpha)
            (Hsu, Qi and Brown 2019, arXiv 1909.06335). ``shards``: sorted by label, cut into equal shards, a few to
            each device (McMahan et al. 2017, arXiv 1602.05629).
        alpha: above 0; small means few classes a device, large means alike devices. Only for ``dirichlet``.
        shards_per_device: Only for ``shards``.
        min_examples: every part has at least so many, in all schemes.
        seed: 0 or more.

    Returns:
        One sorted array of indices a device.

    Raises:
        UsageError: an argument outside its range, or an unknown scheme.
        DataError: too few examples for so many devices, or no Dirichlet draw gave each device enough.
    """
    _check_arguments(devices, scheme, alpha, shards_per_device, min_examples)
    if devices * min_examples > len(labels):
        raise DataError(
            f"{len(labels)} examples are too few for {devices} devices with at least {min_examples} each: "
            f"use at most {len(labels) // min_examples} devices, or more data."
        )
    if scheme == "iid":
        parts = _iid(len(labels), devices, seed)
    elif scheme == "shards":
        parts = _shards(labels, devices, shards_per_device, seed)
    else:
        parts = _dirichlet(labels, devices, alpha, min_examples, seed)
    smallest = min(len(part) for part in parts)
    if smallest < min_examples:
        raise DataError(
            f"Partition {scheme!r} leaves a device with {smallest} examples, the rule is at least {min_examples}: "
            "use fewer devices, more data, or another scheme."
        )
    return tuple(np.sort(part).astype(np.int64) for part in parts)


def split_validation(
    indices: NDArray[np.int64], labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split a device's ``indices`` (m,) into those to train on and those to validate on, each class by its share.

    Args:
        indices: the device's indices into ``labels``.
        labels: class numbers of the whole data set, (n,).
        fraction: the share to validate on, strictly between 0 and 1.
        seed: 0 or more.

    Returns:
        Train and validation indices into ``labels``, in the order of ``indices``. Both have at least one of two or
        more examples; a single example is trained on.

    Raises:
        UsageError: the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"Validation fraction {fraction} is not between 0 and 1: give for example 0.1.")
    train, validation = stratified_split(labels[indices], fraction, seed)
    return indices[train], indices[validation]


def _check_arguments(devices: int, scheme: str, alpha: float, shards_per_device: int, min_examples: int) -> None:
    if scheme not in PARTITION_SCHEMES:
        nearest = get_close_matches(scheme.lower(), PARTITION_SCHEMES, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise UsageError(f"Partition {scheme!r} is unknown: use {', '.join(PARTITION_SCHEMES)}.{hint}")
    for what, value in (
        ("Number of devices", devices),
        ("Number of shards per device", shards_per_device),
        ("Smallest number of examples per device", min_examples),
    ):
        if value < 1:
            raise UsageError(f"{what} is {value}: give 1 or more.")
    if not (alpha > 0 and math.isfinite(alpha)):
        raise UsageError(f"Dirichlet alpha is {alpha}: give a finite number above 0, for example 0.5.")


def _iid(examples: int, devices: int, seed: int) -> list[NDArray[np.int64]]:
    return np.array_split(generator(seed).permutation(examples), devices)


def _shards(labels: NDArray[np.int64], devices: int, shards_per_device: int, seed: int) -> list[NDArray[np.int64]]:
    count = devices * shards_per_device
    if count > len(labels):
        raise DataError(
            f"{len(labels)} examples cannot be cut into {count} shards ({shards_per_device} for each of {devices} "
            "devices): use fewer shards per device, fewer devices, or more data."
        )
    rng = generator(seed)
    shuffled = rng.permutation(len(labels))
    shards = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], count)
    hands = rng.permutation(count).reshape(devices, shards_per_device)
    return [np.concatenate([shards[shard] for shard in hand]) for hand in hands]


def _dirichlet(
    labels: NDArray[np.int64], devices: int, alpha: float, min_examples: int, seed: int
) -> list[NDArray[np.int64]]:
    """The first of up to 100 draws in which every device gets ``min_examples``; draw d uses the seed (seed, d)."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for draw in range(_DIRICHLET_DRAWS):
        rng = generator(seed, draw)
        hands: list[list[NDArray[np.int64]]] = [[] for _ in range(devices)]
        for members in classes:
            shares = rng.dirichlet(np.full(devices, alpha))
            cuts = np.floor(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for hand, piece in zip(hands, np.split(rng.permutation(members), cuts), strict=True):
                hand.append(piece)
        parts = [np.concatenate(hand) for hand in hands]
        if min(len(part) for part in parts) >= min_examples:
            return parts
    raise DataError(
        f"None of {_DIRICHLET_DRAWS} Dirichlet draws with alpha {alpha} gave each of {devices} devices at least "
        f"{min_examples} of {len(labels)} examples: raise alpha, use fewer devices, or more data."
    )
