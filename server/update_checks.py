"""Whether an update from an untrusted device may be aggregated. A rejection is a short slug, fit for a metric label."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.wire import PackLayout, UnitUpdate

Reason = Literal[
    "wrong_round",
    "unknown_unit",
    "unexpected_unit",
    "duplicate",
    "no_examples",
    "too_many_examples",
    "no_steps",
    "wrong_dtype",
    "wrong_size",
    "not_finite",
    "negative_variance",
    "absurd_norm",
    "missing_array",
    "unreadable",
    "wrong_coding",
    "malformed",
]
"""Why an update was rejected. The last four are found before its checks: its array is not there, is no array, or is not
in the coding that was asked for; or the whole answer cannot be understood."""
REASONS: tuple[Reason, ...] = get_args(Reason)

DEFAULT_MAX_NORM_RATIO = 10.0
MAX_BUFFER_VALUE = 1e6
"""Largest believable batch-norm mean or variance: real ones stay below a few thousand."""

_CHUNK = 64 * 1024


def check_update(
    update: UnitUpdate,
    array: NDArray[np.generic],
    layout: PackLayout | None,
    *,
    report_round: int,
    expected_round: int,
    stage_units: Collection[int],
    seen_units: Collection[int],
    current: NDArray[np.float32] | None,
    examples_held: int,
    max_norm_ratio: float = DEFAULT_MAX_NORM_RATIO,
) -> Reason | None:
    """Reason to reject one unit's update, or None when it may be aggregated.

    Args:
        update: what the device says of the array.
        array: packed array as received.
        layout: the unit's layout; None when the model has no such unit.
        report_round: round named in the device's report.
        expected_round: round now running.
        stage_units: units in training.
        seen_units: units that this report has already delivered.
        current: the unit's global packed array with head; None when the model has no such unit.
        examples_held: training images that the device said it has; an update cannot weigh more.
        max_norm_ratio: an update may move parameters by at most this many times their own norm (or by this much
            where their norm is below 1).
    """
    if report_round != expected_round:
        return "wrong_round"
    if layout is None or current is None:
        return "unknown_unit"
    if update.unit not in stage_units:
        return "unexpected_unit"
    if update.unit in seen_units:
        return "duplicate"
    if update.examples < 1:
        return "no_examples"
    if update.examples > examples_held:
        return "too_many_examples"
    if update.steps < 1 or update.effective_steps <= 0:
        return "no_steps"
    if array.dtype != np.float32:
        return "wrong_dtype"
    if array.shape != (layout.size(update.has_head),):
        return "wrong_size"
    return _check_values(array.astype(np.float32, copy=False), update.has_head, layout, current, max_norm_ratio)


def _check_values(
    array: NDArray[np.float32],
    has_head: bool,
    layout: PackLayout,
    current: NDArray[np.float32],
    max_norm_ratio: float,
) -> Reason | None:
    if not all(np.isfinite(array[start : start + _CHUNK]).all() for start in range(0, len(array), _CHUNK)):
        return "not_finite"
    variances = [values for name, values in layout.unpack(array, has_head).items() if name.endswith("running_var")]
    if any(values.size and values.min() < 0 for values in variances):
        return "negative_variance"
    for where in (layout.unit_parameter_slice, layout.head_parameter_slice):
        if where.stop > len(array):
            break
        moved, norm = _norms(array[where], current[where])
        if not moved <= max_norm_ratio * max(norm, 1.0):
            return "absurd_norm"
    for where in (layout.unit_buffer_slice, layout.head_buffer_slice):
        values = array[where]
        if values.size and max(values.max(), -values.min()) > MAX_BUFFER_VALUE:
            return "absurd_norm"
    return None


def _norms(array: NDArray[np.float32], current: NDArray[np.float32]) -> tuple[float, float]:
    """Euclidean norms of ``array - current`` and of ``current``, in double precision, without a full-size copy."""
    moved = norm = 0.0
    for start in range(0, len(array), _CHUNK):
        base = current[start : start + _CHUNK].astype(np.float64)
        difference = array[start : start + _CHUNK] - base
        moved += float(difference @ difference)
        norm += float(base @ base)
    return math.sqrt(moved), math.sqrt(norm)
