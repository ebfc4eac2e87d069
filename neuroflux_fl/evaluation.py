"""Accuracy of exits, with running statistics and weights left exactly as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from neuroflux_fl.activation_cache import ActivationCache
from neuroflux_fl.activation_flow import ActivationFlow, split_in_order
from neuroflux_fl.compute import PLAIN_COMPUTE, ComputeSettings
from neuroflux_fl.plan import Window
from neuroflux_fl.sample_source import PLAIN_VIEW, SampleSource


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers out of ``total``."""

    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Share from 0 to 1; 0 where nothing was asked."""
        return self.correct / self.total if self.total else 0.0

    @property
    def standard_error(self) -> float:
        """Of the accuracy, with two right and two wrong answers added: otherwise it would be 0 where all are right.

        Agresti and Coull, Approximate is better than "exact" for interval estimation of binomial proportions, 1998.
        """
        total = self.total + 4
        share = (self.correct + 2) / total
        return math.sqrt(share * (1 - share) / total)

    def __add__(self, other: Score) -> Score:
        return Score(self.correct + other.correct, self.total + other.total)


def score_windows(
    windows: Sequence[tuple[Window, Sequence[nn.Module], nn.Module]],
    source: SampleSource,
    batch_size: int,
    compute: ComputeSettings = PLAIN_COMPUTE,
) -> dict[int, Score]:
    """Score the exit at each window's end on all of ``source``, whose cut is the first window's start.

    Modules are left in eval mode.
    """
    for _, units, head in windows:
        for module in (*units, head):
            module.eval()
    correct = {window.last_unit: 0 for window, _, _ in windows}
    count = len(source.labels)
    with torch.no_grad():
        for indices in split_in_order(count, batch_size):
            values = compute.place(source.read(indices, PLAIN_VIEW))
            labels = torch.from_numpy(source.labels[indices]).to(values.device)
            for window, units, head in windows:
                with compute.running(values.device):  # for each anew: it keeps narrow copies of all weights within
                    for unit in units:
                        values = unit(values)
                    correct[window.last_unit] += int((head(values).argmax(dim=1) == labels).sum())
    return {unit: Score(right, count) for unit, right in correct.items()}


def score_exits(flow: ActivationFlow, cache: ActivationCache, *, first_unit: int, last_unit: int) -> dict[int, Score]:
    """Score the exits of ``first_unit`` to ``last_unit`` on the flow's data, a few units in memory at a time.

    Activations between groups of units go through the cache and are removed again.
    """
    scores: dict[int, Score] = {}
    known = first_unit
    for group in flow.groups(first_unit, last_unit + 1):
        source = flow.source_at(group[0], known=known)
        if known not in (0, first_unit, group[0]):
            cache.remove_all(flow.keys(known))
        known = group[0]
        pairs = [flow.load(unit, with_head=True) for unit in group]
        windows: list[tuple[Window, Sequence[nn.Module], nn.Module]] = [
            (Window(first_unit=unit, last_unit=unit), [pair.unit], pair.head)
            for unit, pair in zip(group, pairs, strict=True)
        ]
        scores |= score_windows(windows, source, flow.piece(group), flow.compute)
    if known not in (0, first_unit):
        cache.remove_all(flow.keys(known))
    return scores
