"""A cohort depends on seed, round and the set of nodes, and on nothing else."""

from __future__ import annotations

from collections import Counter

from server.cohort import draw_cohort

NODES = tuple(2**64 - 1 - 7 * index for index in range(20))


def test_draw_is_a_function_of_seed_round_and_the_set_of_nodes() -> None:
    cohort = draw_cohort(NODES, 5, seed=3, round=8)

    assert cohort == draw_cohort(tuple(reversed(NODES)), 5, seed=3, round=8)
    assert len(set(cohort)) == 5
    assert set(cohort) <= set(NODES)
    assert list(cohort) == sorted(cohort)


def test_rounds_and_seeds_draw_differently() -> None:
    draws = {draw_cohort(NODES, 5, seed, round) for seed in range(3) for round in range(3)}

    assert len(draws) == 9


def test_small_fleet_takes_part_whole() -> None:
    assert draw_cohort((9, 4), 5, seed=0, round=0) == (4, 9)
    assert draw_cohort((), 5, seed=0, round=0) == ()


def test_every_node_is_drawn_about_equally_often() -> None:
    counts = Counter(node for round in range(400) for node in draw_cohort(NODES, 5, 0, round))

    # 100 draws are expected of each; the standard deviation is below 9.
    assert set(counts) == set(NODES)
    assert 60 < min(counts.values()) <= max(counts.values()) < 140
