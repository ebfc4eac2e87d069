"""Aggregation per unit, one update at a time: every update is added in place as it arrives and then dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import UsageError, WireError
from neuroflux_fl.wire import PackLayout, UnitUpdate

Rule = Literal["fedavg", "fednova"]

_CHUNK = 64 * 1024
"""Values added at once: temporaries stay at 256 KiB, inside a core's cache."""


@dataclass(slots=True)
class _Part:
    """Sums over the devices that trained one part: a unit's body, or its head."""

    parameters: slice
    buffers: slice
    contributors: int = 0
    weight: float = 0.0
    weighted_steps: float = 0.0

    @property
    def mean_steps(self) -> float:
        return self.weighted_steps / self.weight


@dataclass(slots=True)
class _UnitSum:
    """Running weighted mean of a unit's moves away from the global value, divided by local steps under fednova."""

    mean: NDArray[np.float32]
    body: _Part
    head: _Part
    chunk: NDArray[np.float32] = field(default_factory=lambda: np.empty(_CHUNK, np.float32))

    def add(
        self, part: _Part, weight: float, array: NDArray[np.float32], current: NDArray[np.float32], steps: float
    ) -> None:
        part.contributors += 1
        part.weight += weight
        part.weighted_steps += weight * steps
        share = weight / part.weight
        self._fold(part.parameters, array, current, share, 1.0 / steps)
        self._fold(part.buffers, array, current, share, 1.0)

    def _fold(
        self, where: slice, array: NDArray[np.float32], current: NDArray[np.float32], share: float, scale: float
    ) -> None:
        # mean += share * (scale * (x - g) - mean): as a running mean the sums never outgrow float32.
        for piece in _pieces(where):
            mean, chunk = self.mean[piece], self.chunk[: piece.stop - piece.start]
            np.subtract(array[piece], current[piece], out=chunk)
            if scale != 1.0:
                chunk *= scale
            chunk -= mean
            chunk *= share
            mean += chunk


class UnitAggregator:
    """Averages units over the devices that trained them, weighted by their examples. Use once, for one round.

    ``fedavg``: x = sum_i p_i x_i. ``fednova`` (Wang et al. 2020, arXiv 2007.07481, eq. 6), for parameters only:
    x = g + tau_eff * sum_i p_i (x_i - g) / tau_i, with tau_i the effective local steps, tau_eff = sum_i p_i tau_i and
    p_i = n_i / sum n over the devices that trained this unit. Buffers (batch-norm means and variances) are always the
    plain weighted mean. A head has its own p_i, over the devices that sent it.

    Memory: one model for the sums, whatever the number of updates. ``current`` is read until ``result`` and must not
    be written to before.

    Args:
        layouts: layout of every unit.
        current: global packed array of every unit, heads included, float32 of shape ``(layout.size_with_head,)``.
        rule: how parameters are averaged.
    """

    def __init__(
        self, layouts: Mapping[int, PackLayout], current: Mapping[int, NDArray[np.float32]], rule: Rule = "fedavg"
    ) -> None:
        """Raises UsageError for an unknown rule, and WireError when ``current`` does not fit the layouts."""
        if rule not in get_args(Rule):
            raise UsageError(f"Aggregation rule {rule!r} is unknown: choose one of {', '.join(get_args(Rule))}.")
        if layouts.keys() != current.keys():
            raise WireError(f"Layouts are of units {sorted(layouts)}, global arrays of units {sorted(current)}.")
        for unit, layout in layouts.items():
            _require_fit(f"Global array of unit {unit}", current[unit], layout.size_with_head)
        self._layouts = dict(layouts)
        self._current = dict(current)
        self._rule = rule
        self._sums: dict[int, _UnitSum] = {}

    def add(self, update: UnitUpdate, array: NDArray[np.float32], *, discount: float = 1.0) -> None:
        """Add one device's unit, and its head when ``update.has_head``; ``array`` is not kept.

        ``discount`` is a factor on the device's weight, which is otherwise its number of examples.

        Raises:
            WireError: unknown unit, wrong size or dtype, no examples, or no steps under fednova. Nothing was added.
        """
        layout = self._layouts.get(update.unit)
        if layout is None:
            raise WireError(f"Update is for unit {update.unit}; the model has units {sorted(self._layouts)}.")
        _require_fit(f"Update of unit {update.unit}", array, layout.size(update.has_head))
        steps = update.effective_steps if self._rule == "fednova" else 1.0
        weight = update.examples * discount
        if weight <= 0 or steps <= 0:
            raise WireError(
                f"Update of unit {update.unit} has {update.examples} examples at a discount of {discount:g}, and "
                f"{steps} effective steps: none may be 0."
            )
        total = self._sums.get(update.unit)
        if total is None:
            total = self._sums[update.unit] = _empty_sum(layout)
        current = self._current[update.unit]
        total.add(total.body, weight, array, current, steps)
        if update.has_head:
            total.add(total.head, weight, array, current, steps)

    def result(self, *, quorum: int = 1) -> dict[int, NDArray[np.float32]]:
        """New global packed array of every unit, heads included; ends this aggregator.

        What nobody trained keeps its value, and so does a unit with fewer than ``quorum`` updates: it is ``current``'s
        own array, not a copy.
        """
        arrays = dict(self._current)
        for unit, total in self._sums.items():
            if total.body.contributors < quorum:
                continue
            for part in (total.body, total.head):
                factor = part.mean_steps if self._rule == "fednova" and part.contributors else 1.0
                for piece in _pieces(part.parameters):
                    total.mean[piece] *= factor
            for piece in _pieces(slice(0, len(total.mean))):
                total.mean[piece] += self._current[unit][piece]
            arrays[unit] = total.mean
        return arrays

    @property
    def contributors(self) -> dict[int, int]:
        """Number of updates of every unit."""
        return {unit: self._sums[unit].body.contributors if unit in self._sums else 0 for unit in self._layouts}

    @property
    def head_contributors(self) -> dict[int, int]:
        """Number of updates of every unit's head."""
        return {unit: self._sums[unit].head.contributors if unit in self._sums else 0 for unit in self._layouts}


def _empty_sum(layout: PackLayout) -> _UnitSum:
    return _UnitSum(
        mean=np.zeros(layout.size_with_head, np.float32),
        body=_Part(layout.unit_parameter_slice, layout.unit_buffer_slice),
        head=_Part(layout.head_parameter_slice, layout.head_buffer_slice),
    )


def _pieces(where: slice) -> Iterator[slice]:
    for start in range(where.start, where.stop, _CHUNK):
        yield slice(start, min(start + _CHUNK, where.stop))


def _require_fit(what: str, array: NDArray[np.float32], size: int) -> None:
    if array.dtype != np.float32 or array.shape != (size,):
        raise WireError(f"{what} is {array.dtype} of shape {array.shape}; it must be float32 of shape ({size},).")
