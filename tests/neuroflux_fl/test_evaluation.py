"""Scores of exits, counted by hand and the long way round."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from neuroflux_fl.activation_cache import ActivationCache
from neuroflux_fl.activation_flow import ActivationFlow
from neuroflux_fl.evaluation import Score, score_exits, score_windows
from neuroflux_fl.plan import Window
from neuroflux_fl.sample_source import ImageSource, TensorSource
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")


def test_scores_add_up() -> None:
    assert Score(3, 4) + Score(1, 4) == Score(4, 8)
    assert Score(1, 4).accuracy == 0.25
    assert Score(0, 0).accuracy == 0.0


def test_right_answers_are_counted_over_all_batches() -> None:
    # The head answers with the index of the largest of three pixels; the unit turns their order round.
    class Reverse(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return value.flip(3)

    pixels = torch.eye(3)[torch.tensor([0, 0, 1, 2, 2])].view(5, 1, 1, 3)
    source = TensorSource(pixels, np.array([0, 2, 1, 2, 0]))
    first, second = Window(first_unit=0, last_unit=0), Window(first_unit=1, last_unit=1)

    scores = score_windows([(first, [nn.Identity()], nn.Flatten()), (second, [Reverse()], nn.Flatten())], source, 2)

    assert scores == {0: Score(3, 5), 1: Score(3, 5)}


def test_scoring_changes_nothing_in_the_modules(
    small_store: UnitStore, image_source: Callable[..., ImageSource]
) -> None:
    pair = small_store.load(0, CPU)
    before = {name: value.clone() for name, value in pair.state_dict().items()}

    score_windows([(Window(first_unit=0, last_unit=0), [pair.unit], pair.head)], image_source(9), 4)

    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())


def test_exits_in_groups_score_as_the_whole_network_does(
    small_store: UnitStore,
    make_flow: Callable[..., tuple[ActivationFlow, ActivationCache]],
    image_source: Callable[..., ImageSource],
) -> None:
    flow, cache = make_flow(60, memory_bytes=10_000)
    images = image_source(60)
    expected = {}
    with torch.no_grad():
        value = images.read(np.arange(60), 0)
        for unit in range(3):
            pair = small_store.load(unit, CPU).eval()
            value = pair.unit(value)
            right = pair.head(value).argmax(1).numpy() == images.labels
            expected[unit] = Score(int(right.sum()), 60)
    assert len(flow.groups(0, 3)) > 1

    assert score_exits(flow, cache, first_unit=0, last_unit=2) == expected
    assert cache.used_bytes() == 0, "activations between groups are removed again"
    assert score_exits(flow, cache, first_unit=2, last_unit=2) == {2: expected[2]}
