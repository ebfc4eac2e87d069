"""Which devices take part in a round: a function of seed and round, so that a resumed run draws the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_cohort(node_ids: Sequence[int], count: int, seed: int, round: int) -> tuple[int, ...]:
    """Draw ``count`` distinct nodes, or all when there are fewer; the order of ``node_ids`` does not matter.

    Args:
        node_ids: nodes that could take part.
        count: wanted size of the cohort, 0 or more.
        seed: the run's seed, 0 or more.
        round: number of the round, 0 or more.

    Returns:
        The drawn ids in rising order.
    """
    candidates = sorted(set(node_ids))
    # Node ids use all of 64 bits: drawing positions keeps them out of NumPy's signed integers.
    positions = np.random.default_rng([seed, round]).permutation(len(candidates))[:count]
    return tuple(sorted(candidates[position] for position in positions))
